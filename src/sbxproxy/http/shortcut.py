"""The short way for what most requests are: plain, whole, on a connection that is open already, answered in one piece.

It does what ``forwarding`` does and no more than that takes. Whenever something is not as it usually is (the connection turns
out dead, the answer comes in parts, its framing is another, a transform changes it) it hands over what it has got, and
``forwarding`` goes on from there.
"""

from __future__ import annotations

__all__ = ["Resumed", "Shortcut"]

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import trio
from trio.abc import Stream

from sbxproxy.http.fields import end_to_end, lines, outgoing
from sbxproxy.http.handler import Origin, RequestHandler, ask
from sbxproxy.http.incoming import RECEIVE, below
from sbxproxy.http.job import Tally
from sbxproxy.http.message import Headers, Request, Response
from sbxproxy.http.patience import Patience
from sbxproxy.http.pool import Pool
from sbxproxy.http.sides import BODILESS, ClientSide, status_line
from sbxproxy.net.sockets import abort
from sbxproxy.settings import Limits
from sbxproxy.wire.plain_head import REMEMBERED, Memory, plain_response


@dataclass(slots=True, kw_only=True)
class Resumed:
    """A request that went out, and what came back so far.

    Attributes:
        stream: the upstream connection, which the receiver of this owns.
        generation: the pool's, when the connection was taken out.
        deaf: sending did not complete.
        received: bytes of the response, not used yet.
        response: what the handler made of its head, if it was asked.
    """

    stream: Stream
    generation: int
    deaf: bool
    received: bytes
    response: object


class Shortcut:
    """The short way of one client connection; it remembers what the last messages were made into."""

    __slots__ = (
        "_client",
        "_handler",
        "_limits",
        "_memory",
        "_patience",
        "_pool",
        "_received_fields",
        "_received_headers",
        "_received_lines",
        "_sent_headers",
        "_sent_lines",
        "_sent_to",
        "_stream",
        "_tally",
    )

    def __init__(
        self, client: ClientSide, handler: RequestHandler, pool: Pool, limits: Limits, tally: Tally, patience: Patience
    ) -> None:
        """Prepare; no I/O. *tally* counts each request of the connection, *patience* is whose time it takes."""
        self._client = client
        self._handler = handler
        self._pool = pool
        self._limits = limits
        self._tally = tally
        self._patience = patience
        self._memory = Memory(limits.header_fields)
        self._stream: Stream | None = None
        self._sent_headers: Headers | None = None
        self._sent_to: Origin | None = None
        self._sent_lines = b""
        self._received_fields: object = None
        self._received_headers = Headers()
        self._received_lines = b""

    async def run(
        self,
        method: str,
        target: str,
        headers: Headers,
        content: bytes,
        *,
        origin: Origin,
        declared: bool,
        asked: Request | None,
    ) -> Literal[True] | Resumed | None:
        """Carry a request, whose head was plain and whose body is at hand and small, to its upstream and the response back.

        Args:
            method: as the client sent it.
            target: checked.
            headers: what the handler wants sent.
            content: the body.
            origin: where to.
            declared: the client told the length of the body, even if it is none.
            asked: the request that the handler is asked about with the response; ``None`` if it has no say in that.

        Returns:
            True if that is done, and both connections are ready for the next request; ``None`` if nothing was begun, for want
            of an open connection; else how far it came.

        Raises:
            Denied, StageError: the response is not to be passed on, and nothing of it was.
            ClientGone: the client broke off.
        """
        request = self._request(method, target, headers, origin, len(content) if content or declared else None)
        pool, tally, patience = self._pool, self._tally, self._patience
        generation = pool.generation
        stream = pool.take(origin, patience.last)
        if stream is None:
            return None
        self._stream = stream
        bottom = below(stream)
        deaf, received = False, b""
        try:
            await getattr(bottom, "send_at_once", bottom.send_all)(request + content if content else request)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            deaf = True
        else:
            tally.bytes_up = len(content)
            # Should it break, whoever goes on from here will be told again.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                received = bytes(await bottom.receive_some(RECEIVE))
            read = plain_response(received, limit=self._limits.head, memory=self._memory)
            if read is not None:
                status, _, fields, names, length, end = read
                bodiless = method == "HEAD" or status in BODILESS
                if len(received) - end == (0 if bodiless else length):
                    headers, written = self._headers(fields, names)
                    response: Response | None = None
                    answer: object = None
                    if asked is not None:
                        response = Response(status=status, headers=headers)
                        answer = await ask(self._handler.on_response, asked, response)
                    if answer is response:
                        body = received[end:]
                        client = self._client
                        client.answered = True
                        tally.status = status
                        await client.send(_answer(status, written, None if status == 204 else length, body))
                        tally.bytes_down = len(body)
                        self._stream = None
                        pool.give(origin, stream, generation=generation, now=patience.last)
                        if pool.has_dead:
                            await pool.bury()
                        return True
                    patience.push()
                    self._stream = None
                    return Resumed(stream=stream, generation=generation, deaf=False, received=received, response=answer)
        patience.push()
        self._stream = None
        return Resumed(stream=stream, generation=generation, deaf=deaf, received=received, response=None)

    @property
    def under_way(self) -> bool:
        """An upstream connection is in use."""
        return self._stream is not None

    async def close(self) -> None:
        """Reset the upstream connection if a request is under way on it."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await abort(stream)

    def _request(self, method: str, target: str, headers: Headers, origin: Origin, length: int | None) -> bytes:
        """Write the request's head."""
        if headers is self._sent_headers and origin is self._sent_to:
            written = self._sent_lines
        else:
            written = b"Host: %b\r\n%b" % (origin.authority.encode(), lines(outgoing(headers)))
            if len(written) <= REMEMBERED:
                self._sent_headers, self._sent_to, self._sent_lines = headers, origin, written
        first = f"{method} {target} HTTP/1.1\r\n".encode("ascii")
        if length is not None:
            return b"%b%bContent-Length: %d\r\n\r\n" % (first, written, length)
        return b"%b%b\r\n" % (first, written)

    def _headers(self, fields: tuple[tuple[bytes, bytes], ...], names: Sequence[bytes]) -> tuple[Headers, bytes]:
        """Return what of a response is for the client, and how it is written."""
        if fields is self._received_fields:
            return self._received_headers, self._received_lines
        headers = end_to_end(fields, names, client=True)
        written = lines(headers.fields)
        if self._memory.holds(fields):
            self._received_fields, self._received_headers, self._received_lines = fields, headers, written
        return headers, written


def _answer(status: int, written: bytes, length: int | None, body: bytes) -> bytes:
    """Write a whole response."""
    first = status_line(status)
    if length is None:
        return b"%b%b\r\n%b" % (first, written, body)
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (first, written, length, body)
