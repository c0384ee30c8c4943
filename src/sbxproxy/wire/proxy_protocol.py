"""The PROXY protocol, version 2: who connected to whom, told by a load balancer (proxy-protocol.txt).

Whoever can write to a connection can write such a header, so it is read only where the operator configured a
trusted sender, and there it is required: its signature is never used to guess. A header that can't be used
(UDP, UNIX sockets, bad checksum) is an error, not a reason to fall back on the connection's own addresses.
"""

from __future__ import annotations

__all__ = [
    "SIGNATURE",
    "Endpoint",
    "ProxyHeader",
    "build_local",
    "build_proxy",
    "crc32c",
    "parse_proxy_header",
]

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NoReturn

from sbxproxy.address import IPAddress, unmapped
from sbxproxy.errors import ClientProtocolError
from sbxproxy.wire.result import Hint

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

MAX_BODY = 4096
"""Bytes of addresses and TLVs accepted. Clouds send less than 200; a sender's TLS client certificate fields
stay below 2 KiB."""

Endpoint = tuple[IPAddress, int]
"""Address (IPv4-mapped IPv6 unwrapped) and port, 0 to 65535."""

_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_TLV_CRC32C = 3
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header that was read.

    Attributes:
        source: who connected; ``None`` for a connection of the sender's own (LOCAL: health checks) or an
            unspecified family.
        destination: whom it wanted, its port at least 1; ``None`` exactly when ``source`` is.
        size: the header's length in bytes; the connection's own data begins behind it.
    """

    source: Endpoint | None
    destination: Endpoint | None
    size: int


def parse_proxy_header(data: bytes) -> ProxyHeader | Literal[Hint.NEED_MORE]:
    """Read the header at the start of *data*, TLVs skipped, a CRC32C among them checked.

    Raises:
        ClientProtocolError: it isn't one, told by the first byte that shows it, or it can't be used.
    """
    if not data.startswith(SIGNATURE) and not SIGNATURE.startswith(data):
        _refuse("no PROXY protocol header")
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        _refuse("unknown version or command of the PROXY protocol")
    if len(data) < _FIXED:
        return Hint.NEED_MORE
    command, family = data[12], data[13]
    length = data[14] << 8 | data[15]
    if length > MAX_BODY:
        _refuse("the PROXY protocol header is too long")
    size = _FIXED + length
    addresses = {_UNSPEC: 0, _TCP4: 12, _TCP6: 36}.get(family)
    if command == _LOCAL:
        # The receiver must not look at what a LOCAL header holds, its family included.
        return ProxyHeader(None, None, size) if len(data) >= size else Hint.NEED_MORE
    if addresses is None:
        _refuse("the PROXY protocol header is not about TCP")
    if length < addresses:
        _refuse("the PROXY protocol header is too short for its addresses")
    if len(data) < size:
        return Hint.NEED_MORE
    header = data[:size]
    if family == _UNSPEC:
        # What follows an unspecified family has no known shape.
        return ProxyHeader(None, None, size)
    _check_tlvs(header, _FIXED + addresses)
    width = 4 if family == _TCP4 else 16
    body = header[_FIXED:]
    source = _endpoint(body[:width], body[2 * width : 2 * width + 2])
    destination = _endpoint(body[width : 2 * width], body[2 * width + 2 : 2 * width + 4])
    if destination[1] == 0:
        _refuse("the destination port of the PROXY protocol header is 0")
    return ProxyHeader(source, destination, size)


def _refuse(problem: str) -> NoReturn:
    raise ClientProtocolError("bad-request", problem)


def _endpoint(address: bytes, port: bytes) -> Endpoint:
    raw = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
    return unmapped(raw), int.from_bytes(port, "big")


def _check_tlvs(header: bytes, position: int) -> None:
    """Walk the type-length-value fields from *position* to the end, and check a checksum among them."""
    checksum_at = None
    while position < len(header):
        if len(header) - position < 3:
            _refuse("a TLV of the PROXY protocol header is cut off")
        kind, length = header[position], header[position + 1] << 8 | header[position + 2]
        position += 3
        if position + length > len(header):
            _refuse("a TLV of the PROXY protocol header is cut off")
        if kind == _TLV_CRC32C:
            if checksum_at is not None or length != _CRC_BYTES:
                _refuse("malformed checksum in the PROXY protocol header")
            checksum_at = position
        position += length
    if checksum_at is None:
        return
    behind = checksum_at + _CRC_BYTES
    blanked = header[:checksum_at] + bytes(_CRC_BYTES) + header[behind:]
    if crc32c(blanked) != int.from_bytes(header[checksum_at:behind], "big"):
        _refuse("wrong checksum in the PROXY protocol header")


def build_local() -> bytes:
    """Return the header of a connection that the sender opened for itself."""
    return SIGNATURE + bytes((_LOCAL, _UNSPEC, 0, 0))


def build_proxy(
    source: Endpoint, destination: Endpoint, *, tlvs: Iterable[tuple[int, bytes]] = (), checksum: bool = False
) -> bytes:
    """Return the header that says *source* connected to *destination*, as IPv6 unless both are IPv4.

    Args:
        source: address and port.
        destination: address and port.
        tlvs: types and values to add.
        checksum: whether to add a CRC32C.

    Raises:
        OverflowError: a port or the whole doesn't fit into two bytes.
    """
    (source_address, source_port), (target_address, target_port) = source, destination
    v4 = source_address.version == target_address.version == 4
    body = b"".join(
        (
            *(_packed(address, v4=v4) for address in (source_address, target_address)),
            *(port.to_bytes(2, "big") for port in (source_port, target_port)),
            *(bytes((kind,)) + len(value).to_bytes(2, "big") + value for kind, value in tlvs),
        )
    )
    if checksum:
        body += bytes((_TLV_CRC32C, 0, _CRC_BYTES, *bytes(_CRC_BYTES)))
    header = SIGNATURE + bytes((_PROXY, _TCP4 if v4 else _TCP6)) + len(body).to_bytes(2, "big") + body
    return header[:-_CRC_BYTES] + crc32c(header).to_bytes(_CRC_BYTES, "big") if checksum else header


def _packed(address: IPAddress, *, v4: bool) -> bytes:
    mapped = address.version == 4 and not v4
    return bytes(10) + b"\xff\xff" + address.packed if mapped else address.packed


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of *data* (RFC 3720 appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
