"""Connects to addresses that were judged, and to nothing else.

No name comes in here: a look-up between the verdict and the connection could give another address. What is
surprising is how little Trio is used: its own dialling resolves again and costs four times as much.
"""

from __future__ import annotations

__all__ = ["begin", "check", "dial", "failure"]

import errno
import os
import socket
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

import trio

from sbxproxy.address import IPAddress, parse_address, unmapped
from sbxproxy.errors import LimitError, UpstreamConnectError
from sbxproxy.net.bare import BareStream
from sbxproxy.net.sockets import enable_keepalive

STAGGER = 0.25
"""Seconds before the next address is tried beside one that has not answered (RFC 8305 section 5)."""

MOST_AT_ONCE = 4
"""Attempts in flight per dial. RFC 8305 has no bound, but each is a descriptor, and how many addresses a name
has is up to whoever owns it."""

_REASONS: dict[int, str] = {
    errno.ECONNREFUSED: "connection-refused",
    errno.ENETUNREACH: "host-unreachable",
    errno.EHOSTUNREACH: "host-unreachable",
    errno.ENETDOWN: "host-unreachable",
    errno.EHOSTDOWN: "host-unreachable",
    errno.EAFNOSUPPORT: "host-unreachable",
    errno.ETIMEDOUT: "connect-timeout",
}

_MESSAGES = {
    "connection-refused": "the upstream refused the connection",
    "host-unreachable": "there is no route to the upstream",
    "connect-timeout": "the upstream did not answer in time",
    "connect-failed": "the connection to the upstream failed",
}
"""From the most to the least telling: where addresses fail differently, the first of these is reported."""

_IS_NON_BLOCKING = hasattr(socket, "SOCK_NONBLOCK")
_STREAM = socket.SOCK_STREAM | (socket.SOCK_NONBLOCK if _IS_NON_BLOCKING else 0)  # Linux saves a call for each socket that way

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def dial(
    addresses: Sequence[IPAddress],
    port: int,
    *,
    connect: float,
    total: float,
    stagger: float = STAGGER,
    begun: socket.socket | None = None,
) -> tuple[BareStream, IPAddress]:
    """Connect by TCP to one of *addresses* and return the stream, which the caller owns, and the address.

    Several addresses race as in RFC 8305: families alternate beginning with the first address's, each starts
    *stagger* seconds after the one before or as soon as that has failed, the first to connect wins and the
    others are closed. Nothing stays open if this raises or is cancelled.

    Args:
        addresses: the permitted addresses, best first; at least one; no IPv4-mapped ones, no scope ids.
        port: 1 to 65535.
        connect: seconds for one address.
        total: seconds for all.
        stagger: seconds.
        begun: what ``begin`` returned for the first address, not done within its *stagger*; taken over.

    Raises:
        UpstreamConnectError: none connected; ``reason`` is ``connection-refused``, ``host-unreachable``,
            ``connect-timeout`` (status 504) or ``connect-failed``.
        LimitError: no address connected and the process or the system had no descriptor or memory for one.
        ValueError: the caller's mistake: no address, or one that isn't canonical, or no port.
    """
    if not addresses or not 0 < port < 65536:
        raise ValueError("dial needs an address and a port")
    for address in addresses:
        if unmapped(address) != address or getattr(address, "scope_id", None):
            raise ValueError("dial takes canonical addresses only")
    if len(addresses) == 1:
        try:
            return await _attempt(addresses[0], port, min(connect, total), begun), addresses[0]
        except OSError as error:
            raise failure([error]) from error
    return await _race(_interleaved(addresses), port, connect=connect, total=total, stagger=stagger, begun=begun)


def _interleaved(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """Alternate the families, the first address's first; duplicates are dropped (RFC 8305 section 4)."""
    unique = dict.fromkeys(addresses)
    first = [address for address in unique if address.version == addresses[0].version]
    second = [address for address in unique if address.version != addresses[0].version]
    return [address for pair in zip_longest(first, second) for address in pair if address is not None]


async def _race(
    addresses: Sequence[IPAddress],
    port: int,
    *,
    connect: float,
    total: float,
    stagger: float,
    begun: socket.socket | None,
) -> tuple[BareStream, IPAddress]:
    winner: tuple[BareStream, IPAddress] | None = None
    errors: list[OSError] = []
    slots = trio.Semaphore(MOST_AT_ONCE)

    async def attempt(address: IPAddress, failed: trio.Event, begun: socket.socket | None) -> None:
        nonlocal winner
        try:
            stream = await _attempt(address, port, connect, begun)
        except OSError as error:
            errors.append(error)
            failed.set()
            slots.release()
            return
        if winner is None:
            winner = stream, address
            nursery.cancel_scope.cancel(reason="another address has connected")
        else:
            stream.close()

    try:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + total
            for address in addresses:
                await slots.acquire()
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed, begun)
                with trio.move_on_after(stagger if begun is None else 0):
                    await failed.wait()
                begun = None
    except BaseException:
        if begun is not None:
            begun.close()
        # Cancelled from outside in the moment of success.
        if winner is not None:
            winner[0].close()
        raise
    if winner is not None:
        return winner
    if nursery.cancel_scope.cancelled_caught:
        errors.append(TimeoutError(errno.ETIMEDOUT, "all addresses together took too long"))
    raise failure(errors)


Peer: TypeAlias = tuple[Any, ...]
"""A socket address as ``getpeername`` returns it: host and port first."""


def begin(address: IPAddress, port: int, text: str | None = None) -> tuple[socket.socket, Peer | None]:
    """Begin to connect to one judged address; then, or once there is room where nobody is connected yet, ``check``.

    Args:
        address: canonical, without a scope id.
        port: 1 to 65535.
        text: the address as text, where it is known.

    Returns:
        The socket, which the caller owns, and whom it is connected to already, as within one host; ``None`` if it has to be waited
        for.

    Raises:
        OSError: it failed; ``errno`` tells how.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, _STREAM, socket.IPPROTO_TCP)
    try:
        if not _IS_NON_BLOCKING:
            sock.setblocking(False)  # noqa: FBT003 - positional only
        if family == socket.AF_INET6:
            # An address family's own: no IPv4 through the back door.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        code = sock.connect_ex((text or str(address), port))
        if code != errno.EINPROGRESS:
            _check(code)
        return sock, _peer(sock)
    except BaseException:
        sock.close()
        raise


def _peer(sock: socket.socket) -> Peer | None:
    # Within one host the answer is there by now, and asking costs less than beginning to wait.
    try:
        peer: Peer = sock.getpeername()
    except OSError:  # not connected: under way, or failed, which shows when it is waited for
        return None
    return peer


def check(sock: socket.socket, address: IPAddress, port: int, text: str | None = None, peer: Peer | None = None) -> None:
    """See that a connection that ``begin`` began stands and leads where it must, and let it send without delay.

    Args:
        sock: connected, or failed if it was waited for; it stays the caller's.
        address: as for ``begin``.
        port: the same.
        text: the same.
        peer: what ``begin`` said; ``None`` once there is room.

    Raises:
        OSError: it failed, or leads elsewhere.
    """
    if peer is None:
        _check(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        peer = sock.getpeername()
    # The kernel and Python write all but a few IPv6 addresses alike.
    if peer[1] != port or (peer[0] != (text or str(address)) and parse_address(peer[0]) != address):
        raise OSError(errno.EPROTO, "connected to another address")
    if sock.getsockname() == peer:
        # TCP's simultaneous open: with nobody listening on a local port of the ephemeral range, a socket can
        # be given that port as its own and connect to itself.
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _attempt(address: IPAddress, port: int, limit: float, begun: socket.socket | None) -> BareStream:
    """Connect to one address, or go on with what was *begun*.

    Raises:
        OSError: it failed; ``errno`` tells how.
    """
    if begun is None:
        await trio.lowlevel.checkpoint_if_cancelled()
    sock, peer = begin(address, port) if begun is None else (begun, None)
    try:
        if peer is None:
            with trio.move_on_after(limit) as scope:
                await trio.lowlevel.wait_writable(sock)
            if scope.cancelled_caught:
                _check(errno.ETIMEDOUT)
        check(sock, address, port, peer=peer)
        enable_keepalive(sock)
        return BareStream(sock)
    except BaseException:
        sock.close()
        raise


def _check(code: int) -> None:
    """Raise the ``OSError`` that *code* stands for; 0 is success."""
    if code:
        raise OSError(code, os.strerror(code))


def failure(errors: Sequence[OSError]) -> UpstreamConnectError | LimitError:
    """Make one error out of those of one or more addresses."""
    if any(error.errno in _EXHAUSTED for error in errors):
        return LimitError("flows")
    reasons = {_REASONS.get(error.errno or 0, "connect-failed") for error in errors}
    reason = next(reason for reason in _MESSAGES if reason in reasons)
    status = 504 if reason == "connect-timeout" else 502
    return UpstreamConnectError(_MESSAGES[reason], reason=reason, status=status)
