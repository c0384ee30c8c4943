"""One request of a client, from its raw head to the end of its response.

The order is the point. The head is read strictly; hop-by-hop fields go; the authority is checked; the handler
decides on what is left; and only then is anything opened or sent. Whatever fails on the way becomes one value,
and one place answers it: a reply of our own as long as no final response has begun, and a reset of the client's
connection after that, so that a cut response can't pass for a whole one.

Nothing watches the client while an upstream thinks: a client that has only shut its sending side down still
waits for the answer, and one that is gone is noticed with the next bytes for it, or by ``Limits.request_idle``.
"""

from __future__ import annotations

__all__ = ["Exchange", "Relay"]

import logging
from dataclasses import replace
from typing import Any, Protocol

import trio

from sbxproxy.errors import ClientProtocolError, StageError, UpstreamError
from sbxproxy.http.asked import asks_for_websocket, expects_continue, loggable_path
from sbxproxy.http.body import Body, LengthBody
from sbxproxy.http.fields import Fields, end_to_end, outgoing
from sbxproxy.http.forwarding import Forwarding
from sbxproxy.http.handler import AtOnce, Denied, Ended, Forward, Origin, Record, RequestHandler, ask, ask_now
from sbxproxy.http.incoming import RECEIVE, ClientGone
from sbxproxy.http.job import Job, Tally, check_request
from sbxproxy.http.message import Headers, Request, Response
from sbxproxy.http.patience import Patience
from sbxproxy.http.pool import Pool
from sbxproxy.http.reply import reply_to
from sbxproxy.http.shortcut import Resumed, Shortcut
from sbxproxy.http.sides import ClientSide
from sbxproxy.http.target import check_target, is_elsewhere
from sbxproxy.net.goodbye import linger
from sbxproxy.net.peek import peekable
from sbxproxy.net.relay import Counts
from sbxproxy.net.sockets import abort
from sbxproxy.policy.decision import Reason
from sbxproxy.settings import Limits
from sbxproxy.wire.http1 import RequestHead

_log = logging.getLogger("sbxproxy.http")

_DISCARD = RECEIVE
"""Most of an unwanted request body that is read to keep the connection; a new connection costs about as much."""

_LINGER_READS = 16
"""Most receives from a client that is still sending when it has been told that the connection ends."""

_USUAL = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
"""Methods that need no second thought."""

Failure = Denied | ClientProtocolError | UpstreamError | StageError


class Relay(Protocol):
    """Carries raw bytes both ways after an upgrade, and says why it ended; ``sbxproxy.net.relay`` is one."""

    async def __call__(
        self,
        client: trio.abc.Stream,
        upstream: trio.abc.Stream,
        *,
        idle: float | None,
        linger: float,
        count: Counts,
    ) -> str:
        """Return when both directions have ended."""
        ...


class Exchange:
    """The requests of one client connection, one ``run`` each, one after another; ``close`` it at the end.

    Attributes:
        under_way: a request is being served.
        served: at least one was.
    """

    def __init__(
        self,
        client: ClientSide,
        handler: RequestHandler,
        patience: Patience,
        *,
        origin: Origin,
        proxying: bool,
        pool: Pool | None,
        limits: Limits,
        relay: Relay,
    ) -> None:
        """Prepare; no I/O."""
        self.under_way = False
        self.served = False
        self._client = client
        self._handler = handler
        self._patience = patience
        self._origin = origin
        self._proxying = proxying
        self._host = b"" if proxying else origin.authority.encode()
        self._limits = limits
        self._relay = relay
        self._pool = pool
        self._tally = Tally()
        self._shortcut = None if pool is None else Shortcut(client, handler, pool, limits, self._tally, patience)
        self._at_once: AtOnce | None = None if pool is None else getattr(handler, "at_once", None)
        self._started = 0.0
        self._head: RequestHead | None = None
        self._body: Body | LengthBody | None = None
        self._forwarding: Forwarding | None = None
        self._reason = "cut"
        # What a request with the same fields as the one before has as well.
        self._fields: Fields = ()
        self._headers = Headers()

    async def run(self, raw: RequestHead | bytes | ClientProtocolError) -> Ended | None:
        """Serve the request with the head *raw*, or answer that there is none; ``None`` if the next may follow.

        A plain head was read already, any other is as it was sent. If this is cancelled, ``time_out`` or ``close`` comes next.
        """
        client, patience = self._client, self._patience
        self.under_way = True
        self._head = self._body = None
        self._tally.reset()
        self._reason = "cut"
        client.expect_message()
        self._started = patience.begin(self._limits.request_idle)
        client.incoming.patience = patience
        try:
            if isinstance(raw, ClientProtocolError):
                raise raw
            ended = await self._decide(raw)
        except ClientGone:
            self._reason = "client-gone"
            ended = Ended(self._reason)
        except (Denied, ClientProtocolError, UpstreamError, StageError) as error:
            # After an error of the client's it is not known where its next request would begin.
            ended = await self._answer(error, close=isinstance(error, ClientProtocolError))
        else:
            if ended is not None and ended.reason == "elsewhere":
                self.under_way = False
                return ended
            self._reason = "ok"
        if self._forwarding is not None:
            if self._forwarding.switched:
                patience.rest()
                self._reason = "cut"  # until it ends by itself
                ended = await self._tunnel(self._forwarding)
                self._reason = "ok"
            await self.close()
        elif self._shortcut is not None and self._shortcut.under_way:
            await self.close()
        else:
            self._record(patience.last)
        return ended

    async def close(self) -> None:
        """End what is under way, if anything is; it does not wait and can't be cancelled."""
        if not self.under_way:
            return
        try:
            if self._shortcut is not None:
                await self._shortcut.close()
            if self._forwarding is not None:
                await self._forwarding.close()
                self._forwarding = None
        finally:
            self._record(self._patience.now())

    async def _answer(self, failure: Failure, *, close: bool) -> Ended | None:
        """Tell the client what went wrong, in whatever way is left."""
        self._reason = Reason.STAGE_FAILED if isinstance(failure, StageError) else failure.reason
        if self._client.answered or self._client.broken_off:
            await abort(self._client.stream)
            return Ended(self._reason)
        try:
            ended = await self._reply(reply_to(failure), close=close)
        except (ClientGone, ClientProtocolError):
            ended = Ended("client-gone")
        return ended and Ended(self._reason)

    async def time_out(self) -> Ended:
        """Answer that nothing has moved for too long, in place of the rest of a ``run`` that was cancelled for that."""
        failure = UpstreamError("nothing moved for too long", reason="request-timeout", status=504)
        with trio.move_on_after(self._limits.linger) as scope:
            await self._answer(failure, close=True)
        if scope.cancelled_caught:
            await abort(self._client.stream)
        return Ended(failure.reason)

    async def _decide(self, raw: RequestHead | bytes) -> Ended | None:
        client = self._client
        if isinstance(raw, RequestHead):
            head, raw = raw, b""
        else:
            head = client.parse(raw)
            if self._proxying and is_elsewhere(head, self._origin):
                return Ended("elsewhere", raw + bytes(client.incoming.data))
        self._head = head
        self._body = body = client.begin(raw, head)
        plain = head.names is not None
        usual = plain and head.host == self._host and head.method in _USUAL
        if usual:
            target = head.target.decode("ascii")
        else:
            target = check_target(head, self._origin, proxying=self._proxying)
        awaits_continue = not plain and expects_continue(head) and client.awaits_continue
        if head.fields is self._fields:
            headers = self._headers
        else:
            headers = end_to_end(head.fields, head.names)
            if client.incoming.memory.holds(head.fields):
                self._fields, self._headers = head.fields, headers
        shortcut = self._shortcut
        if (
            usual
            and self._at_once is not None
            and shortcut is not None
            and isinstance(body, LengthBody)
            and _is_short(head, body)
        ):
            told = ask_now(self._at_once, head.method, target, headers)
            if told is not None:
                if type(told) is not Headers:
                    raise StageError("the handler's answer is none")
                brief = body.ready()
                went = await shortcut.run(
                    head.method,
                    target,
                    told,
                    brief,
                    origin=self._origin,
                    declared=head.content_length is not None,
                    asked=None,
                )
                if went is True:
                    return None
                request = Request(method=head.method, target=target, headers=told, host=self._origin.authority)
                job = Job(
                    head, body, Forward(request=request, origin=self._origin), brief, awaits_continue=False, websocket=False
                )
                return await self._forward(job, went)
        request = Request(method=head.method, target=target, headers=headers, host=self._origin.authority)
        if limit := ask_now(self._handler.body_limit, request):
            request = replace(request, body=await self._whole_body(head, body, limit))
        answer: object = await ask(self._handler.on_request, request)
        if not isinstance(answer, Forward):
            match answer:
                case Denied():
                    raise answer
                case Response(status=int(), headers=Headers(), body=bytes()) if 200 <= answer.status <= 599:
                    return await self._reply(answer)
                case _:
                    raise StageError("the handler's answer is none")
        if not _is_proper(answer):
            raise StageError("the handler's answer is none")
        content = request.body if answer.request.body is None else answer.request.body
        if content is None and body.complete:
            content = b""
        job = Job(head, body, answer, content, awaits_continue and content is None, not plain and asks_for_websocket(head))
        resumed = None
        if shortcut is not None and plain and self._is_at_hand(job):
            check_request(job)
            sent = answer.request
            went = await shortcut.run(
                sent.method,
                sent.target,
                sent.headers,
                job.content or b"",
                origin=answer.origin,
                declared=head.content_length is not None,
                asked=sent,
            )
            if went is True:
                return None
            resumed = went
        return await self._forward(job, resumed)

    def _is_at_hand(self, job: Job) -> bool:
        """Tell whether the whole content is there, and small enough to be sent before anything is received."""
        if job.content is None and isinstance(job.body, LengthBody) and job.body.is_at_hand:
            job.content = job.body.ready()
        return job.content is not None and len(job.content) <= RECEIVE and job.body.complete

    async def _whole_body(self, head: RequestHead, body: Body | LengthBody, limit: int) -> bytes:
        """Collect the request's body. Progress does not push the deadline here: this holds memory."""
        too_large = ClientProtocolError(Reason.LIMIT, "the body is larger than a transform may see", status=413)
        if (head.content_length or 0) > limit:
            raise too_large
        client = self._client
        if client.awaits_continue:
            await client.send(client.interim(100, []))
        patience, client.incoming.patience = client.incoming.patience, None
        content = bytearray()
        while not body.complete:
            content += await body.read()
            if len(content) > limit:
                raise too_large
        client.incoming.patience = patience
        return bytes(content)

    async def _forward(self, job: Job, resumed: Resumed | None) -> Ended | None:
        self._forwarding = forwarding = Forwarding(
            self._client,
            job,
            self._handler,
            pool=self._pool,
            limits=self._limits,
            tally=self._tally,
        )
        await forwarding.run(resumed)
        if forwarding.switched:
            return None
        await forwarding.settle()
        return await self._after_response(job.body)

    async def _reply(self, response: Response, *, close: bool = False) -> Ended | None:
        """Send a response that is ours; the connection goes on if little of the request is unread."""
        client, content = self._client, response.body or b""
        fields = outgoing(response.headers)
        bodiless = response.status in {204, 304} or (self._head is not None and self._head.method == "HEAD")
        length = None if response.status == 204 else len(content)
        body = self._body
        keep = not close and body is not None and self._cheap_to_discard(body)
        framed = client.head(response.status, fields, length=length, close=not keep, bodiless=bodiless)
        content = b"" if bodiless else content
        client.answered = True
        await client.send(framed + client.data(content) + client.end())
        self._tally.status = response.status
        self._tally.bytes_down += len(content)
        while keep and body is not None and not body.complete:
            await body.read()
        return await self._after_response(body)

    def _cheap_to_discard(self, body: Body | LengthBody) -> bool:
        try:
            body.ready()
        except ClientProtocolError:
            return False
        assert self._head is not None
        left = (self._head.content_length or 0) - body.size
        return body.complete or (left > 0 and left <= _DISCARD and not self._client.awaits_continue)

    async def _after_response(self, body: Body | LengthBody | None) -> Ended | None:
        if self._client.reusable:
            return None
        if body is None or not body.complete:
            with trio.move_on_after(self._limits.linger):
                await linger(self._client.stream, reads=_LINGER_READS)
        return Ended("closed")

    async def _tunnel(self, forwarding: Forwarding) -> Ended:
        """Relay raw bytes; what the client sent behind its head was held back until now."""
        upstream = forwarding.upstream
        assert upstream is not None
        client = peekable(self._client.stream)
        client.peeked = bytes(self._client.incoming.data) + client.peeked
        self._client.incoming.data.clear()
        why = await self._relay(client, upstream.stream, idle=self._limits.idle, linger=self._limits.linger, count=self._tally)
        if why == "upstream-reset":
            await abort(self._client.stream)
        elif why != "client-reset":
            await forwarding.finish()
        return Ended("upgraded")

    def _record(self, now: float) -> None:
        self.under_way = False
        self.served = True
        head, tally = self._head, self._tally
        self._head = self._body = None  # not held while the connection waits
        method, path = (head.method, loggable_path(head)) if head is not None else ("", "")
        seconds = now - self._started
        record = Record(method, path, tally.status, tally.bytes_up, tally.bytes_down, self._reason, seconds)
        try:
            self._handler.done(record)
        except Exception as error:  # noqa: BLE001 - an observer can't change what it observes
            _log.error("a request handler's done() failed with %s", type(error).__name__)


def _is_short(head: RequestHead, body: LengthBody) -> bool:
    """Tell whether the whole body is there, and small enough to be sent before anything is received."""
    return body.complete or (body.is_at_hand and (head.content_length or 0) <= RECEIVE)


def _is_proper(forward: Any) -> bool:
    """Tell whether a handler's answer is made of what it should be; a plugin may be untyped."""
    request = forward.request
    return (
        isinstance(request, Request)
        and isinstance(forward.origin, Origin)
        and _is(request.target, str)
        and _is(request.headers, Headers)
        and (request.body is None or _is(request.body, bytes))
    )


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind)
