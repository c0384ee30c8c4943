"""Netlink (RFC 3549): encoding messages, sending them, and understanding the kernel's refusals; links, addresses and routes.

Numbers are in the machine's byte order here. The kernel answers each message that asks for it with an error number, 0 for success,
and since Linux 4.12 with a sentence of its own, which is worth more than the number.
"""

from __future__ import annotations

__all__ = [
    "ACK",
    "APPEND",
    "CREATE",
    "EXCLUSIVE",
    "NETLINK_NETFILTER",
    "NETLINK_ROUTE",
    "REQUEST",
    "acknowledgements",
    "add_address",
    "add_default_route",
    "attribute",
    "exchange",
    "message",
    "nested",
    "set_up",
]

import _socket as socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

REQUEST = 0x001
ACK = 0x004
EXCLUSIVE = 0x200
CREATE = 0x400
APPEND = 0x800

_ERROR = 2
_CAPPED = 0x100
_WITH_ATTRIBUTES = 0x200
_NESTED = 0x8000
_MESSAGE_TEXT = 1  # NLMSGERR_ATTR_MSG

_SOL_NETLINK = 270
_CAP_ACK = 10
_EXT_ACK = 11

_NEWLINK = 16
_NEWADDR = 20
_NEWROUTE = 24
_IFF_UP = 1
_NODAD = 0x02

_HEADER = struct.Struct("=IHHII")
_PATIENCE = struct.pack("ll", 10, 0)
"""The kernel answers within the call that sends; ten seconds are for a machine that swaps."""


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute: its length and kind, the value, and padding to a multiple of four."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Encode one message; *payload* is padded already."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def acknowledgements(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Read the acknowledgements in one datagram from the kernel; other messages are passed over.

    Yields:
        The number of the message, the error or 0, and the kernel's own words if it has any.
    """
    while len(data) >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        body = data[_HEADER.size : length]
        if kind == _ERROR and len(body) >= 4 + _HEADER.size:
            (negative,) = struct.unpack_from("=i", body)
            echoed = _HEADER.size if flags & _CAPPED else max(_HEADER.size, *struct.unpack_from("=I", body, 4))
            text = _text(body[4 + echoed :]) if flags & _WITH_ATTRIBUTES else ""
            yield sequence, -negative, text
        data = data[length + -length % 4 :]


def _text(attributes: bytes) -> str:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if not 4 <= length <= len(attributes):
            return ""
        if kind == _MESSAGE_TEXT:
            return attributes[4:length].rstrip(b"\0").decode(errors="replace")
        attributes = attributes[length + -length % 4 :]
    return ""


def exchange(protocol: int, data: bytes, sequences: set[int]) -> None:
    """Send *data* to the kernel in one datagram and wait until each message in *sequences* is acknowledged.

    Raises:
        OSError: the kernel refused one; the first refusal, in its own words if it has any.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        for option in (_CAP_ACK, _EXT_ACK):
            sock.setsockopt(_SOL_NETLINK, option, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        sock.bind((0, 0))
        sock.send(data)
        waiting = set(sequences)
        while waiting:
            for sequence, number, text in acknowledgements(sock.recv(65536)):
                if number:
                    words = os.strerror(number)
                    raise OSError(number, f"{words}: {text}" if text else words)
                waiting.discard(sequence)
    finally:
        sock.close()


def set_up(index: int, sequence: int) -> bytes:
    """Bring an interface up."""
    return message(_NEWLINK, REQUEST | ACK, sequence, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))


def add_address(index: int, address: str, sequence: int) -> bytes:
    """Give an interface one address, usable at once: duplicates are not looked for."""
    family, packed = _packed(address)
    payload = struct.pack("=BBBBI", family, 8 * len(packed), _NODAD, 0, index)
    payload += attribute(1, packed) + attribute(2, packed)  # IFA_ADDRESS, IFA_LOCAL
    return message(_NEWADDR, REQUEST | ACK | CREATE | EXCLUSIVE, sequence, payload)


def add_default_route(index: int, source: str, sequence: int) -> bytes:
    """Send everything of *source*'s family by an interface, from *source* unless the program binds another."""
    family, packed = _packed(source)
    scope = 253 if family == socket.AF_INET else 0  # RT_SCOPE_LINK: there is no gateway; IPv6 has no scopes here
    payload = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 4, scope, 1, 0)  # the main table, static, unicast
    payload += attribute(4, struct.pack("=i", index)) + attribute(7, packed)  # RTA_OIF, RTA_PREFSRC
    return message(_NEWROUTE, REQUEST | ACK | CREATE | EXCLUSIVE, sequence, payload)


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)
