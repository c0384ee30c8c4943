"""The visitors of a soak: each a short conversation through the proxy that tells what came of it."""

from __future__ import annotations

__all__ = ["VISITS", "Outcome", "Site", "Visit", "client_context", "visit"]

import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import dns.message
import dns.rcode
import trio

from sbxproxy.testing import client_hello

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")
_CHUNK = 65536


class Outcome(Enum):
    """What came of a visit."""

    DONE = "done"
    DENIED = "denied"
    BROKEN = "broken"
    LEFT = "left"
    """The visitor went away by itself: nothing can be told from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where everything is.

    Attributes:
        proxy: the proxy's port.
        dns: its port for DNS.
        origin: the origin's port.
        database: PostgreSQL's port; ``None`` without one.
        relayed: a host whose connections are passed on.
        inspected: a host with a rule that injects a header.
        database_name: the database's host.
        origin_tls: trusts the origin's CA.
        sandbox_tls: trusts the sandbox's CA.
    """

    proxy: int
    dns: int
    origin: int
    database: int | None
    relayed: str
    inspected: str
    database_name: str
    origin_tls: ssl.SSLContext
    sandbox_tls: ssl.SSLContext


Visit = Callable[[Site, random.Random], Awaitable[Outcome]]


class _Denied(Exception):  # noqa: N818 - an outcome
    pass


async def _connect(site: Site, host: str, port: int) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", site.proxy)
    try:
        await stream.send_all(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = await stream.receive_some(_CHUNK)
            if not chunk:
                raise _Denied
            head += chunk
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise _Denied
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _get(stream: trio.abc.Stream, host: str) -> int:
    """Send a request and read the response, whose connection closes; returns the status, 0 for none."""
    await stream.send_all(f"GET /x HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n".encode())
    received = b""
    while True:
        chunk = bytes(await stream.receive_some(_CHUNK))
        received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
        if not chunk or (length is not None and len(body) >= length and b"\r\n\r\n" in received):
            status = received[9:12]
            return int(status) if status.isdigit() else 0


async def _over_tls(site: Site, host: str, context: ssl.SSLContext, requests: int) -> Outcome:
    stream = await _connect(site, host, site.origin)
    tls = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            return Outcome.DENIED  # told by an alert: for a tunnel the first bytes decide
        for _ in range(requests):
            status = await _get(tls, host)
            if status == 403:
                return Outcome.DENIED
            if status != 200:
                return Outcome.BROKEN
        return Outcome.DONE
    finally:
        await trio.aclose_forcefully(tls)


async def relayed(site: Site, _chance: random.Random) -> Outcome:
    """HTTPS that is passed on."""
    return await _over_tls(site, site.relayed, site.origin_tls, 1)


async def inspected(site: Site, _chance: random.Random) -> Outcome:
    """HTTPS that is terminated, with a header injected."""
    return await _over_tls(site, site.inspected, site.sandbox_tls, 1)


async def lingering(site: Site, chance: random.Random) -> Outcome:
    """A download that is read for a while and then left."""
    stream = await _connect(site, site.relayed, site.origin)
    tls = trio.SSLStream(stream, site.origin_tls, server_hostname=site.relayed, https_compatible=True)
    try:
        with trio.move_on_after(chance.uniform(0.5, 5)):
            await tls.send_all(f"GET /slow HTTP/1.1\r\nHost: {site.relayed}\r\n\r\n".encode())
            async for _ in tls:
                pass
        return Outcome.LEFT
    finally:
        await trio.aclose_forcefully(tls)


async def _exactly(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = bytes(await stream.receive_some(size - len(data)))
        if not chunk:
            raise trio.BrokenResourceError("it ended early")
        data += chunk
    return data


async def postgres(site: Site, _chance: random.Random) -> Outcome:
    """A PostgreSQL session of one query."""
    if site.database is None:
        return Outcome.LEFT
    stream = await _connect(site, site.database_name, site.database)
    try:
        await stream.send_all(_SSL_REQUEST)
        if await stream.receive_some(1) != b"S":
            return Outcome.DENIED
        tls = trio.SSLStream(stream, site.origin_tls, server_hostname=site.database_name)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            return Outcome.DENIED
        startup = struct.pack("!I", 196608) + b"user\0soak\0database\0postgres\0\0"
        await tls.send_all(struct.pack("!I", len(startup) + 4) + startup)
        asked = False
        while True:
            kind, size = struct.unpack("!cI", await _exactly(tls, 5))
            await _exactly(tls, size - 4)
            if kind == b"E":
                return Outcome.BROKEN
            if kind == b"Z":
                if asked:
                    return Outcome.DONE
                asked = True
                await tls.send_all(b"Q" + struct.pack("!I", 13) + b"select 1\0")
    finally:
        await trio.aclose_forcefully(stream)


async def _ask(site: Site, name: str) -> Outcome:
    query = dns.message.make_query(name, "TXT")  # addresses are asked of the system
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", site.dns))
        await sock.send(query.to_wire())
        with trio.move_on_after(5):
            answer = dns.message.from_wire(await sock.recv(4096))
            return Outcome.DONE if answer.rcode() == dns.rcode.NOERROR and answer.answer else Outcome.DENIED
    return Outcome.BROKEN


async def dns_allowed(site: Site, chance: random.Random) -> Outcome:
    """A name below an allowed pattern, seldom the same."""
    return await _ask(site, f"n{chance.randrange(2000)}.names.soak.example")


async def dns_denied(site: Site, chance: random.Random) -> Outcome:
    """A name that only allow-all resolves, and that a tunnel would spell."""
    await _ask(site, f"{chance.randbytes(20).hex()}.exfiltrated.example")
    return Outcome.LEFT


async def junk(site: Site, chance: random.Random) -> Outcome:
    """Bytes that are no protocol, or stop being one."""
    hello = client_hello(site.relayed)
    words = chance.choice(
        (
            chance.randbytes(chance.randrange(1, 3000)),
            b"CONNECT " + b"a" * chance.randrange(100_000),
            f"CONNECT {site.relayed}:{site.origin} HTTP/1.1\r\nHost: other\r\n\r\n".encode(),
            f"CONNECT {site.relayed}:{site.origin} HTTP/1.1\r\n\r\n".encode() + hello[: chance.randrange(len(hello))],
            b"\x05\x01\x00\x05\x01\x00\x03" + chance.randbytes(chance.randrange(300)),
            b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"",
        )
    )
    stream = await trio.open_tcp_stream("127.0.0.1", site.proxy)
    async with stream:
        with trio.move_on_after(chance.uniform(0, 4)):
            for piece in (words[start : start + 700] for start in range(0, len(words), 700)):
                await stream.send_all(piece)
            if chance.random() < 0.5:
                await stream.send_eof()
            async for _ in stream:
                pass
    return Outcome.LEFT


async def aborted(site: Site, chance: random.Random) -> Outcome:
    """A conversation whose client vanishes with a reset at some moment."""
    stream = await trio.open_tcp_stream("127.0.0.1", site.proxy)
    visit = chance.choice((site.relayed, site.inspected))
    try:
        with trio.move_on_after(chance.expovariate(50)):
            await stream.send_all(f"CONNECT {visit}:{site.origin} HTTP/1.1\r\n\r\n".encode())
            await stream.receive_some(_CHUNK)
            await stream.send_all(client_hello(visit))
            async for _ in stream:
                pass
    finally:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)
    return Outcome.LEFT


VISITS: dict[str, tuple[Visit, int]] = {
    "relayed": (relayed, 4),
    "inspected": (inspected, 4),
    "lingering": (lingering, 6),
    "postgres": (postgres, 2),
    "dns": (dns_allowed, 2),
    "dns tunnel": (dns_denied, 1),
    "junk": (junk, 6),
    "aborted": (aborted, 4),
}
"""What they do, and how many do it at a time."""


async def visit(what: Visit, site: Site, chance: random.Random) -> Outcome:
    """Make one visit; a connection that breaks is an outcome."""
    try:
        with trio.move_on_after(30):
            return await what(site, chance)
    except _Denied:
        return Outcome.DENIED
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        return Outcome.BROKEN
    return Outcome.BROKEN


def client_context(roots: str) -> ssl.SSLContext:
    """Make a context that trusts *roots* alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(roots)
    return context
