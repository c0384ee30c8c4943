"""The first packet of a PostgreSQL client, and how to refuse it (its manual, "Message Formats").

A startup packet has no type byte: a length and a code tell what it is, so eight bytes decide. Requests for
encryption are accepted at exactly the length the documentation gives; servers are laxer, and what they make
of the rest is none of our business.
"""

from __future__ import annotations

__all__ = [
    "GSSENC_REQUEST",
    "SSL_REQUEST",
    "PostgresStart",
    "error_response",
    "parse_start",
    "sniff_postgres",
]

from enum import Enum
from struct import unpack_from
from typing import assert_never

from sbxproxy.wire.result import Hint, Sniffed

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""Asks whether the server speaks TLS; it answers with one byte, ``S`` or ``N``."""

GSSENC_REQUEST = bytes.fromhex("0000000804d21630")
"""Asks for GSSAPI encryption; it answers with one byte, ``G`` or ``N``."""

_MIN_LENGTH = 8
_MAX_LENGTH = 4 + 10000  # MAX_STARTUP_PACKET_LENGTH of the server, which doesn't count the length word
_CANCEL_LENGTHS = range(16, 12 + 256 + 1)  # process id and a key: 4 bytes up to protocol 3.0, at most 256 since 3.2


class PostgresStart(Enum):
    """What a client's first eight bytes ask for."""

    SSL_REQUEST = "SSLRequest"
    GSSENC_REQUEST = "GSSENCRequest"
    CANCEL_REQUEST = "CancelRequest"
    STARTUP = "StartupMessage"
    MALFORMED = "an unknown request, or a known one at a length it can't have"


def parse_start(data: bytes) -> PostgresStart | Hint:
    """Tell from the first eight bytes what a client wants.

    ``NOT_MINE`` comes with the first byte that no startup packet of 8 to 10,004 bytes has at its place, and
    for unknown codes.
    """
    if data[:2] != b"\0\0"[: len(data)]:
        return Hint.NOT_MINE
    if len(data) < 4:
        return Hint.NEED_MORE
    length = int.from_bytes(data[:4], "big")
    if not _MIN_LENGTH <= length <= _MAX_LENGTH:
        return Hint.NOT_MINE
    if len(data) < 8:
        return Hint.NEED_MORE
    # Requests that are no startup have the major version 1234 and count their minor from 5678.
    (code,) = unpack_from(">I", data, 4)
    match code >> 16, code & 0xFFFF:
        case ((2 | 3), _):
            return PostgresStart.STARTUP
        case 1234, 5678 if length in _CANCEL_LENGTHS:
            return PostgresStart.CANCEL_REQUEST
        case 1234, 5679 if length == len(SSL_REQUEST):
            return PostgresStart.SSL_REQUEST
        case 1234, 5680 if length == len(GSSENC_REQUEST):
            return PostgresStart.GSSENC_REQUEST
        case 1234, _:
            return PostgresStart.MALFORMED
        case _:
            return Hint.NOT_MINE


def sniff_postgres(data: bytes) -> Sniffed | Hint:
    """Recognise a PostgreSQL client, and whether it asks for encryption before it begins."""
    start = parse_start(data)
    if isinstance(start, Hint):
        return start
    match start:
        case PostgresStart.SSL_REQUEST | PostgresStart.GSSENC_REQUEST:
            return Sniffed("postgres-request")
        case PostgresStart.MALFORMED:
            return Sniffed("postgres", problem="malformed PostgreSQL start-up request")
        case PostgresStart.STARTUP | PostgresStart.CANCEL_REQUEST:
            return Sniffed("postgres")
        case unknown:
            assert_never(unknown)


def error_response(message: str, *, code: str = "28000", hint: str = "") -> bytes:
    """Return a FATAL ErrorResponse, which drivers show to their user.

    Args:
        message: what happened; one sentence.
        code: the SQLSTATE; 28000 is "invalid authorization specification".
        hint: what to do about it, if anything.

    Raises:
        ValueError: a text holds NUL, which would end its field early.
    """
    fields = [("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", message)]
    if hint:
        fields.append(("H", hint))
    if any("\0" in text for _, text in fields):
        raise ValueError("a field of an ErrorResponse must not hold NUL")
    body = b"".join(f"{kind}{text}\0".encode() for kind, text in fields) + b"\0"
    return b"E" + (4 + len(body)).to_bytes(4, "big") + body
