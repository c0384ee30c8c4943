"""What clients say to a proxy, said by hand: CONNECT, SOCKS5, a TLS handshake, one HTTP request."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import trio
from trio.abc import Stream


async def read_head(stream: Stream) -> bytes:
    """Read to the empty line and not a byte further; empty if the stream ends."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        chunk = await stream.receive_some(1)
        if not chunk:
            break
        head += chunk
    return head


async def connect(stream: Stream, target: str, *fields: str, more: bytes = b"") -> tuple[int, bytes]:
    """Send a CONNECT request, with *more* in the same segment; return the status and the head."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *fields, "", ""]
    await stream.send_all("\r\n".join(lines).encode("latin-1") + more)
    head = await read_head(stream)
    return int(head.split(b" ", 2)[1]), head


def socks_request(host: str | bytes, port: int, command: int = 1) -> bytes:
    """A SOCKS5 request for a name (any bytes) or an address (RFC 1928 section 4)."""
    try:
        address = ip_address(host) if isinstance(host, str) else None
    except ValueError:
        address = None
    if address is not None:
        where = (b"\x04" if isinstance(address, IPv6Address) else b"\x01") + address.packed
    else:
        name = host if isinstance(host, bytes) else host.encode()
        where = b"\x03" + bytes((len(name),)) + name
    return bytes((5, command, 0)) + where + struct.pack(">H", port)


async def exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            break
        data += chunk
    return data


async def socks5(
    stream: Stream, host: str | bytes, port: int, *, command: int = 1, user: tuple[str, str] | None = None, more: bytes = b""
) -> int:
    """Negotiate and ask; return the reply code."""
    method = 0 if user is None else 2
    await stream.send_all(bytes((5, 1, method)))
    assert await exactly(stream, 2) == bytes((5, method))
    if user is not None:
        name, password = (part.encode() for part in user)
        await stream.send_all(b"\x01" + bytes((len(name),)) + name + bytes((len(password),)) + password)
        assert await exactly(stream, 2) == b"\x01\x00"
    await stream.send_all(socks_request(host, port, command) + more)
    reply = await exactly(stream, 10)
    assert reply[:1] == b"\x05"
    return reply[1]


async def handshake(stream: Stream, name: str, *roots: Path, trust: bytes = b"") -> trio.SSLStream:
    """Complete a TLS handshake as a client that trusts *roots* and *trust* (PEM) alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for root in roots:
        context.load_verify_locations(root)
    if trust:
        context.load_verify_locations(cadata=trust.decode())
    tls = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
    await tls.do_handshake()
    return tls


async def request(
    stream: Stream, host: str, target: str = "/", *, method: str = "GET", fields: Sequence[str] = (), body: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Send one request and read its response by Content-Length; return status, head and body."""
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *length, *fields, "", ""]
    await stream.send_all("\r\n".join(lines).encode("latin-1") + body)
    head = await read_head(stream)
    if not head:
        return 0, b"", b""
    sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(head.split(b" ", 2)[1]), head, await exactly(stream, sizes[0] if sizes else 0)


async def until_end(stream: Stream) -> tuple[bytes, str]:
    """Read to the end; tell whether it was an ``eof`` or a ``reset``."""
    data = bytearray()
    try:
        async for chunk in stream:
            data += chunk
    except trio.BrokenResourceError:
        return bytes(data), "reset"
    return bytes(data), "eof"
