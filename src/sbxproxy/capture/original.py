"""Where a redirected connection was going before the kernel sent it to us."""

from __future__ import annotations

__all__ = ["original_destination"]

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from sbxproxy.address import IPAddress, unmapped
from sbxproxy.errors import ClientProtocolError

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


class _Socket(Protocol):
    """A socket of the standard library or of Trio."""

    @property
    def family(self) -> int: ...

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def original_destination(sock: _Socket) -> tuple[IPAddress, int]:
    """Ask the kernel for the destination of an accepted connection: address and port.

    Raises:
        ClientProtocolError: it has none, since the client connected to the listener itself.
    """
    try:
        if sock.family == socket.AF_INET6:
            port, packed = _SOCKADDR_IN6.unpack(sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size))
            return unmapped(IPv6Address(packed)), port
        port, packed = _SOCKADDR_IN.unpack(sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size))
        return IPv4Address(packed), port
    except OSError:
        raise ClientProtocolError("no-original-destination", "the connection was not redirected to us") from None
