"""The two ends of an exchange: what h11 says of a message, and bytes in and out.

Each message gets a fresh ``h11.Connection``, fed the bytes that the strict reader has accepted. So no state of
one request can leak into the next, and where the two readers of a head disagree about its body, the message is
refused.
"""

from __future__ import annotations

__all__ = ["ClientSide", "UpstreamSide"]

from contextlib import suppress
from http import HTTPStatus

import h11
import trio
from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError, UpstreamProtocolError
from sbxproxy.http.body import INCOMPLETE, Body
from sbxproxy.http.incoming import ClientGone, FromClient, FromUpstream
from sbxproxy.policy.decision import Reason
from sbxproxy.settings import Limits
from sbxproxy.wire.http1 import RequestHead, ResponseHead, parse_request_head, parse_response_head

Fields = list[tuple[bytes, bytes]]

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def _bytes_of(connection: h11.Connection, event: h11.Event) -> bytes:
    data = connection.send(event)
    assert data is not None  # only ConnectionClosed gives none
    return data


class ClientSide:
    """The client's connection: requests in, responses out. It owns nothing; the caller of ``serve`` closes.

    Attributes:
        stream: the connection.
        incoming: what came and is not used yet.
        answered: the head of a final response has begun to leave; nothing but its rest may follow.
        broken_off: a send did not complete; nothing at all may follow.
    """

    def __init__(self, stream: Stream, limits: Limits, initial: bytes = b"") -> None:
        """Begin with *initial*, which was received before."""
        self.stream = stream
        self.incoming = FromClient(stream, initial)
        self.answered = False
        self.broken_off = False
        self._limits = limits
        self._connection = h11.Connection(h11.SERVER, INCOMPLETE)

    def expect_message(self) -> None:
        """Forget the message before."""
        self.answered = False
        self._connection = h11.Connection(h11.SERVER, INCOMPLETE)

    def parse(self, raw: bytes) -> RequestHead:
        """Read a head strictly; raises ``ClientProtocolError``."""
        return parse_request_head(raw, max_fields=self._limits.header_fields, max_target=self._limits.target)

    def begin(self, raw: bytes, head: RequestHead) -> Body:
        """Give h11 the head, and return the body that follows.

        Raises:
            ClientProtocolError: h11 finds fault with it, or reads other framing out of it than *head*.
        """
        self._connection.receive_data(raw)
        try:
            self._connection.next_event()
        except h11.RemoteProtocolError:
            raise ClientProtocolError(Reason.BAD_REQUEST, "malformed request") from None
        body = Body(self._connection, self.incoming)
        if body.complete is (head.chunked or bool(head.content_length)):
            raise ClientProtocolError(Reason.BAD_REQUEST, "ambiguous framing")
        return body

    @property
    def awaits_continue(self) -> bool:
        """The client asked for ``100 Continue`` and has neither got it nor begun its body."""
        return self._connection.they_are_waiting_for_100_continue

    @property
    def reusable(self) -> bool:
        """Request and response are complete and both sides want to go on."""
        return self._connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    def interim(self, status: int, fields: Fields) -> bytes:
        """Make a 1xx head."""
        phrase = _PHRASES.get(status, b"")
        return _bytes_of(
            self._connection,
            h11.InformationalResponse(status_code=status, headers=fields, reason=phrase),
        )

    def head(self, status: int, fields: Fields, *, close: bool) -> bytes:
        """Make the head of a final response; h11 adds chunking where *fields* have no length."""
        if close:
            fields = [*fields, (b"Connection", b"close")]
        phrase = _PHRASES.get(status, b"")
        return _bytes_of(self._connection, h11.Response(status_code=status, headers=fields, reason=phrase))

    def data(self, data: bytes) -> bytes:
        """Frame a piece of the response's body."""
        return _bytes_of(self._connection, h11.Data(data=data)) if data else b""

    def end(self) -> bytes:
        """Frame the end of the response."""
        return _bytes_of(self._connection, h11.EndOfMessage())

    async def send(self, data: bytes) -> None:
        """Send framed bytes.

        Raises:
            ClientGone: the stream broke.
        """
        self.broken_off = True  # until it has returned: a cancelled send may have sent any part
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None
        self.broken_off = False
        if self.incoming.patience is not None:
            self.incoming.patience.push()


class UpstreamSide:
    """One use of an upstream connection: a request out, a response in. The exchange closes or pools its stream.

    Attributes:
        stream: the connection.
        incoming: what came and is not used yet.
        reused: it served another request before, so that it may turn out dead without anybody's fault.
        deaf: a send did not complete, so nothing more can be sent. The upstream may have answered all the same.
    """

    def __init__(self, stream: Stream, limits: Limits, *, reused: bool) -> None:
        """Take over *stream* for one exchange."""
        self.stream = stream
        self.incoming = FromUpstream(stream)
        self.reused = reused
        self.deaf = False
        self._limits = limits
        self._connection = h11.Connection(h11.CLIENT, INCOMPLETE)

    def head(self, method: str, target: str, fields: Fields) -> bytes:
        """Make the request's head; *fields* hold Host and the framing."""
        return _bytes_of(self._connection, h11.Request(method=method, target=target, headers=fields))

    def data(self, data: bytes) -> bytes:
        """Frame a piece of the request's body."""
        return _bytes_of(self._connection, h11.Data(data=data)) if data else b""

    def end(self) -> bytes:
        """Frame the end of the request."""
        return _bytes_of(self._connection, h11.EndOfMessage())

    async def send(self, data: bytes) -> None:
        """Send framed bytes; a stream that breaks becomes ``deaf``, since an early answer may still be had."""
        self.deaf = True  # until it has returned: what a cancelled send left out would be taken from the next request
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_all(data)
            self.deaf = False
            if self.incoming.patience is not None:
                self.incoming.patience.push()

    async def response_head(self) -> ResponseHead:
        """Receive the next head: an interim one, or the final one.

        Raises:
            UpstreamError: the connection ended or broke.
            UpstreamProtocolError: the head is malformed, ambiguous or too large.
        """
        raw = await self.incoming.head(self._limits.head)
        if raw is None:
            raise self.incoming.broken()
        head = parse_response_head(raw, max_fields=self._limits.header_fields)
        self._connection.receive_data(raw)
        try:
            self._connection.next_event()
        except h11.RemoteProtocolError:  # also 101 that nobody asked for
            raise UpstreamProtocolError("malformed or unexpected response") from None
        return head

    def body(self) -> Body:
        """Return the body behind the final head."""
        return Body(self._connection, self.incoming)

    @property
    def reusable(self) -> bool:
        """Both messages are complete, both sides want to go on, and nothing came that nobody asked for."""
        return (
            self._connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE} and not self.incoming.data and not self.deaf
        )
