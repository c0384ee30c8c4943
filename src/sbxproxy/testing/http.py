"""The two ends of an HTTP/1.1 conversation for tests: an origin that remembers what reached it, and a client of one request.

Both go by h11 and do nothing clever: what a test looks at is what is between them.
"""

from __future__ import annotations

__all__ = ["HttpOrigin", "fetch"]

from collections.abc import Callable
from dataclasses import dataclass, field

import h11
from trio.abc import Stream

from sbxproxy.http.message import Headers, Request, Response

_SIZE = 64 * 1024


def _ok(_request: Request) -> Response:
    return Response(status=200, headers=Headers.of([("content-type", "text/plain")]), body=b"ok\n")


@dataclass(slots=True)
class HttpOrigin:
    """Serves HTTP/1.1 on streams, by ``answer``; a handler for ``MemoryNetwork.add``.

    Attributes:
        answer: called with each request once its body is complete; by default says ``ok``.
        requests: all requests so far, bodies included; ``headers`` are as they came, ``host`` and framing fields too.
    """

    answer: Callable[[Request], Response] = _ok
    requests: list[Request] = field(default_factory=list, repr=False)

    async def __call__(self, stream: Stream) -> None:
        """Serve one connection until either side ends it, in the middle of a request too; the caller closes it.

        Raises:
            h11.RemoteProtocolError: what came is no HTTP/1.1.
        """
        connection = h11.Connection(h11.SERVER)
        try:
            await self._serve(connection, stream)
        except h11.RemoteProtocolError:
            ended = connection.trailing_data[1]
            if not ended:
                raise

    async def _serve(self, connection: h11.Connection, stream: Stream) -> None:
        while True:
            head = await _next(connection, stream)
            if not isinstance(head, h11.Request):
                return
            body = bytearray()
            while isinstance(part := await _next(connection, stream), h11.Data):
                body += part.data
            request = Request(
                method=head.method.decode(),
                target=head.target.decode("latin-1"),
                headers=Headers(tuple((bytes(name), bytes(value)) for name, value in head.headers)),
                host=dict(head.headers).get(b"host", b"").decode("latin-1"),
                body=bytes(body),
            )
            self.requests.append(request)
            await stream.send_all(_encode_response(connection, self.answer(request)))
            if h11.MUST_CLOSE in connection.states.values():
                return
            connection.start_next_cycle()


async def fetch(stream: Stream, request: Request) -> Response:
    """Send *request* and return the final response with its whole body; the stream stays open and the caller's.

    ``Host`` is ``request.host``, unless ``request.headers`` has one; likewise ``Content-Length``.

    Raises:
        h11.RemoteProtocolError: the answer is no HTTP/1.1, or ended early.
    """
    connection = h11.Connection(h11.CLIENT)
    fields = [*request.headers.fields]
    if "host" not in request.headers:
        fields.insert(0, (b"host", request.host.encode("latin-1")))
    body = request.body or b""
    if body and "transfer-encoding" not in request.headers and "content-length" not in request.headers:
        fields.append((b"content-length", b"%d" % len(body)))
    head = h11.Request(method=request.method, target=request.target, headers=fields)
    await stream.send_all(_encode(connection, head, h11.Data(data=body), h11.EndOfMessage()))
    answer = await _next(connection, stream)
    while isinstance(answer, h11.InformationalResponse):
        answer = await _next(connection, stream)
    if not isinstance(answer, h11.Response):
        raise h11.RemoteProtocolError("the connection ended before the response")
    received = bytearray()
    while isinstance(part := await _next(connection, stream), h11.Data):
        received += part.data
    headers = Headers(tuple((bytes(name), bytes(value)) for name, value in answer.headers))
    return Response(status=answer.status_code, headers=headers, body=bytes(received))


async def _next(connection: h11.Connection, stream: Stream) -> h11.Event:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_SIZE)))
        elif isinstance(event, h11.Event):
            return event
        else:
            raise h11.RemoteProtocolError("the peer switched protocols")


def _encode_response(connection: h11.Connection, response: Response) -> bytes:
    body = response.body or b""
    fields = [*response.headers.fields]
    if "content-length" not in response.headers and "transfer-encoding" not in response.headers:
        fields.append((b"content-length", b"%d" % len(body)))
    head = h11.Response(status_code=response.status, headers=fields)
    return _encode(connection, head, h11.Data(data=body), h11.EndOfMessage())


def _encode(connection: h11.Connection, *events: h11.Event) -> bytes:
    return b"".join(connection.send(event) or b"" for event in events)
