"""The story of a connection, told once, from the client's wish to the close.

    ask → sniff → judge → dial → judge again → relay, inspect or hand over → close

It is one task with one cancel scope. The judge says what it must know next; the verdict is recorded with no ``await`` between and
asked for again once the address is connected, so a policy that changes meanwhile is never missed: before that moment the
flow is judged by the new policy anyway, and from it on the update finds the flow in the table and cuts it.
"""

from __future__ import annotations

__all__ = ["resume_flow", "serve_flow"]

import socket
from contextlib import suppress
from typing import assert_never

import trio

from sbxproxy.address import IPAddress
from sbxproxy.connection.context import Context
from sbxproxy.connection.first_bytes import FirstBytes, with_wire
from sbxproxy.connection.narrow import narrow
from sbxproxy.connection.record import Recorder
from sbxproxy.connection.upstream import CLEAN_ENDS, Upstream
from sbxproxy.connection.words import denial, failure
from sbxproxy.errors import ClientProtocolError, LimitError, StageError, UpstreamError
from sbxproxy.flow import Flow
from sbxproxy.fronts.ask import Ask
from sbxproxy.hostname import Hostname
from sbxproxy.http.handler import Denied, Ended, Origin
from sbxproxy.http.serve import serve as serve_http
from sbxproxy.net.goodbye import GOODBYE, close, linger
from sbxproxy.net.peek import PeekedStream, peekable
from sbxproxy.net.relay import relay, take_tunnel
from sbxproxy.policy.decision import Decision, Deny, Facts, Handle, Inspect, Need, Reason, Relay, Wire
from sbxproxy.policy.rules import RuleSet
from sbxproxy.stages.inspector import Inspector
from sbxproxy.stages.pipeline import run_stage
from sbxproxy.wire.result import Sniffed

MUTE_PATIENCE = 0.5
"""Seconds to wait for a denied client's first bytes, where they alone tell in which protocol it can be told."""


async def serve_flow(context: Context, client: PeekedStream, ask: Ask) -> bytes | None:
    """Carry one flow from its wish to its end, whatever happens on the way; this owns *client*.

    Returns:
        ``None`` normally, and *client* is closed. On a plain-text proxy connection whose next request is for another target: its
        bytes, with *client* left open for the next flow.
    """
    flow = Flow(sandbox=context.sandbox, front=ask.front, facts=Facts(host=ask.host, port=ask.port, wire=ask.wire))
    context.flows[flow.id] = flow
    return await _Story(context, flow, client, ask).carry()


async def resume_flow(
    context: Context,
    flow: Flow,
    client: PeekedStream,
    ask: Ask,
    *,
    accepted: bool,
    deadline: float | None,
    begun: tuple[socket.socket, IPAddress] | None,
    problem: UpstreamError | ClientProtocolError | LimitError | None,
) -> None:
    """Carry a flow that was begun without a task to its end; this owns *client*.

    Args:
        context: its sandbox's.
        flow: the flow, in the table of live flows; undecided; its facts tell of the first bytes if those were looked at.
        client: the program's side, with all that was read from it still to be consumed.
        ask: the wish.
        accepted: whether the client was told to go ahead.
        deadline: by Trio's clock, when its first message must be there, if that was begun to be waited for.
        begun: a connecting that was begun and takes longer than usual, and the address it is to.
        problem: what has come of the flow already.
    """
    story = _Story(context, flow, client, ask, accepted=accepted, problem=problem)
    story.first_bytes.deadline = deadline
    story.upstream.begun = begun
    await story.carry()


class _Story:
    """One flow's way through ``run``.

    Attributes:
        client: the program's side; within TLS once that is terminated.
        leftover: the next request's bytes, for another flow.
        upstream: the other side.
        orderly: the client was told how it ended, so that a reset would be one too many.
    """

    __slots__ = (
        "_accepted",
        "_ask",
        "_context",
        "_problem",
        "_resolved",
        "client",
        "first_bytes",
        "flow",
        "leftover",
        "orderly",
        "record",
        "upstream",
    )

    def __init__(
        self,
        context: Context,
        flow: Flow,
        client: PeekedStream,
        ask: Ask,
        *,
        accepted: bool = False,
        problem: UpstreamError | ClientProtocolError | LimitError | None = None,
    ) -> None:
        self._context = context
        self._ask = ask
        self._accepted = accepted
        self._problem = problem
        self._resolved: tuple[IPAddress, ...] | None = None
        self.client = client
        self.flow = flow
        self.first_bytes = FirstBytes(context, client)
        self.record = Recorder(context, flow)
        self.upstream = Upstream(context, flow, self.record)
        self.leftover: bytes | None = None
        self.orderly = False

    async def carry(self) -> bytes | None:
        """Run, and see to the end, whatever it is; returns what ``serve_flow`` does."""
        flow, context = self.flow, self._context
        try:
            with flow.scope:
                await self.run()
        except BaseException:
            flow.ended = flow.ended or "cancelled"
            raise
        finally:
            flow.ended = flow.ended or "cancelled"
            context.emit(self.record.summary())
            try:
                if self.leftover is None:
                    await close(self.client, hard=flow.ended not in CLEAN_ENDS and not self.orderly)
            finally:
                del context.flows[flow.id]
                self.first_bytes.release()
                self.upstream.forget_begun()
                flow.finish()
        return self.leftover

    # -- the story

    async def run(self) -> None:
        """Decide, and carry the decision out."""
        flow = self.flow
        try:
            if self._problem is not None:
                raise self._problem
            while True:
                decision = await self._decide()
                match decision:
                    case Deny():
                        await self._refuse(decision)
                    case Relay() if flow.front == "http":
                        await self._plain_http(decision)
                    case Relay():
                        if await self._relay(decision):
                            continue  # the first bytes call for rules
                    case Inspect():
                        await self._inspect(decision)
                    case Handle():
                        await self._handle(decision)
                    case unknown:
                        assert_never(unknown)
                return
        except UpstreamError as error:
            await self._fail(error)
        except ClientProtocolError as error:
            await self._refuse(Deny(reason=error.reason, detail=str(error)))
        except LimitError as error:
            await self._refuse(Deny(reason=Reason.LIMIT, detail=str(error)))
        except StageError as error:
            self.record.problem(Reason.STAGE_FAILED, str(error))
            await self._refuse(Deny(reason=Reason.STAGE_FAILED, detail="a part of the pipeline failed"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            flow.ended = flow.ended or "client-reset"

    async def _decide(self) -> Decision:
        """Gather what the judge needs until it can say."""
        flow, context = self.flow, self._context
        while True:
            verdict = context.judge(flow.facts)
            match verdict:
                case Need.ADDRESSES:
                    name = flow.facts.host if isinstance(flow.facts.host, str) else flow.facts.server_name
                    assert name is not None
                    self._resolved = await context.resolver.resolve(name)
                    flow.facts = flow.facts.at(self._resolved)
                case Need.WIRE:
                    await self._accept()
                    self._learn(await self.first_bytes.look())
                case Need.HELLO:
                    self._learn(await self.first_bytes.look_into_postgres())
                case _:
                    flow.decision = verdict
                    if context.policies and not isinstance(verdict, Deny):
                        return await narrow(context, flow)
                    return verdict

    def _learn(self, sniffed: Sniffed | None) -> None:
        if sniffed is None:
            raise ClientProtocolError(Reason.FIRST_BYTES_TIMEOUT, "the first message did not come in time")
        self.flow.facts = with_wire(self.flow.facts, sniffed)

    async def _relay(self, decision: Relay) -> bool:
        """Connect and pass bytes; true if the first bytes call for another decision, and nothing was passed yet."""
        flow, context = self.flow, self._context
        async with self.upstream.dialled(decision.dial, ask_for_tls=self.first_bytes.promised_tls) as upstream:
            await self._accept()
            if decision.provisional or (context.sniffers and flow.facts.wire is None):
                if await self._first_words(upstream):
                    return True
                match flow.decision:
                    case Deny() as denied:
                        await self._refuse(denied)
                        return False
                    case Handle() as handle:
                        await self._hand_over(handle, upstream)
                        return False
                    case _:
                        pass
            self.first_bytes.release()
            engine, idle = context.engine, context.limits.idle
            if engine is not None:
                tunnel = take_tunnel(self.client, upstream, idle=idle, count=flow, engine=engine, closing=True)
                if tunnel is not None:
                    flow.ended = await engine.carry(tunnel)
                    return False
            flow.ended = await relay(self.client, upstream, idle=idle, linger=context.limits.linger, count=flow)
        return False

    async def _first_words(self, upstream: PeekedStream) -> bool:
        """See who speaks first on a relay that rules may yet call for; true if they do."""
        flow, context = self.flow, self._context
        if await self._client_speaks_first(upstream):
            sniffed = await self.first_bytes.look() or Sniffed(Wire.UNKNOWN)
        else:
            sniffed = Sniffed(Wire.SILENT)
        addresses = self._resolved if isinstance(flow.facts.host, str) else None
        facts = with_wire(flow.facts.at(addresses), sniffed)
        verdict = context.judge(facts)
        if isinstance(verdict, Relay) and flow.address in verdict.dial.addresses:
            flow.facts = facts.at(flow.facts.addresses)
            flow.decision = verdict
            if context.policies:
                await narrow(context, flow)
            return False
        flow.facts, flow.address, flow.decision = facts, None, None
        return True

    async def _client_speaks_first(self, upstream: PeekedStream) -> bool:
        if self.client.peeked:
            return True
        spoke: list[bool] = []

        async with trio.open_nursery() as nursery:

            async def listen(stream: PeekedStream, *, client: bool) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.fill()
                spoke.append(client)
                nursery.cancel_scope.cancel(reason="the other side spoke")

            nursery.start_soon(lambda: listen(upstream, client=False))
            with trio.move_on_after(float("inf") if self._context.limits.idle is None else self._context.limits.idle):
                await listen(self.client, client=True)
            nursery.cancel_scope.cancel(reason="nobody spoke")
        return bool(spoke) and spoke[0]

    async def _inspect(self, decision: Inspect) -> None:
        """Verify the upstream, then take the client's handshake, then serve requests by the rules."""
        flow, context = self.flow, self._context
        name = flow.facts.server_name
        assert name is not None
        origin = Origin(name, flow.facts.port)
        await context.handshakes.acquire()
        try:
            if decision.dial.addresses:
                try:
                    if not self.upstream.reuse(decision.dial, origin):
                        self.upstream.first = await self.upstream.open_verified(decision.dial, name)
                except (UpstreamError, Denied) as error:
                    self.upstream.first = error  # told to the client as a response, inside TLS
            await self._accept()
            self.first_bytes.release()
            with trio.move_on_after(context.limits.handshake) as scope:
                client = await run_stage("the terminator", context.limits.stage, context.terminator.accept, flow, self.client)
            if scope.cancelled_caught:
                raise ClientProtocolError("client-handshake", "the client did not finish the TLS handshake in time")
        except BaseException:
            await self.upstream.drop_first()
            raise
        finally:
            context.handshakes.release()
        self.client = peekable(client)
        try:
            inspector = self._inspector(origin, name)
            ended = await serve_http(self.client, inspector, origin=origin, pool=context.pool, limits=context.limits)
            self._served(ended)
        finally:
            await self.upstream.drop_first()

    async def _plain_http(self, decision: Relay) -> None:
        """Forward plain-text requests for one target; rules never apply: credentials go out inside TLS only."""
        flow, context = self.flow, self._context
        origin = Origin(str(flow.facts.host), flow.facts.port, "http")
        async with self.upstream.dialled(decision.dial) as upstream:
            self.upstream.first = upstream
            self.first_bytes.release()
            inspector = self._inspector(origin, None)
            ended = await serve_http(self.client, inspector, origin=origin, limits=context.limits, proxying=True)
        self._served(ended)
        if ended.reason == "elsewhere":
            self.leftover = ended.leftover

    async def _handle(self, decision: Handle) -> None:
        """Give both ends to a third party's handler."""
        async with self.upstream.dialled(decision.dial, ask_for_tls=self.first_bytes.promised_tls) as upstream:
            await self._accept()
            await self._hand_over(decision, upstream)

    async def _hand_over(self, decision: Handle, upstream: PeekedStream) -> None:
        flow = self.flow
        handler = self._context.handlers[decision.name]  # checked when the stage named it
        self.first_bytes.release()
        await run_stage(f"handler {decision.name!r}", float("inf"), handler.handle, flow, self.client, upstream)
        flow.ended = "eof"

    # -- parts of it

    def _inspector(self, origin: Origin, name: Hostname | None) -> Inspector:
        """Make what applies the rules of *name*, or none, to each request."""
        context = self._context

        def rules() -> RuleSet | None:
            found = None if name is None else context.policy.match_domain(name)
            return None if found is None else found.rules

        return Inspector(
            flow=self.flow,
            origin=origin,
            rules=rules,
            secrets=context.secrets,
            transforms=context.transforms,
            open=self.upstream.open,
            report=self.record.request,
            problem=self.record.problem,
            limits=context.limits,
        )

    async def _accept(self) -> None:
        if not self._accepted:
            self._accepted = True
            await self._ask.accept()

    # -- ends

    def _served(self, ended: Ended) -> None:
        """Record how an exchange ended; it has itself reset what had to look broken, so a reply of ours is not followed by one."""
        self.orderly = not self.flow.ended  # else it was cut meanwhile
        self.flow.ended = self.flow.ended or ended.reason

    async def _refuse(self, deny: Deny) -> None:
        """Tell the client in its own protocol, within a second, and record why."""
        self.flow.decision = deny
        self.flow.ended = "denied"
        with trio.move_on_after(GOODBYE), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._accepted and not self._ask.mute:
                await self._ask.refuse(deny)
            else:
                if not self._accepted and self.flow.facts.wire is None:
                    await self._hear_out()
                await self._say(denial(self.flow.facts.wire, deny, promised_tls=self.first_bytes.promised_tls))
            if self.flow.ended == "denied":
                await self._linger()

    async def _hear_out(self) -> None:
        """Look at what a denied client says first, to answer it in its own protocol.

        A PostgreSQL client is promised TLS all the same: libpq shows an alert, and hides the text of an error in place of the promise.
        """
        with suppress(LimitError, StageError, ClientProtocolError), trio.move_on_after(MUTE_PATIENCE):
            self._learn(await self.first_bytes.look())
            if self.flow.facts.wire == Wire.POSTGRES_REQUEST:
                self._learn(await self.first_bytes.look_into_postgres())

    async def _fail(self, error: UpstreamError) -> None:
        """Tell the client that what was allowed can't be had."""
        self.record.failure = error
        self.flow.ended = "failed"
        with trio.move_on_after(GOODBYE), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            words = failure(self.flow.facts.wire)
            if not self._accepted and not self._ask.mute:
                await self._ask.refuse(error)
            elif words:
                await self.client.send_all(words)
            await self._linger()

    async def _linger(self) -> None:
        if isinstance(self.client, trio.abc.HalfCloseableStream):  # else it waits for our close to see an end
            await linger(self.client)

    async def _say(self, words: bytes) -> None:
        if words:
            await self.client.send_all(words)
        else:
            self.flow.ended = "reset"
