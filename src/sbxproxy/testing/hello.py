"""Builds TLS ClientHellos: what a sandboxed program sends first, without a TLS library and the same bytes every time.

The random and the key share are constants. A real server answers such a hello all the same, since any 32 bytes are a point of
X25519; only what follows can't be decrypted by anybody.
"""

from __future__ import annotations

__all__ = [
    "client_hello",
    "encode_alpn",
    "encode_extension",
    "encode_hello",
    "encode_key_share",
    "encode_record",
    "encode_records",
    "encode_server_name",
    "encode_vector",
    "hello_message",
]

import struct
from collections.abc import Sequence

_X25519 = 0x001D
_SECP256R1 = 0x0017
_SIGNATURES = bytes.fromhex("0403080408050806040105010601")
_CIPHERS = b"\x13\x01\x13\x02\xc0\x2b\xc0\x2f"

_SERVER_NAME = 0
_SUPPORTED_GROUPS = 10
_POINT_FORMATS = 11
_SIGNATURE_ALGORITHMS = 13
_ALPN = 16
_PADDING = 21
_SUPPORTED_VERSIONS = 43
_KEY_SHARE = 51

_MAX_FRAGMENT = 1 << 14  # RFC 8446 section 5.1


def client_hello(
    sni: str | bytes | None = "api.example.com",
    *,
    alpn: Sequence[bytes] = (b"http/1.1",),
    padding: int = 0,
    record_size: int = _MAX_FRAGMENT,
) -> bytes:
    """Return a TLS 1.3 ClientHello as a client puts it on the wire.

    Args:
        sni: the server name, sent exactly as given; ``None`` leaves the extension out.
        alpn: application protocols on offer; none leaves the extension out.
        padding: bytes of an RFC 7685 padding extension; 0 leaves it out.
        record_size: bytes of the message in each TLS record, 1 to 16384; small ones cut the server name in two.

    Returns:
        One or more TLS records.
    """
    if not 1 <= record_size <= _MAX_FRAGMENT:
        raise ValueError("record_size must be 1 to 16384 (RFC 8446 section 5.1)")
    return encode_records(hello_message(sni, protocols=alpn, padding=padding), record_size)


def hello_message(
    sni: str | bytes | None = "a.example.com",
    *,
    protocols: Sequence[bytes] = (),
    extra: bytes = b"",
    share: bool = True,
    session_id: bytes = b"",
    padding: int = 0,
) -> bytes:
    """Return the ClientHello as a handshake message, without records round it.

    Args:
        sni: the server name, or none.
        protocols: for ALPN.
        extra: encoded extensions to put in the middle.
        share: whether it has a key share; without one a server sends a HelloRetryRequest.
        session_id: the legacy session id.
        padding: bytes of a padding extension.
    """
    raw = sni.encode() if isinstance(sni, str) else sni
    extensions = b"" if raw is None else encode_server_name(raw)
    if protocols:
        extensions += encode_alpn(*protocols)
    extensions += encode_extension(_SUPPORTED_GROUPS, encode_vector(struct.pack(">HH", _X25519, _SECP256R1)))
    extensions += encode_extension(_POINT_FORMATS, encode_vector(b"\0", 1))
    extensions += encode_extension(_SIGNATURE_ALGORITHMS, encode_vector(_SIGNATURES))
    extensions += extra
    extensions += encode_extension(_SUPPORTED_VERSIONS, encode_vector(b"\x03\x04", 1))
    extensions += encode_key_share(empty=not share)
    if padding:
        extensions += encode_extension(_PADDING, bytes(padding))
    return encode_hello(extensions, session_id=session_id)


def encode_hello(
    extensions: bytes | None,
    *,
    version: bytes = b"\x03\x03",
    session_id: bytes = b"",
    ciphers: bytes = _CIPHERS,
    compression: bytes = b"\0",
) -> bytes:
    """Return a ClientHello message of exactly these parts (RFC 8446 section 4.1.2); ``None`` leaves the extension block out."""
    random = bytes(range(32))
    body = version + random + encode_vector(session_id, 1) + encode_vector(ciphers) + encode_vector(compression, 1)
    if extensions is not None:
        body += encode_vector(extensions)
    return b"\x01" + encode_vector(body, 3)


def encode_vector(body: bytes, width: int = 2) -> bytes:
    """Put a length of *width* bytes before *body*."""
    return len(body).to_bytes(width, "big") + body


def encode_extension(kind: int, body: bytes) -> bytes:
    """Return one extension of any kind."""
    return kind.to_bytes(2, "big") + encode_vector(body)


def encode_server_name(name: bytes, *, name_type: int = 0) -> bytes:
    """Return a server_name extension with one entry (RFC 6066 section 3)."""
    return encode_extension(_SERVER_NAME, encode_vector(bytes((name_type,)) + encode_vector(name)))


def encode_alpn(*names: bytes) -> bytes:
    """Return an ALPN extension (RFC 7301 section 3.1)."""
    return encode_extension(_ALPN, encode_vector(b"".join(encode_vector(name, 1) for name in names)))


def encode_key_share(*, empty: bool = False) -> bytes:
    """Return an X25519 share, or an empty list of them, which makes a server ask for one."""
    share = b"" if empty else struct.pack(">H", _X25519) + encode_vector(bytes(range(1, 33)))
    return encode_extension(_KEY_SHARE, encode_vector(share))


def encode_record(fragment: bytes, *, kind: int = 22, version: int = 0x0301) -> bytes:
    """Return one TLS record."""
    return bytes((kind,)) + version.to_bytes(2, "big") + encode_vector(fragment)


def encode_records(message: bytes, size: int = _MAX_FRAGMENT, *, version: int = 0x0301) -> bytes:
    """Return *message* in records of *size* bytes."""
    return b"".join(encode_record(message[start : start + size], version=version) for start in range(0, len(message), size))
