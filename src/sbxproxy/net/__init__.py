"""Connections: looking ahead, relaying, dialling, resolving, listening. Nothing here knows a policy."""

from __future__ import annotations

__all__ = [
    "BoundedListener",
    "Ended",
    "HalfCloseablePeekedStream",
    "PeekedStream",
    "Resolver",
    "Slots",
    "SystemResolver",
    "UnixListener",
    "abort",
    "describe",
    "dial",
    "enable_keepalive",
    "fd_budget",
    "is_host_address",
    "local_endpoints",
    "open_unix_listener",
    "peekable",
    "relay",
    "socket_below",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.net.descriptors import fd_budget
    from sbxproxy.net.dial import dial
    from sbxproxy.net.host import is_host_address
    from sbxproxy.net.listen import BoundedListener, Slots, UnixListener, describe, local_endpoints, open_unix_listener
    from sbxproxy.net.peek import HalfCloseablePeekedStream, PeekedStream, peekable
    from sbxproxy.net.relay import Ended, relay
    from sbxproxy.net.resolve import Resolver, SystemResolver
    from sbxproxy.net.sockets import abort, enable_keepalive, socket_below

face(
    __name__,
    {
        "descriptors": "fd_budget",
        "dial": "dial",
        "host": "is_host_address",
        "listen": "BoundedListener Slots UnixListener describe local_endpoints open_unix_listener",
        "peek": "HalfCloseablePeekedStream PeekedStream peekable",
        "relay": "Ended relay",
        "resolve": "Resolver SystemResolver",
        "sockets": "abort enable_keepalive socket_below",
    },
)
