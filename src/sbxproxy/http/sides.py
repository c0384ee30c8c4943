"""The two ends of an exchange: which messages begin and end where, and bytes in and out.

A plain head was read by a reader that takes nothing else, and its body is counted. Every other head is read twice, strictly
and by a fresh ``h11.Connection`` that is fed the same bytes; where the two disagree about its body, the message is refused.
So no state of one request can leak into the next. What is sent is framed here, but for answers to a client whose request
was not plain: those are framed by the h11 that knows what it may be sent.
"""

from __future__ import annotations

__all__ = ["BODILESS", "ClientSide", "UpstreamSide", "status_line"]

from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus

import h11
import trio
from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError, UpstreamProtocolError
from sbxproxy.http.body import INCOMPLETE, Body, LengthBody
from sbxproxy.http.fields import lines
from sbxproxy.http.incoming import ClientGone, FromClient, FromUpstream, below
from sbxproxy.policy.decision import Reason
from sbxproxy.settings import Limits
from sbxproxy.wire.http1 import RequestHead, ResponseHead, parse_request_head, parse_response_head

Fields = list[tuple[bytes, bytes]]

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
BODILESS = frozenset({204, 304})
"""Responses that end with their head, whatever it says (RFC 9110 sections 15.3.5 and 15.4.5)."""

_CHUNKED = (b"Transfer-Encoding", b"chunked")
_CLOSE = (b"Connection", b"close")


def _bytes_of(connection: h11.Connection, event: h11.Event) -> bytes:
    data = connection.send(event)
    assert data is not None  # only ConnectionClosed gives none
    return data


def _sender(stream: Stream) -> Callable[[bytes], Awaitable[None]]:
    """Return the way to send that gives no turn to others if it can: every exchange waits for its client and its upstream."""
    bottom = below(stream)
    send: Callable[[bytes], Awaitable[None]] = getattr(bottom, "send_at_once", bottom.send_all)
    return send


def status_line(status: int) -> bytes:
    """Write the first line of a response, with the standard's own phrase for the status, if it has one."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase) for status, phrase in _PHRASES.items()}


class _Framing:
    """Frames one body that is sent: by its length, or in chunks if ``left`` is ``None``.

    Attributes:
        done: its end was framed.
    """

    __slots__ = ("_left", "done")

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.done = False

    def data(self, data: bytes) -> bytes:
        """Frame a piece; raises ``RuntimeError`` for one that does not belong to the body."""
        if not data:
            return b""
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(data), data)
        self._left -= len(data)
        if self._left < 0 or self.done:
            raise RuntimeError("more was to be sent than was told")
        return data

    def end(self) -> bytes:
        """Frame the end; raises ``RuntimeError`` if there is more to come."""
        if self._left:
            raise RuntimeError("less was to be sent than was told")
        self.done = True
        return b"0\r\n\r\n" if self._left is None else b""


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
        self._send = _sender(stream)
        self.incoming = FromClient(stream, limits, initial)
        self.answered = False
        self.broken_off = False
        self._limits = limits
        self._connection: h11.Connection | None = None
        self._body: LengthBody | None = None
        self._framing: _Framing | None = None
        self._close = False

    def expect_message(self) -> None:
        """Forget the message before."""
        self.answered = False
        self._connection = None
        self._body = None
        self._framing = None
        self._close = False

    def parse(self, raw: bytes) -> RequestHead:
        """Read a head strictly; raises ``ClientProtocolError``."""
        return parse_request_head(raw, max_fields=self._limits.header_fields, max_target=self._limits.target)

    def begin(self, raw: bytes, head: RequestHead) -> Body | LengthBody:
        """Return the body that follows *head*, which is what *raw* means unless it was read as a plain one.

        Raises:
            ClientProtocolError: h11 finds fault with *raw*, or reads other framing out of it than *head*.
        """
        if head.names is not None:
            self._body = LengthBody(self.incoming, head.content_length or 0)
            return self._body
        self._connection = h11.Connection(h11.SERVER, INCOMPLETE)
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
        return self._connection is not None and self._connection.they_are_waiting_for_100_continue

    @property
    def reusable(self) -> bool:
        """Request and response are complete and both sides want to go on."""
        if self._connection is not None:
            return self._connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
        sent = self._framing is not None and self._framing.done
        return sent and not self._close and self._body is not None and self._body.complete

    def interim(self, status: int, fields: Fields) -> bytes:
        """Make a 1xx head."""
        phrase = _PHRASES.get(status, b"")
        if self._connection is None:
            return b"%b%b\r\n" % (status_line(status), lines(fields))
        return _bytes_of(self._connection, h11.InformationalResponse(status_code=status, headers=fields, reason=phrase))

    def head(self, status: int, fields: Fields, *, length: int | None, close: bool, bodiless: bool = False) -> bytes:
        """Make the head of a final response.

        Args:
            status: 200 to 599.
            fields: checked, and none of them about framing.
            length: of the body, to be told; ``None`` to send it in chunks.
            close: the connection ends with the response.
            bodiless: there will be no body, whatever the head says of one.
        """
        phrase = _PHRASES.get(status, b"")
        if length is not None:
            fields = [*fields, (b"Content-Length", b"%d" % length)]
        if close:
            fields = [*fields, _CLOSE]
        if self._connection is not None:
            return _bytes_of(self._connection, h11.Response(status_code=status, headers=fields, reason=phrase))
        self._close = close
        self._framing = _Framing(0 if bodiless or status in BODILESS else length)
        if length is None and status not in BODILESS:
            fields = [*fields, _CHUNKED]
        return b"%b%b\r\n" % (status_line(status), lines(fields))

    def data(self, data: bytes) -> bytes:
        """Frame a piece of the response's body."""
        if self._framing is not None:
            return self._framing.data(data)
        assert self._connection is not None
        return _bytes_of(self._connection, h11.Data(data=data)) if data else b""

    def end(self) -> bytes:
        """Frame the end of the response."""
        if self._framing is not None:
            return self._framing.end()
        assert self._connection is not None
        return _bytes_of(self._connection, h11.EndOfMessage())

    async def send(self, data: bytes) -> None:
        """Send framed bytes.

        Raises:
            ClientGone: the stream broke.
        """
        self.broken_off = True  # until it has returned: a cancelled send may have sent any part
        try:
            await self._send(data)
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
        self._send = _sender(stream)
        self.incoming = FromUpstream(stream)
        self.reused = reused
        self.deaf = False
        self._limits = limits
        self._request: tuple[str, str, Fields] = "", "", []
        self._empty = True
        self._framing = _Framing(0)
        self._connection: h11.Connection | None = None
        self._response: ResponseHead | None = None
        self._body: Body | LengthBody | None = None

    def head(self, method: str, target: str, fields: Fields, *, length: int | None) -> bytes:
        """Make the request's head.

        Args:
            method: as sent.
            target: checked.
            fields: checked; they hold Host and the framing.
            length: of the body; ``None`` if *fields* say that it comes in chunks.
        """
        self._request = method, target, fields
        self._empty = length == 0
        self._framing = _Framing(length)
        return b"%b%b\r\n" % (f"{method} {target} HTTP/1.1\r\n".encode("ascii"), lines(fields))

    def data(self, data: bytes) -> bytes:
        """Frame a piece of the request's body."""
        return self._framing.data(data)

    def end(self) -> bytes:
        """Frame the end of the request."""
        return self._framing.end()

    async def send(self, data: bytes) -> None:
        """Send framed bytes; a stream that breaks becomes ``deaf``, since an early answer may still be had."""
        self.deaf = True  # until it has returned: what a cancelled send left out would be taken from the next request
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._send(data)
            self.deaf = False
            if self.incoming.patience is not None:
                self.incoming.patience.push()

    async def response_head(self) -> ResponseHead:
        """Receive the next head: an interim one, or the final one.

        Raises:
            UpstreamError: the connection ended or broke.
            UpstreamProtocolError: the head is malformed, ambiguous or too large.
        """
        raw = await self.incoming.head(self._limits)
        if raw is None:
            raise self.incoming.broken()
        if isinstance(raw, ResponseHead):
            self._connection = None
            self._response = raw
            return raw
        head = parse_response_head(raw, max_fields=self._limits.header_fields)
        connection = self._told()
        connection.receive_data(raw)
        try:
            connection.next_event()
        except h11.RemoteProtocolError:  # also 101 that nobody asked for
            raise UpstreamProtocolError("malformed or unexpected response") from None
        return head

    def _told(self) -> h11.Connection:
        """Return an h11 that knows the request's head, on which it depends what may come."""
        if self._connection is None:
            method, target, fields = self._request
            self._connection = h11.Connection(h11.CLIENT, INCOMPLETE)
            self._connection.send(h11.Request(method=method, target=target, headers=fields))
            if self._empty:
                self._connection.send(h11.EndOfMessage())
        return self._connection

    def body(self) -> Body | LengthBody:
        """Return the body behind the final head."""
        if self._connection is not None:
            self._body = Body(self._connection, self.incoming)
        else:
            head = self._response
            assert head is not None
            bodiless = self._request[0] == "HEAD" or head.status in BODILESS
            self._body = LengthBody(self.incoming, 0 if bodiless else head.content_length or 0)
        return self._body

    @property
    def reusable(self) -> bool:
        """Both messages are complete, both sides want to go on, and nothing came that nobody asked for."""
        if self._body is None or not self._body.complete or not self._framing.done or self.deaf or self.incoming.data:
            return False
        return self._connection is None or self._connection.their_state is h11.DONE
