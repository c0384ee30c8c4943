"""SOCKS version 5 (RFC 1928) with user name and password (RFC 1929): the client's messages, and the server's.

The names in it are counted, not terminated, so a domain name may hold any byte, NUL included; a host is
therefore handed out only as a canonical name or an address. Parsers take all bytes from the start of their
message, ignore what follows it, and say with ``size`` where it ends.
"""

from __future__ import annotations

__all__ = [
    "COMMAND_CONNECT",
    "METHOD_NONE",
    "METHOD_PASSWORD",
    "METHOD_REFUSED",
    "Greeting",
    "Reply",
    "Socks5Error",
    "SocksRequest",
    "UserPass",
    "auth_reply",
    "method_reply",
    "parse_greeting",
    "parse_request",
    "parse_userpass",
    "reply",
]

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from sbxproxy.address import IPAddress, unmapped
from sbxproxy.errors import ClientProtocolError
from sbxproxy.hostname import Hostname
from sbxproxy.wire.authority import parse_host
from sbxproxy.wire.result import Hint

METHOD_NONE = 0
METHOD_PASSWORD = 2
METHOD_REFUSED = 0xFF
COMMAND_CONNECT = 1

_VERSION = 5
_PASSWORD_VERSION = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4


class Reply(IntEnum):
    """Answers to a request (RFC 1928 section 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class Socks5Error(ClientProtocolError):
    """The client broke SOCKS; ``reply`` is what to answer if a request was what it sent."""

    def __init__(self, reason: str, message: str, *, reply: Reply = Reply.GENERAL_FAILURE) -> None:
        """Take a reason id, a fixed text and the reply code."""
        super().__init__(reason, message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Greeting:
    """The authentication methods on offer, one byte each; ``size`` is the message's length in bytes."""

    methods: bytes
    size: int


@dataclass(frozen=True, slots=True)
class UserPass:
    """A user name of 1 to 255 bytes and a password of 0 to 255; ``size`` is the message's length in bytes."""

    username: bytes = field(repr=False)
    password: bytes = field(repr=False)
    size: int


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """What a client wants.

    Attributes:
        command: 1 is CONNECT; any other byte is handed out as it came, for ``Reply.COMMAND_NOT_SUPPORTED``.
        host: canonical name, or address with IPv4-mapped IPv6 unwrapped.
        port: 1 to 65535 for CONNECT, else 0 to 65535.
        size: the message's length in bytes.
    """

    command: int
    host: Hostname | IPAddress
    port: int
    size: int


def parse_greeting(data: bytes) -> Greeting | Literal[Hint.NEED_MORE]:
    """Read the first message: version, count, methods.

    Raises:
        Socks5Error: not version 5 (told by the first byte), or no method.
    """
    if data and data[0] != _VERSION:
        raise Socks5Error("bad-request", "not SOCKS version 5")
    if len(data) < 2:
        return Hint.NEED_MORE
    size = 2 + data[1]
    if size == 2:
        raise Socks5Error("bad-request", "the SOCKS greeting offers no method")
    return Greeting(data[2:size], size) if len(data) >= size else Hint.NEED_MORE


def parse_userpass(data: bytes) -> UserPass | Literal[Hint.NEED_MORE]:
    """Read user name and password.

    RFC 1929 wants a password of at least one byte; clients that carry a token as the user name send none, and
    are understood.

    Raises:
        Socks5Error: not version 1 of the sub-negotiation, or an empty user name.
    """
    if data and data[0] != _PASSWORD_VERSION:
        raise Socks5Error("bad-request", "not version 1 of SOCKS password authentication")
    if len(data) < 2:
        return Hint.NEED_MORE
    middle = 2 + data[1]
    if middle == 2:
        raise Socks5Error("bad-request", "empty user name")
    if len(data) <= middle:
        return Hint.NEED_MORE
    size = middle + 1 + data[middle]
    if len(data) < size:
        return Hint.NEED_MORE
    return UserPass(data[2:middle], data[middle + 1 : size], size)


def parse_request(data: bytes) -> SocksRequest | Literal[Hint.NEED_MORE]:
    """Read a request: version, command, reserved, address type, address, port.

    A domain name that is the text of an address is taken for that address if it is one in its strict form;
    ``127.1`` and the like are neither name nor address.

    Raises:
        Socks5Error: with the reply code to send: the version, the reserved byte or the port is wrong (1), the
            host is neither name nor address (2), the address type is unknown (8).
    """
    if data and data[0] != _VERSION:
        raise Socks5Error("bad-request", "not SOCKS version 5")
    if len(data) > 2 and data[2] != 0:
        raise Socks5Error("bad-request", "the reserved byte of the SOCKS request is not zero")
    if len(data) < 4:
        return Hint.NEED_MORE
    kind = data[3]
    start = 4
    if kind == _IPV4:
        end = start + 4
    elif kind == _IPV6:
        end = start + 16
    elif kind == _NAME:
        if len(data) <= start:
            return Hint.NEED_MORE
        start, end = start + 1, start + 1 + data[start]
    else:
        raise Socks5Error("bad-request", "unknown SOCKS address type", reply=Reply.ADDRESS_TYPE_NOT_SUPPORTED)
    if len(data) < end:
        return Hint.NEED_MORE
    raw = data[start:end]
    host: Hostname | IPAddress | None
    if kind == _IPV4:
        host = IPv4Address(raw)
    elif kind == _IPV6:
        host = unmapped(IPv6Address(raw))
    else:
        host = parse_host(raw)
    if host is None:
        raise Socks5Error("bad-name", "the host is neither a host name nor an IP address", reply=Reply.NOT_ALLOWED)
    if len(data) < end + 2:
        return Hint.NEED_MORE
    port = int.from_bytes(data[end : end + 2], "big")
    if port == 0 and data[1] == COMMAND_CONNECT:
        raise Socks5Error("bad-request", "port 0 can't be connected to")
    return SocksRequest(data[1], host, port, end + 2)


def method_reply(method: int) -> bytes:
    """Answer a greeting with the method chosen; after ``METHOD_REFUSED`` the connection is closed."""
    return bytes((_VERSION, method))


def auth_reply(*, ok: bool) -> bytes:
    """Answer user name and password; after a failure the connection is closed."""
    return bytes((_PASSWORD_VERSION, 0 if ok else 1))


def reply(code: Reply) -> bytes:
    """Answer a request; as bound address 0.0.0.0:0, since the real one is none of the client's business."""
    return bytes((_VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))
