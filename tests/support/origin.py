"""HTTPS servers on loopback, each with an authority of its own, that count connections and remember what they were sent."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trustme

HELLO = b"hello from the origin\n"


@dataclass(frozen=True)
class Seen:
    """One request as the origin got it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for field_name, value in self.headers if field_name.lower() == name]

    def one(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} stands {len(values)} times"
        return values[0] if values else None


@dataclass(frozen=True)
class Reply:
    body: bytes = HELLO
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Responder = Callable[[Seen], Awaitable[Reply]]
StreamHandler = Callable[[trio.abc.Stream], Awaitable[None]]


async def say_hello(_seen: Seen) -> Reply:
    await trio.lowlevel.checkpoint()
    return Reply()


@dataclass(eq=False)
class Origin:
    """A server. ``connections`` counts TCP connections, whether or not a handshake or a request followed."""

    names: tuple[str, ...]
    respond: Responder = say_hello
    handler: StreamHandler | None = None
    tls: bool = True
    authority: trustme.CA = field(default_factory=trustme.CA)
    certificate: trustme.LeafCert | None = None
    connections: int = 0
    received: int = 0
    requests: list[Seen] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    port: int = 0
    listener: trio.SocketListener | None = None

    async def serve(self, *, task_status: trio.TaskStatus[Origin] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = [self.listener] if self.listener else await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (self.certificate or self.authority.issue_cert(*self.names)).configure_cert(context)

        async def accept(stream: trio.SocketStream) -> None:
            self.connections += 1
            ends = trio.BrokenResourceError, trio.ClosedResourceError
            with suppress(*ends):
                talk: trio.abc.Stream = stream
                if self.tls:
                    talk = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
                try:
                    if isinstance(talk, trio.SSLStream):
                        try:
                            await talk.do_handshake()
                        except trio.BrokenResourceError as error:
                            self.failures.append(repr(error.__cause__))
                            raise
                    await (self.handler or self.serve_http)(talk)
                finally:
                    with trio.move_on_after(1, shield=True), suppress(*ends):
                        await talk.aclose()

        await trio.serve_listeners(accept, listeners, task_status=_Started(self, task_status))

    async def serve_http(self, stream: trio.abc.Stream) -> None:
        """Answer requests one after the other until the client leaves."""
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                self.received += len(chunk)
                data += chunk
            head, _, data = data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _version = first.split(" ")
            headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
            sizes = [int(value) for name, value in headers if name.lower() == "content-length"]
            chunked = any(name.lower() == "transfer-encoding" for name, _ in headers)

            async def more() -> bytes:
                chunk = await stream.receive_some()
                if not chunk:
                    raise trio.BrokenResourceError
                return bytes(chunk)

            body = b""
            if chunked:
                while True:
                    while b"\r\n" not in data:
                        data += await more()
                    line, _, data = data.partition(b"\r\n")
                    size = int(line.split(b";")[0], 16)
                    while len(data) < size + 2:
                        data += await more()
                    body, data = body + data[:size], data[size + 2 :]
                    if not size:
                        break
            elif sizes:
                while len(data) < sizes[0]:
                    data += await more()
                body, data = data[: sizes[0]], data[sizes[0] :]
            seen = Seen(method, target, headers, body)
            self.requests.append(seen)
            reply = await self.respond(seen)
            fields = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
            answer = f"HTTP/1.1 {reply.status} Whatever\r\n{fields}Content-Length: {len(reply.body)}\r\n\r\n".encode()
            await stream.send_all(answer + (b"" if method == "HEAD" else reply.body))
            if "close" in seen.all("connection"):
                return

    def write_root(self, directory: Path) -> Path:
        path = directory / f"origin-{id(self):x}.pem"
        self.authority.cert_pem.write_to_path(path)
        return path


class _Started:
    """Passes the origin on where ``serve_listeners`` would pass its listeners."""

    def __init__(self, origin: Origin, status: trio.TaskStatus[Origin]) -> None:
        self.origin = origin
        self.status = status

    def started(self, _value: object = None) -> None:
        self.status.started(self.origin)
