"""Peers for the HTTP exchange that know nothing of it: raw bytes in, raw bytes out, parsed by llhttp."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import httptools
import trio
import trio.testing

from sbxproxy.http import Denied, Ended, Forward, Origin, Pool, Record, Request, Response, serve
from sbxproxy.settings import Limits
from support.tcp import tcp_pair

ORIGIN = Origin("api.example.com", 443)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Seen:
    """A request as llhttp understood it."""

    method: bytes = b""
    url: bytes = b""
    version: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    chunks: int = 0

    def all(self, name: bytes) -> list[bytes]:
        return [value for sent, value in self.headers if sent.lower() == name]


class RequestParser:
    """All requests in a byte stream, by llhttp, which shares no code with what is tested."""

    def __init__(self) -> None:
        self.complete: list[Seen] = []
        self._now = Seen()
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass

    def on_message_begin(self):
        self._now = Seen()

    def on_url(self, url):
        self._now.url += url

    def on_header(self, name, value):
        self._now.headers.append((name, value))

    def on_body(self, body):
        self._now.body += body

    def on_chunk_header(self):
        self._now.chunks += 1

    def on_message_complete(self):
        self._now.method = self._parser.get_method()
        self._now.version = self._parser.get_http_version()
        self.complete.append(self._now)


class ResponseParser:
    """All responses in a byte stream, by llhttp."""

    def __init__(self) -> None:
        self.complete: list[tuple[int, dict[bytes, bytes], bytes]] = []
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)
        self.feed = self._parser.feed_data

    def on_message_begin(self):
        self._headers, self._body = {}, b""

    def on_header(self, name, value):
        self._headers[name.lower()] = value

    def on_body(self, body):
        self._body += body

    def on_message_complete(self):
        self.complete.append((self._parser.get_status_code(), self._headers, self._body))


async def read_until(stream: trio.abc.Stream, end: bytes | Callable[[bytes], bool]) -> bytes:
    """Receive until what came ends with *end*, or satisfies it."""
    got = b""
    while not (end(got) if callable(end) else got.endswith(end)):
        chunk = await stream.receive_some(65536)
        assert chunk, f"ended after {got!r}"
        got += chunk
    return got


async def read_all(stream: trio.abc.Stream) -> bytes:
    got = b""
    while chunk := await stream.receive_some(65536):
        got += chunk
    return got


Script = Callable[[trio.abc.Stream], Awaitable[None]]
OnRequest = Callable[[Request], object]


class Upstream:
    """Answers each complete request with the next of *answers* (the last for ever), and keeps all it got."""

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.answers = list(answers) or [OK]
        self.close = close
        self.connections: list[RequestParser] = []
        self.raw = b""

    @property
    def requests(self) -> list[Seen]:
        return [seen for parser in self.connections for seen in parser.complete]

    async def __call__(self, stream: trio.abc.Stream) -> None:
        parser = RequestParser()
        self.connections.append(parser)
        answered = 0
        while chunk := await stream.receive_some(65536):
            self.raw += chunk
            parser.feed(chunk)
            while answered < len(parser.complete):
                answered += 1
                total = sum(len(each.complete) for each in self.connections)
                await stream.send_all(self.answers[min(total, len(self.answers)) - 1])
                if self.close:
                    return


class World:
    """A client connection served by the exchange, and upstreams that follow a script."""

    def __init__(
        self,
        nursery: trio.Nursery,
        upstream: Script | None = None,
        *,
        limits: Limits | None = None,
        origin: Origin = ORIGIN,
        pool: Pool | bool | None = True,
        proxying: bool = False,
        pair: Callable = trio.testing.memory_stream_pair,
        client_pair: Callable | None = None,
        on_request: OnRequest | None = None,
        on_response: Callable[[Request, Response], object] | None = None,
        body_limit: int = 0,
        connect_error: Exception | None = None,
    ) -> None:
        self.nursery = nursery
        self.upstream = upstream if upstream is not None else Upstream()
        self.limits = limits or Limits()
        self.origin = origin
        self.pool = Pool(self.limits) if pool is True else (pool or None)
        self.proxying = proxying
        self.pair = pair
        self.client_pair = client_pair or pair
        self.respond = on_request
        self.rewrite = on_response
        self.limit = body_limit
        self.connect_error = connect_error
        self.requests: list[Request] = []
        self.responses: list[Response] = []
        self.records: list[Record] = []
        self.connects: list[Origin] = []
        self.ended: Ended | None = None
        self.over = trio.Event()

    # what serve() asks

    def body_limit(self, request: Request) -> int:
        return self.limit

    async def on_request(self, request: Request):
        self.requests.append(request)
        answer = self.respond(request) if self.respond else request
        return Forward(request=answer, origin=self.origin) if isinstance(answer, Request) else answer

    async def on_response(self, request: Request, response: Response):
        self.responses.append(response)
        return self.rewrite(request, response) if self.rewrite else response

    async def connect(self, forward: Forward) -> trio.abc.Stream:
        self.connects.append(forward.origin)
        if self.connect_error is not None:
            raise self.connect_error
        near, far = self.pair()
        self.nursery.start_soon(self._run_upstream, far)
        return near

    def done(self, record: Record) -> None:
        self.records.append(record)

    # what a test does

    def client(self, initial: bytes = b"") -> trio.abc.Stream:
        near, far = self.client_pair()
        self.nursery.start_soon(self._serve, far, initial)
        return near

    async def talk(self, data: bytes, *, cut: int = 0) -> bytes:
        """Send *data* (in pieces of *cut* bytes), end sending, and return all that comes back."""
        client = self.client()

        async def send():
            try:
                for at in range(0, len(data), cut or len(data) or 1):
                    await client.send_all(data[at : at + (cut or len(data))])
                await client.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # an answer came first

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                got = await read_all(client)
                nursery.cancel_scope.cancel()
            await self.over.wait()
        return got

    async def _serve(self, stream: trio.abc.Stream, initial: bytes) -> None:
        try:
            self.ended = await serve(
                stream,
                self,
                limits=self.limits,
                origin=self.origin,
                proxying=self.proxying,
                pool=self.pool,
                initial=initial,
            )
        finally:
            self.over.set()
            with trio.move_on_after(1, shield=True):
                await stream.aclose()

    async def _run_upstream(self, stream: trio.abc.Stream) -> None:
        try:
            await self.upstream(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            with trio.move_on_after(1, shield=True):
                await stream.aclose()


def request(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = b"api.example.com", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: " + host, *fields, b"", body])


def limits(**changes: object) -> Limits:
    return replace(Limits(), **changes)


__all__ = [
    "OK",
    "ORIGIN",
    "Denied",
    "RequestParser",
    "ResponseParser",
    "Seen",
    "Upstream",
    "World",
    "limits",
    "read_all",
    "read_until",
    "request",
    "tcp_pair",
]
