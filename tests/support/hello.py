"""Builders of TLS ClientHellos, well-formed by default and bent by arguments, and ways to cut them up."""

from __future__ import annotations

import struct
from collections.abc import Iterator

X25519 = 0x001D
SECP256R1 = 0x0017


def vector(body: bytes, width: int = 2) -> bytes:
    """Put a length of *width* bytes before *body*."""
    return len(body).to_bytes(width, "big") + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(body)


def server_name(name: bytes, *, name_type: int = 0) -> bytes:
    """A server_name extension with one entry."""
    return extension(0, vector(bytes((name_type,)) + vector(name)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(b"".join(vector(name, 1) for name in names)))


def key_share(*, empty: bool = False) -> bytes:
    """An X25519 share (any 32 bytes are a point of it), or none, which makes a server ask for one."""
    share = b"" if empty else struct.pack(">H", X25519) + vector(bytes(range(1, 33)))
    return extension(51, vector(share))


def client_hello(
    sni: bytes | str | None = "a.example.com",
    *,
    protocols: tuple[bytes, ...] = (),
    extra: bytes = b"",
    share: bool = True,
    session_id: bytes = b"",
    padding: int = 0,
) -> bytes:
    """A TLS 1.3 ClientHello message that OpenSSL answers, without records round it.

    Args:
        sni: the server name, or none.
        protocols: for ALPN.
        extra: encoded extensions to put in the middle.
        share: whether it has a key share; without one a server sends a HelloRetryRequest.
        session_id: the legacy session id.
        padding: bytes of a padding extension.
    """
    raw = sni.encode() if isinstance(sni, str) else sni
    extensions = b"" if raw is None else server_name(raw)
    if protocols:
        extensions += alpn(*protocols)
    extensions += extension(10, vector(struct.pack(">HH", X25519, SECP256R1)))
    extensions += extension(11, vector(b"\0", 1))
    extensions += extension(13, vector(bytes.fromhex("0403080408050806040105010601")))
    extensions += extra
    extensions += extension(43, vector(b"\x03\x04", 1))
    extensions += key_share(empty=not share)
    if padding:
        extensions += extension(21, bytes(padding))
    return hello_message(extensions, session_id=session_id)


def hello_message(
    extensions: bytes | None,
    *,
    version: bytes = b"\x03\x03",
    session_id: bytes = b"",
    ciphers: bytes = b"\x13\x01\x13\x02\xc0\x2b\xc0\x2f",
    compression: bytes = b"\0",
) -> bytes:
    """A ClientHello message of exactly these parts; ``None`` leaves the extension block out."""
    body = version + bytes(range(32)) + vector(session_id, 1) + vector(ciphers) + vector(compression, 1)
    if extensions is not None:
        body += vector(extensions)
    return b"\x01" + vector(body, 3)


def record(fragment: bytes, *, kind: int = 22, version: int = 0x0301) -> bytes:
    """One TLS record."""
    return bytes((kind,)) + version.to_bytes(2, "big") + vector(fragment)


def records(message: bytes, size: int = 16384, *, version: int = 0x0301) -> bytes:
    """*message* in records of *size* bytes."""
    return b"".join(
        record(message[start : start + size], version=version) for start in range(0, len(message), size)
    )


def records_at(message: bytes, cuts: list[int]) -> bytes:
    """*message* in records that end at the positions *cuts* and at its end."""
    places = sorted({cut for cut in cuts if 0 < cut < len(message)})
    return b"".join(
        record(message[start:end]) for start, end in zip([0, *places], [*places, len(message)], strict=True)
    )


def prefixes(data: bytes) -> Iterator[bytes]:
    """Every proper prefix, shortest first, the empty one included."""
    for end in range(len(data)):
        yield data[:end]
