"""Carries one decided request to its upstream, and the response back.

A request whose body is at hand and small is sent whole, and the same task goes on to read the response. Otherwise
a second task sends the body, because the response may come first, or along with it, or ``100 Continue`` must. Only
the first task writes to the client. A response that begins before the request is complete ends the client's connection: there is no
telling whether the rest of the request will still be wanted.

A connection that was used before may be closed by the upstream at the very moment a request is written to it.
Such a request is sent once more, on a new connection, if not a byte of a response was heard, the method is
idempotent (RFC 9110 section 9.2.2) and its body, if any, is at hand.
"""

from __future__ import annotations

__all__ = ["Forwarding"]

from contextlib import suppress

import trio

from sbxproxy.errors import ClientProtocolError, StageError, UpstreamError, UpstreamProtocolError
from sbxproxy.http.fields import end_to_end, outgoing, wants_websocket
from sbxproxy.http.handler import Denied, RequestHandler, ask
from sbxproxy.http.incoming import RECEIVE, ClientGone
from sbxproxy.http.job import Job, Tally, check_request
from sbxproxy.http.message import Headers, Response
from sbxproxy.http.pool import Pool
from sbxproxy.http.shortcut import Resumed
from sbxproxy.http.sides import BODILESS, ClientSide, UpstreamSide
from sbxproxy.net.sockets import abort
from sbxproxy.settings import Limits
from sbxproxy.wire.http1 import ResponseHead

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})

_GOODBYE = 1.0
"""Seconds that closing an upstream connection politely may take."""


class Forwarding:
    """One request on its way; ``run`` it, and always ``close`` it."""

    def __init__(
        self,
        client: ClientSide,
        job: Job,
        handler: RequestHandler,
        *,
        pool: Pool | None,
        limits: Limits,
        tally: Tally,
    ) -> None:
        """Prepare; no I/O."""
        self.upstream: UpstreamSide | None = None
        self.switched = False
        self._client = client
        self._job = job
        self._handler = handler
        self._pool = pool
        self._limits = limits
        self._tally = tally
        self._generation = 0
        self._upload_failure: ClientGone | ClientProtocolError | None = None

    async def run(self, resumed: Resumed | None = None) -> None:
        """Return when the client has the whole response, or ``switched`` to a tunnel.

        *resumed* is how far it got on the short way; this takes its stream over at once.

        Raises:
            Denied, UpstreamError, StageError: no response, or an incomplete one, was passed on.
            ClientProtocolError: the request's body is malformed; the upstream did not get a complete one.
            ClientGone: the client broke off.
        """
        job, origin = self._job, self._job.forward.origin
        upstream: UpstreamSide | None = None
        if resumed is not None:
            upstream = self._use(resumed.stream, reused=True)
            self._generation = resumed.generation
        elif self._pool is not None:
            self._generation = self._pool.generation
        fields, length = self._request_fields()
        if job.content is None:
            at_hand = job.body.ready()
            if job.body.complete:
                job.content = at_hand
        else:
            at_hand = job.content
        if upstream is None and self._pool is not None and (stream := self._pool.take(origin)) is not None:
            upstream = self._use(stream, reused=True)
        if upstream is not None:
            try:
                if resumed is None:
                    await self._attempt(upstream, fields, length, at_hand)
                else:
                    await self._go_on(upstream, fields, at_hand, resumed)
            except UpstreamError:
                # A body that is still being streamed is lost in part, whatever the method.
                if upstream.incoming.heard or job.content is None or job.head.method not in _IDEMPOTENT:
                    raise
                await self.close()
            else:
                return
        stream = await ask(self._handler.connect, job.forward)
        await self._attempt(self._use(stream, reused=False), fields, length, at_hand)

    async def close(self) -> None:
        """Reset the upstream connection, unless it was settled; an unfinished message must not look finished."""
        if self.upstream is not None:
            stream, self.upstream = self.upstream.stream, None
            await abort(stream)

    async def settle(self) -> None:
        """After a complete response: keep the upstream connection for the next request, or close it politely."""
        assert self.upstream is not None
        if not self._job.body.complete or self.upstream.deaf:
            await self.close()
        elif self._pool is not None and self.upstream.reusable:
            stream, self.upstream = self.upstream.stream, None
            self._pool.give(self._job.forward.origin, stream, generation=self._generation)
            await self._pool.bury()
        else:
            await self.finish()

    async def finish(self) -> None:
        """Close the upstream connection politely: both sides have said everything."""
        assert self.upstream is not None
        stream, self.upstream = self.upstream.stream, None
        with trio.move_on_after(_GOODBYE), suppress(trio.BrokenResourceError):
            await stream.aclose()

    def _use(self, stream: trio.abc.Stream, *, reused: bool) -> UpstreamSide:
        self.upstream = UpstreamSide(stream, self._limits, reused=reused)
        self.upstream.incoming.patience = self._client.incoming.patience
        return self.upstream

    def _request_fields(self) -> tuple[list[tuple[bytes, bytes]], int | None]:
        """List the fields to send, and tell the body's length, ``None`` if it goes in chunks.

        Framing follows what is sent, never what was received.
        """
        job = self._job
        request = job.forward.request
        check_request(job)
        fields = [(b"Host", job.forward.origin.authority.encode()), *outgoing(request.headers)]
        declared = job.head.chunked or job.head.content_length is not None
        length: int | None = None
        if job.content is None and job.head.chunked:
            fields.append((b"Transfer-Encoding", b"chunked"))
        else:
            length = (job.head.content_length or 0) if job.content is None else len(job.content)
            if length or declared:
                fields.append((b"Content-Length", b"%d" % length))
        if job.awaits_continue and job.content is None:
            fields.append((b"Expect", b"100-continue"))
        if job.websocket:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        elif self._pool is None:
            fields.append((b"Connection", b"close"))
        return fields, length

    async def _attempt(
        self, upstream: UpstreamSide, fields: list[tuple[bytes, bytes]], length: int | None, at_hand: bytes
    ) -> None:
        request = self._job.forward.request
        head = upstream.head(request.method, request.target, fields, length=length)
        if self._job.content is not None and len(at_hand) <= RECEIVE:
            await upstream.send(head + upstream.data(at_hand) + upstream.end())
            self._tally.bytes_up = len(at_hand)
            await self._download(upstream)
            return
        failure: Exception | None = None
        done = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upload, upstream, head, at_hand, nursery.cancel_scope)
            try:
                await self._download(upstream)
                done = True
            except (ClientGone, ClientProtocolError, UpstreamError, StageError, Denied) as error:
                failure = error  # a nursery would wrap it
            nursery.cancel_scope.cancel(reason="the response is over")
        if not done and self._upload_failure is not None:
            raise self._upload_failure
        if failure is not None:
            raise failure

    async def _go_on(self, upstream: UpstreamSide, fields: list[tuple[bytes, bytes]], at_hand: bytes, resumed: Resumed) -> None:
        """Go on from where the short way ended: the request was sent."""
        request = self._job.forward.request
        upstream.head(request.method, request.target, fields, length=len(at_hand))
        upstream.data(at_hand)
        upstream.end()
        upstream.deaf = resumed.deaf
        upstream.incoming.heard = bool(resumed.received)
        upstream.incoming.data += resumed.received
        self._tally.bytes_up = len(at_hand)
        if resumed.response is None:
            await self._download(upstream)
        else:
            await self._pass_on(upstream, await upstream.response_head(), resumed.response)

    async def _upload(self, upstream: UpstreamSide, head: bytes, piece: bytes, scope: trio.CancelScope) -> None:
        """Send the request's body as it comes; ends early if the upstream has stopped to listen."""
        body, framed = self._job.body, head + upstream.data(piece)
        try:
            while True:
                if last := body.complete or self._job.content is not None:
                    framed += upstream.end()
                await upstream.send(framed)
                if upstream.deaf:
                    return
                self._tally.bytes_up += len(piece)
                if last:
                    return
                piece = await body.read()
                framed = upstream.data(piece)
        except (ClientGone, ClientProtocolError) as error:
            self._upload_failure = error
            scope.cancel(reason="the request broke off")

    async def _download(self, upstream: UpstreamSide) -> None:
        for _ in range(self._limits.interim_responses + 1):
            head = await upstream.response_head()
            if head.status >= 200:
                await self._pass_on(upstream, head)
                return
            if head.status == 101:
                await self._switch(upstream, head)
                return
            await self._interim(head)
        raise UpstreamProtocolError("too many interim responses")

    async def _interim(self, head: ResponseHead) -> None:
        # RFC 9110 section 15.2: none for HTTP/1.0. One that answers our own Expect alone is not passed on.
        if self._job.head.version == (1, 0) or (head.status == 100 and not self._job.awaits_continue):
            return
        fields = list(end_to_end(head.fields, client=True).fields)
        await self._client.send(self._client.interim(head.status, fields))

    async def _switch(self, upstream: UpstreamSide, head: ResponseHead) -> None:
        """Pass ``101`` on; from here on both sides are raw bytes."""
        if not self._job.websocket or not wants_websocket(head.fields):
            raise UpstreamProtocolError("the upstream switched to a protocol that nobody asked for")
        fields = list(end_to_end(head.fields, client=True).fields)
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        early = bytes(upstream.incoming.data)
        upstream.incoming.data.clear()
        self._client.answered = True
        await self._client.send(self._client.interim(101, fields) + early)
        self._tally.status = 101
        self._tally.bytes_down += len(early)
        self.switched = True

    async def _pass_on(self, upstream: UpstreamSide, head: ResponseHead, answer: object = None) -> None:
        """Ask the handler about the final head, unless *answer* is what it said, then send it and the body."""
        client, job = self._client, self._job
        body = upstream.body()
        received = Response(status=head.status, headers=end_to_end(head.fields, head.names, client=True))
        response = answer
        if response is None:
            response = await ask(self._handler.on_response, job.forward.request, received)
        match response:
            case Response(status=int(), headers=Headers(), body=None | bytes()) if 200 <= response.status <= 599:
                pass
            case _:
                raise StageError("a transform made a response that is none")
        # What the strict reader took needs no second look.
        fields = list(response.headers.fields) if response is received else outgoing(response.headers, client=True)
        bodiless = job.head.method == "HEAD" or response.status in BODILESS
        content = response.body
        if content is None and head.status in BODILESS and not bodiless:
            content = b""  # a transform gave it another status
        length = None
        if response.status != 204:
            length = head.content_length if content is None else len(content)
        framed = client.head(response.status, fields, length=length, close=not job.body.complete, bodiless=bodiless)
        client.answered = True
        self._tally.status = response.status
        if bodiless or content is not None:
            content = b"" if bodiless else content or b""
            await client.send(framed + client.data(content) + client.end())
            self._tally.bytes_down += len(content)
            return
        piece = body.ready()
        while True:
            framed += client.data(piece)
            if body.complete:
                framed += client.end()
            if framed:
                await client.send(framed)
            self._tally.bytes_down += len(piece)
            if body.complete:
                return
            framed = b""
            piece = await body.read()
