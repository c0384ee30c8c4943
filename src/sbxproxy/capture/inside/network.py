"""The network of a sandbox: nothing but loopback, over which everything leads, and listeners that everything is redirected to."""

from __future__ import annotations

__all__ = ["capture_gateway", "capture_here"]

import _socket as socket
import errno
import fcntl
import os
import struct

from sbxproxy.capture.inside.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    add_address,
    add_default_route,
    exchange,
    set_up,
)
from sbxproxy.capture.inside.nft import Ports, gateway_rules, sandbox_rules, transaction
from sbxproxy.capture.inside.steps import StepError, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OWN_ADDRESSES = ("192.0.0.8", "fd73:6278:7072:6f78::8")
"""What connections come from. The first is IANA's dummy address (RFC 7600), so that no address a program could want is in its place;
the second is a unique local one, since programs then prefer IPv4, by which more hosts can be reached (RFC 6724)."""

BACKLOG = 1024
_LOOPBACK = 1
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_TRIES = 20


def capture_here() -> list[socket.socket]:
    """Make the current network namespace, which has no way out of its own, one whose traffic ends at our listeners.

    Returns:
        TCP for IPv4, DNS for IPv4, and the same for IPv6 if there is any.

    Raises:
        StepError: a step failed, or the namespace has a way out.
    """
    with step("network"):
        for index, name in socket.if_nameindex():
            if index != _LOOPBACK and _is_up(name):
                raise StepError(
                    "network", f"interface {name} is a way out of this namespace; a gateway is for those", errno.EINVAL
                )
        _route(_LOOPBACK, set_up(_LOOPBACK, 1))
        _add_own(OWN_ADDRESSES[0])
        own = list(OWN_ADDRESSES[:1])
        if _has_ipv6():
            try:
                _add_own(OWN_ADDRESSES[1])
            except OSError as error:
                if error.errno not in {errno.EACCES, errno.EOPNOTSUPP}:  # IPv6 is turned off
                    raise
            else:
                own.append(OWN_ADDRESSES[1])
    with step("listeners"):
        sockets = _listen(("127.0.0.1", "::1")[: len(own)])
    _install(sandbox_rules(_ports(sockets), tuple(own)))
    return sockets


def capture_gateway(interface: str) -> list[socket.socket]:
    """Capture what comes in by *interface* of the current network namespace.

    Raises:
        StepError: a step failed, or there is no such interface.
    """
    with step("network"):
        socket.if_nametoindex(interface)
        _route(_LOOPBACK, set_up(_LOOPBACK, 1))
    with step("listeners"):
        sockets = _listen(("0.0.0.0", "::")[: 2 if _has_ipv6() else 1])  # noqa: S104 - the rules let in only what is redirected
    _install(gateway_rules(_ports(sockets), interface))
    return sockets


def _route(_index: int, *messages: bytes) -> None:
    exchange(NETLINK_ROUTE, b"".join(messages), set(range(1, len(messages) + 1)))


def _add_own(address: str) -> None:
    for message in (add_address(_LOOPBACK, address, 1), add_default_route(_LOOPBACK, address, 1)):
        try:
            _route(_LOOPBACK, message)
        except OSError as error:
            if error.errno != errno.EEXIST:  # captured before, by a proxy that is gone
                raise


def _install(rules: list[tuple[int, bytes]]) -> None:
    with step("nf_tables"):
        try:
            exchange(NETLINK_NETFILTER, *transaction(rules))
        except FileExistsError:
            raise StepError("nf_tables", "this network namespace is captured already", errno.EEXIST) from None


def _is_up(name: str) -> bool:
    request = struct.pack("=16sH14x", os.fsencode(name), 0)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    (flags,) = struct.unpack_from("=16xH", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))
    sock.close()
    return bool(flags & _IFF_UP)


def _has_ipv6() -> bool:
    return os.path.exists("/proc/self/net/if_inet6")


def _listen(addresses: Sequence[str]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sockets += _bind_all(addresses, kind)
    for sock in sockets:
        if sock.type == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    return sockets


def _bind_all(addresses: Sequence[str], kind: int) -> list[socket.socket]:
    """Bind the same free port on each address: the rules name one for both families."""
    for attempt in range(_TRIES):
        sockets: list[socket.socket] = []
        port = 0
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
                sockets.append(sock)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
                port = sock.getsockname()[1]
            return sockets
        except OSError as error:
            for sock in sockets:
                sock.close()
            if error.errno != errno.EADDRINUSE or attempt == _TRIES - 1:
                raise
    raise AssertionError


def _ports(sockets: list[socket.socket]) -> Ports:
    ports = {sock.type: int(sock.getsockname()[1]) for sock in sockets}
    return Ports(tcp=ports[socket.SOCK_STREAM], dns=ports[socket.SOCK_DGRAM])
