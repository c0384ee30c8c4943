"""Connects to addresses that were judged, and to nothing else.

No name comes in here: a look-up between the verdict and the connection could give another address. What is
surprising is how little Trio is used: its own dialling resolves again and costs four times as much.
"""

from __future__ import annotations

__all__ = ["dial"]

import errno
import os
import socket
from collections.abc import Sequence
from itertools import zip_longest

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

_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EALREADY})

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def dial(
    addresses: Sequence[IPAddress],
    port: int,
    *,
    connect: float,
    total: float,
    stagger: float = STAGGER,
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
            return await _attempt(addresses[0], port, min(connect, total)), addresses[0]
        except OSError as error:
            raise _failure([error]) from error
    return await _race(_interleaved(addresses), port, connect=connect, total=total, stagger=stagger)


def _interleaved(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """Alternate the families, the first address's first; duplicates are dropped (RFC 8305 section 4)."""
    unique = dict.fromkeys(addresses)
    first = [address for address in unique if address.version == addresses[0].version]
    second = [address for address in unique if address.version != addresses[0].version]
    return [address for pair in zip_longest(first, second) for address in pair if address is not None]


async def _race(
    addresses: Sequence[IPAddress], port: int, *, connect: float, total: float, stagger: float
) -> tuple[BareStream, IPAddress]:
    winner: tuple[BareStream, IPAddress] | None = None
    errors: list[OSError] = []
    slots = trio.Semaphore(MOST_AT_ONCE)

    async def attempt(address: IPAddress, failed: trio.Event) -> None:
        nonlocal winner
        try:
            stream = await _attempt(address, port, connect)
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
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(stagger):
                    await failed.wait()
    except BaseException:
        # Cancelled from outside in the moment of success.
        if winner is not None:
            winner[0].close()
        raise
    if winner is not None:
        return winner
    if nursery.cancel_scope.cancelled_caught:
        errors.append(TimeoutError(errno.ETIMEDOUT, "all addresses together took too long"))
    raise _failure(errors)


async def _attempt(address: IPAddress, port: int, limit: float) -> BareStream:
    """Connect to one address.

    Raises:
        OSError: it failed; ``errno`` tells how.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, _STREAM, socket.IPPROTO_TCP)
    try:
        if not _IS_NON_BLOCKING:
            sock.setblocking(False)  # noqa: FBT003 - positional only
        if family == socket.AF_INET6:
            # An address family's own: no IPv4 through the back door.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        where = (str(address), port)
        code = sock.connect_ex(where)
        if code == errno.EINPROGRESS:
            # Within one host the answer is there by now, and asking again costs less than beginning to wait.
            code = sock.connect_ex(where)
        if code in _UNDER_WAY:
            with trio.move_on_after(limit) as scope:
                await trio.lowlevel.wait_writable(sock)
            if scope.cancelled_caught:
                _check(errno.ETIMEDOUT)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code != errno.EISCONN:
            _check(code)
        _check_peer(sock, address, port)
        enable_keepalive(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return BareStream(sock)
    except BaseException:
        sock.close()
        raise


def _check(code: int) -> None:
    """Raise the ``OSError`` that *code* stands for; 0 is success."""
    if code:
        raise OSError(code, os.strerror(code))


def _check_peer(sock: socket.socket, address: IPAddress, port: int) -> None:
    """See that the kernel agrees on whom we are connected to.

    Raises:
        OSError: it does not, or the connection is gone already.
    """
    peer = sock.getpeername()
    # The kernel and Python write all but a few IPv6 addresses alike.
    if peer[1] != port or (peer[0] != str(address) and parse_address(peer[0]) != address):
        raise OSError(errno.EPROTO, "connected to another address")
    if sock.getsockname() == peer:
        # TCP's simultaneous open: with nobody listening on a local port of the ephemeral range, a socket can
        # be given that port as its own and connect to itself.
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")


def _failure(errors: Sequence[OSError]) -> UpstreamConnectError | LimitError:
    """Make one error out of one or more."""
    if any(error.errno in _EXHAUSTED for error in errors):
        return LimitError("flows")
    reasons = {_REASONS.get(error.errno or 0, "connect-failed") for error in errors}
    reason = next(reason for reason in _MESSAGES if reason in reasons)
    status = 504 if reason == "connect-timeout" else 502
    return UpstreamConnectError(_MESSAGES[reason], reason=reason, status=status)
