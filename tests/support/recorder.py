"""A forwarder in front of a server that remembers how each of its clients began."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import trio

from sbxproxy.wire.postgres import GSSENC_REQUEST, SSL_REQUEST

LOOPBACK = "127.0.0.1"
KEPT = 4096
_TLS_HANDSHAKE = 0x16


@dataclass
class Connection:
    """What one client sent first.

    Attributes:
        head: its first bytes, ``KEPT`` at most.
        size: how many it sent in all.
    """

    head: bytes = b""
    size: int = 0

    @property
    def requests(self) -> list[bytes]:
        """The requests for encryption that it began with."""
        found, rest = [], self.head
        while rest[:8] in {SSL_REQUEST, GSSENC_REQUEST}:
            found.append(rest[:8])
            rest = rest[8:]
        return found

    @property
    def plain_text(self) -> bytes:
        """What it sent that anybody on the way could read, requests for encryption aside: nothing, if all goes well."""
        rest = self.head[8 * len(self.requests) :]
        return b"" if rest[:1] == bytes((_TLS_HANDSHAKE,)) else rest


@dataclass(eq=False)
class Recorder:
    """Forwards to *server*, a port of this machine, until cancelled.

    Attributes:
        server: that port.
        port: its own, once it serves.
        connections: in the order in which they came.
    """

    server: int
    port: int = 0
    connections: list[Connection] = field(default_factory=list)

    async def serve(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._forward, listeners, task_status=task_status)

    @property
    def plain_text(self) -> list[bytes]:
        """What came in plain text, of each connection that had any."""
        return [connection.plain_text for connection in self.connections if connection.plain_text]

    async def _forward(self, client: trio.SocketStream) -> None:
        record = Connection()
        self.connections.append(record)
        async with client, await trio.open_tcp_stream(LOOPBACK, self.server) as server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, client, server, record)
                nursery.start_soon(copy, server, client)


async def copy(source: trio.SocketStream, sink: trio.SocketStream, record: Connection | None = None) -> None:
    """Copy one direction to its end; that the other side is gone is no failure of the test."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for chunk in source:
            if record is not None:
                record.head += chunk[: KEPT - len(record.head)]
                record.size += len(chunk)
            await sink.send_all(chunk)
    with contextlib.suppress(trio.BrokenResourceError):
        await sink.send_eof()
