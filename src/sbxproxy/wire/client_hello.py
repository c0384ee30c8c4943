"""The ClientHello, read from records by an observer who doesn't take part (RFC 8446, RFC 6066, RFC 7301).

The surprise is the order of things. A hello may be cut into TLS records of one byte and the records into TCP
segments at any place, and the verdict must not depend on either. So both layers are read strictly from left
to right: a fault is reported by the first field that shows it, as soon as that field is there, and never
waits for bytes that a lying length only promises.

The reader is deliberately narrower than TLS libraries. Where two of them could disagree on which server a
hello names (two names, a repeated extension, bytes after the end), nobody is asked: the hello is malformed.
"""

from __future__ import annotations

__all__ = [
    "MAX_HELLO_MESSAGE",
    "MAX_HELLO_WIRE",
    "ClientHello",
    "Malformed",
    "missing_hello_bytes",
    "parse_client_hello",
]

from dataclasses import dataclass
from struct import unpack_from
from typing import Literal

from sbxproxy.wire.alert import Alert
from sbxproxy.wire.result import Hint

MAX_HELLO_MESSAGE = 32 * 1024
"""Bytes of the handshake message. Real ones take up to 2 KiB; nginx and Envoy stop at 16 KiB, OpenSSL at
128."""

MAX_RECORDS = 4096
"""Records that one hello may be spread over. A post-quantum hello in records of one byte takes 1,900. Each
costs a step of the loop on every look, so this bounds what a client that sends byte by byte can make us
compute."""

MAX_HELLO_WIRE = 4 + MAX_HELLO_MESSAGE + 5 * MAX_RECORDS
"""Bytes of records that the two bounds amount to, 52 KiB: at so many there is always a verdict."""

MAX_EXTENSIONS = 256
"""Extensions in one hello, against the same. Browsers send 18, the registry holds about 60."""

_MAX_FRAGMENT = 1 << 14  # RFC 8446 section 5.1
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAX_SESSION_ID = 32

_EXT_SERVER_NAME = 0
_EXT_ALPN = 16
_EXT_PRE_SHARED_KEY = 41
_EXT_SUPPORTED_VERSIONS = 43


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A well-formed ClientHello.

    Attributes:
        server_name: the one host name of its server_name extension as raw bytes, at least one; ``None``
            without the extension.
        alpn: the protocols it offers, in its order; empty without the extension.
        versions: the supported_versions extension, GREASE included; empty without it, which means TLS 1.2 or
            older.
        size: bytes on the wire from the first record's header to the end of the last record.
    """

    server_name: bytes | None
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that began as a TLS handshake and aren't a ClientHello we accept.

    Attributes:
        problem: what is wrong, a fixed text.
        alert: what to tell the client.
    """

    problem: str
    alert: Alert


_TOO_LARGE = Malformed("the ClientHello is too large", Alert.ILLEGAL_PARAMETER)
_TRAILING = Malformed("data after the ClientHello", Alert.UNEXPECTED_MESSAGE)


def parse_client_hello(data: bytes) -> ClientHello | Malformed | Hint:
    """Read the ClientHello at the start of *data*; what follows its last record is ignored.

    ``NOT_MINE`` says that the first bytes are no TLS 1.x or SSL 3 handshake record (an SSLv2 hello, another
    record type, another protocol); after that, everything irregular is ``Malformed``. The minor record
    version is ignored (RFC 8446 section 5.1).
    """
    message, size, fault = _gather(data)
    if fault is Hint.NOT_MINE:
        return fault
    hello = _read_message(message, size)
    if hello is Hint.NEED_MORE and fault is not None:
        # It lies behind the bytes that were gathered, so it counts only if nothing before it was wrong.
        return fault
    return hello


def missing_hello_bytes(data: bytes) -> int:
    """Say how many bytes a hello that so far ``NEED_MORE`` lacks at least; never less than 1.

    Waiting for so many before the next look keeps the number of looks logarithmic, whatever the client's
    segments and records are; a fault in between is then found a little later.
    """
    message, _, _ = _gather(data)
    if len(message) < _MESSAGE_HEADER:
        return 1
    return max(1, _MESSAGE_HEADER + int.from_bytes(message[1:4], "big") - len(message))


def _gather(data: bytes) -> tuple[bytes, int, Malformed | Literal[Hint.NOT_MINE] | None]:
    """Join the fragments of the first handshake message.

    Returns the bytes of the message that are there, the position behind the last record looked at, and what
    is wrong with that record; the message then ends before the bytes that showed the fault.
    """
    available = len(data)
    position = records = 0
    message = bytearray()
    while True:
        fault = _record_fault(data, position, available)
        if fault is not None or available - position < _RECORD_HEADER:
            return bytes(message), position, fault
        start = position + _RECORD_HEADER
        length = data[start - 2] << 8 | data[start - 1]
        position = start + length
        records += 1
        if records > MAX_RECORDS:
            return bytes(message), position, _TOO_LARGE
        before = len(message)
        message += data[start:position]
        if len(message) >= _MESSAGE_HEADER:
            whole = _MESSAGE_HEADER + (message[1] << 16 | message[2] << 8 | message[3])
            if before + length > whole:
                # The lie is told by this record's header, or by the message's if that was still to come.
                del message[max(before, _MESSAGE_HEADER) :]
                return bytes(message), position, _TRAILING
            if before + length == whole:
                return bytes(message), position, None
        if position > available:
            return bytes(message), position, None


def _record_fault(data: bytes, position: int, available: int) -> Malformed | Literal[Hint.NOT_MINE] | None:
    """Check as much of the record header at *position* as is there."""
    if position < available and data[position] != _HANDSHAKE:
        if position == 0:
            return Hint.NOT_MINE
        return Malformed("another record within the ClientHello", Alert.UNEXPECTED_MESSAGE)
    if position + 1 < available and data[position + 1] != 3:
        if position == 0:
            return Hint.NOT_MINE
        return Malformed("record version is not TLS", Alert.PROTOCOL_VERSION)
    if available - position >= _RECORD_HEADER:
        length = data[position + 3] << 8 | data[position + 4]
        if length == 0:
            return Malformed("empty handshake record", Alert.UNEXPECTED_MESSAGE)
        if length > _MAX_FRAGMENT:
            return Malformed("record is too long", Alert.RECORD_OVERFLOW)
    return None


def _malformed(problem: str) -> Malformed:
    return Malformed(problem, Alert.DECODE_ERROR)


def _read_message(message: bytes, size: int) -> ClientHello | Malformed | Literal[Hint.NEED_MORE]:
    """Read the handshake message, of which the end may be missing (RFC 8446 section 4.1.2).

    Each length is held against the space it claims to fill before the bytes behind it are waited for.
    """
    have = len(message)
    if have and message[0] != _CLIENT_HELLO:
        return Malformed("first handshake message is not a ClientHello", Alert.UNEXPECTED_MESSAGE)
    if have < _MESSAGE_HEADER:
        return Hint.NEED_MORE
    length = int.from_bytes(message[1:4], "big")
    if length > MAX_HELLO_MESSAGE:
        return _TOO_LARGE
    if length < 41:  # version, random, and the shortest session id, cipher list and compression list
        return _malformed("the ClientHello is too short")
    end = _MESSAGE_HEADER + length

    if have < 6:
        return Hint.NEED_MORE
    if message[4] != 3:
        return Malformed("legacy_version is not TLS", Alert.PROTOCOL_VERSION)
    position = 38  # behind the random
    if have <= position:
        return Hint.NEED_MORE
    if message[position] > _MAX_SESSION_ID:
        return _malformed("session id is too long")
    position += 1 + message[position]

    if position + 2 > end:
        return _malformed("no room for cipher suites")
    if have < position + 2:
        return Hint.NEED_MORE
    length = message[position] << 8 | message[position + 1]
    position += 2 + length
    if length < 2 or length % 2 or position > end:
        return _malformed("bad length of cipher suites")

    if position + 1 > end:
        return _malformed("no room for compression methods")
    if have < position + 1:
        return Hint.NEED_MORE
    length = message[position]
    start, position = position + 1, position + 1 + length
    if length < 1 or position > end:
        return _malformed("bad length of compression methods")
    if have < position:
        return Hint.NEED_MORE
    if 0 not in message[start:position]:
        return Malformed("compression is not optional", Alert.ILLEGAL_PARAMETER)

    if position == end:  # TLS 1.2 and older may do without extensions
        return ClientHello(None, (), (), size)
    if position + 2 > end:
        return _malformed("no room for extensions")
    if have < position + 2:
        return Hint.NEED_MORE
    length = message[position] << 8 | message[position + 1]
    position += 2
    if position + length != end:
        return _malformed("bad length of extensions")
    return _read_extensions(message, position, end, size)


def _read_extensions(message: bytes, position: int, end: int, size: int) -> ClientHello | Malformed | Literal[Hint.NEED_MORE]:
    """Read the extensions between *position* and *end*; those of no interest only by their length."""
    have = len(message)
    server_name: bytes | None = None
    alpn: tuple[bytes, ...] = ()
    versions: tuple[int, ...] = ()
    seen: set[int] = set()
    while position < end:
        if end - position < 4:
            return _malformed("no room for an extension")
        if have - position < 4:
            return Hint.NEED_MORE
        kind, length = unpack_from(">HH", message, position)
        start = position + 4
        position = start + length
        if position > end:
            return _malformed("bad length of an extension")
        if kind in seen:
            return Malformed("extension occurs twice", Alert.ILLEGAL_PARAMETER)
        if _EXT_PRE_SHARED_KEY in seen:  # RFC 8446 section 4.2.11
            return Malformed("pre_shared_key is not the last extension", Alert.ILLEGAL_PARAMETER)
        seen.add(kind)
        if len(seen) > MAX_EXTENSIONS:
            return Malformed("too many extensions", Alert.ILLEGAL_PARAMETER)
        if have < position:
            return Hint.NEED_MORE
        if kind == _EXT_SERVER_NAME:
            server_name = _read_server_name(message[start:position])
            if server_name is None:
                return _malformed("bad server_name extension")
        elif kind == _EXT_ALPN:
            alpn = _read_alpn(message[start:position])
            if not alpn:
                return _malformed("bad ALPN extension")
        elif kind == _EXT_SUPPORTED_VERSIONS:
            versions = _read_versions(message[start:position])
            if not versions:
                return _malformed("bad supported_versions extension")
    return ClientHello(server_name, alpn, versions, size)


def _read_server_name(body: bytes) -> bytes | None:
    """Return the one host name (RFC 6066 section 3), or ``None`` for any other shape.

    The list could hold several names of different types. Only one type was ever defined and libraries differ
    on which entry counts, so the list is exactly one host_name.
    """
    if len(body) < 6 or unpack_from(">HBH", body) != (len(body) - 2, 0, len(body) - 5):
        return None
    return body[5:]


def _read_alpn(body: bytes) -> tuple[bytes, ...]:
    """Return the protocol names (RFC 7301 section 3.1), or nothing if they don't fill the list exactly."""
    end = len(body)
    if end < 4 or body[0] << 8 | body[1] != end - 2:
        return ()
    names = []
    position = 2
    while position < end:
        start = position + 1
        position = start + body[position]
        if position == start or position > end:
            return ()
        names.append(body[start:position])
    return tuple(names)


def _read_versions(body: bytes) -> tuple[int, ...]:
    """Return the version numbers (RFC 8446 section 4.2.1), or nothing if they don't fill the list exactly."""
    count, odd = divmod(len(body) - 1, 2)
    if count < 1 or odd or body[0] != 2 * count:
        return ()
    return tuple(unpack_from(f">{count}H", body, 1))
