"""The story of a connection, told once, from the client's wish to the close.

    ask → sniff → judge → dial → judge again → relay, inspect or hand over → close

It is one task with one cancel scope. The judge says what it must know next; the verdict is recorded with no ``await`` between and
asked for again once the address is connected, so a policy that changes meanwhile is never missed: before that moment the
flow is judged by the new policy anyway, and from it on the update finds the flow in the table and cuts it.
"""

from __future__ import annotations

__all__ = ["Context", "serve_flow"]

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import assert_never

import trio
from trio.abc import Stream

from sbxproxy.address import IPAddress
from sbxproxy.errors import ClientProtocolError, LimitError, StageError, UpstreamError
from sbxproxy.events import Event, FlowClosed, FlowOpened, Problem, RequestDone
from sbxproxy.flow import Flow
from sbxproxy.fronts.ask import Ask
from sbxproxy.fronts.http import refusal_bytes
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.http.handler import Denied, Ended, Origin, Record
from sbxproxy.http.pool import Pool
from sbxproxy.http.serve import serve as serve_http
from sbxproxy.net.listen import Slots
from sbxproxy.net.peek import PeekedStream, peekable
from sbxproxy.net.relay import relay
from sbxproxy.net.resolve import Resolver
from sbxproxy.net.sockets import abort
from sbxproxy.policy.decision import Decision, Deny, Dial, Facts, Handle, Inspect, Need, Reason, Relay, Wire
from sbxproxy.policy.judge import Boundary, judge, permitted
from sbxproxy.policy.model import Policy
from sbxproxy.policy.rules import RuleSet
from sbxproxy.secrets import Secrets
from sbxproxy.settings import Limits
from sbxproxy.stages.inspector import Inspector, Transforms
from sbxproxy.stages.pipeline import run_stage
from sbxproxy.stages.slots import Handler, PolicyStage, Terminator
from sbxproxy.wire.postgres import error_response
from sbxproxy.wire.result import Hint, Sniffed, Sniffer
from sbxproxy.wire.sniff import BUILTIN, bytes_wanted, sniff
from sbxproxy.wire.tls import Alert, alert_record

Dialer = Callable[[Sequence[IPAddress], int], Awaitable[tuple[Stream, IPAddress]]]
"""Connects to one of these judged addresses at this port, and returns stream and address; raises ``UpstreamError``."""

GOODBYE = 1.0
"""Seconds that telling a client its denial, or closing, may take; a peer that doesn't read can't hold a flow longer."""


@dataclass(slots=True, eq=False, kw_only=True)
class Context:
    """What a sandbox's connections share; ``policy`` is replaced as a whole by an update.

    Attributes:
        sandbox: the sandbox's name.
        policy: the policy in force.
        boundary: what holds for every policy.
        limits: bounds.
        resolver: names to addresses.
        dialer: addresses to streams.
        sniffers: third parties', asked after the built-in ones.
        policies: third parties' stages, asked after the policy.
        handlers: by name.
        terminator: TLS.
        secrets: by name.
        transforms: third parties', by name.
        pool: idle upstream connections of this sandbox alone.
        handshakes: a bound on TLS handshakes under way.
        emit: takes events.
        flows: the live flows, by id.
        buffered: bytes of first messages held now.
    """

    sandbox: str
    policy: Policy
    boundary: Boundary
    limits: Limits
    resolver: Resolver
    dialer: Dialer
    sniffers: Sequence[Sniffer]
    policies: Sequence[PolicyStage]
    handlers: Mapping[str, Handler]
    terminator: Terminator
    secrets: Secrets
    transforms: Transforms
    pool: Pool
    handshakes: Slots
    emit: Callable[[Event], None]
    flows: dict[int, Flow] = field(default_factory=dict)
    buffered: int = 0

    def rejudge(self, flow: Flow) -> bool:
        """Tell whether *flow* may go on as it is under the policy in force; a flow not decided yet will be judged by it anyway."""
        if flow.decision is None or isinstance(flow.decision, Deny):
            return True
        verdict = judge(self.policy, flow.facts, self.boundary)
        old = Relay if isinstance(flow.decision, Handle) else type(flow.decision)
        if isinstance(verdict, Need | Deny) or type(verdict) is not old:
            return False
        if flow.address is not None and verdict.dial.addresses and flow.address not in verdict.dial.addresses:
            return False
        if not isinstance(flow.decision, Handle):
            flow.decision = replace(verdict, provisional=False) if isinstance(verdict, Relay) else verdict
        return True


async def serve_flow(context: Context, client: Stream, ask: Ask) -> bytes | None:
    """Carry one flow from its wish to its end, whatever happens on the way; this owns *client*.

    Returns:
        ``None`` normally, and *client* is closed. On a plain-text proxy connection whose next request is for another target: its
        bytes, with *client* left open for the next flow.
    """
    flow = Flow(sandbox=context.sandbox, front=ask.front, facts=Facts(host=ask.host, port=ask.port, wire=ask.wire))
    context.flows[flow.id] = flow
    story = _Story(context, flow, peekable(client), ask)
    try:
        with flow.scope:
            await story.run()
    except BaseException:
        flow.ended = flow.ended or "cancelled"
        raise
    finally:
        flow.ended = flow.ended or "cancelled"
        context.emit(story.summary())
        try:
            if story.leftover is None:
                await _close(story.client, hard=flow.ended not in _CLEAN and not story.orderly)
        finally:
            del context.flows[flow.id]
            context.buffered -= story.held
            flow.finished.set()
    return story.leftover


_CLEAN = frozenset({"eof", "idle", "linger", "denied", "failed", "closed", "upgraded", "elsewhere", "drained"})
"""Ends after which the client may be closed with a goodbye. Any other must look like the break that it is."""


class _Story:
    """One flow's way through ``run``."""

    __slots__ = (
        "_accepted",
        "_ask",
        "_context",
        "_failure",
        "_first",
        "_resolved",
        "client",
        "flow",
        "held",
        "leftover",
        "orderly",
    )

    def __init__(self, context: Context, flow: Flow, client: PeekedStream, ask: Ask) -> None:
        self._context = context
        self._ask = ask
        self._accepted = False
        self._first: Stream | UpstreamError | Denied | None = None
        self._resolved: tuple[IPAddress, ...] | None = None
        self._failure: UpstreamError | None = None
        self.client = client
        self.flow = flow
        self.held = 0
        self.leftover: bytes | None = None
        self.orderly = False

    # -- the story

    async def run(self) -> None:
        """Decide, and carry the decision out."""
        flow = self.flow
        try:
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
            self._problem(Reason.STAGE_FAILED, str(error))
            await self._refuse(Deny(reason=Reason.STAGE_FAILED, detail="a part of the pipeline failed"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            flow.ended = flow.ended or "client-reset"

    async def _decide(self) -> Decision:
        """Gather what the judge needs until it can say."""
        flow, context = self.flow, self._context
        while True:
            verdict = judge(context.policy, flow.facts, context.boundary)
            match verdict:
                case Need.ADDRESSES:
                    name = flow.facts.host if isinstance(flow.facts.host, str) else flow.facts.server_name
                    assert name is not None
                    self._resolved = await context.resolver.resolve(name)
                    flow.facts = replace(flow.facts, addresses=self._resolved)
                case Need.WIRE:
                    await self._accept()
                    sniffed = await self._sniff()
                    if sniffed is None:
                        raise ClientProtocolError(Reason.FIRST_BYTES_TIMEOUT, "the first message did not come in time")
                    flow.facts = _with_wire(flow.facts, sniffed)
                case _:
                    flow.decision = verdict
                    if context.policies and not isinstance(verdict, Deny):
                        return await narrow(context, flow)
                    return verdict

    async def _relay(self, decision: Relay) -> bool:
        """Connect and pass bytes; true if the first bytes call for another decision, and nothing was passed yet."""
        flow, context = self.flow, self._context
        async with self._dialled(decision.dial) as upstream:
            await self._accept()
            if decision.provisional or self._context.sniffers:
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
            self._release()
            flow.ended = await relay(self.client, upstream, idle=context.limits.idle, linger=context.limits.linger, count=flow)
        return False

    async def _first_words(self, upstream: PeekedStream) -> bool:
        """See who speaks first on a relay that rules may yet call for; true if they do."""
        flow, context = self.flow, self._context
        if await self._client_speaks_first(upstream):
            sniffed = await self._sniff() or Sniffed(Wire.UNKNOWN)
        else:
            sniffed = Sniffed(Wire.SILENT)
        addresses = self._resolved if isinstance(flow.facts.host, str) else None
        facts = _with_wire(replace(flow.facts, addresses=addresses), sniffed)
        verdict = judge(context.policy, facts, context.boundary)
        if isinstance(verdict, Relay) and flow.address in verdict.dial.addresses:
            flow.facts = replace(facts, addresses=flow.facts.addresses)
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
                    self._first = await self._open_verified(decision.dial, name)
                except (UpstreamError, Denied) as error:
                    self._first = error  # told to the client as a response, inside TLS
            await self._accept()
            self._release()
            with trio.move_on_after(context.limits.handshake) as scope:
                client = await run_stage("the terminator", context.limits.stage, context.terminator.accept, flow, self.client)
            if scope.cancelled_caught:
                raise ClientProtocolError("client-handshake", "the client did not finish the TLS handshake in time")
        except BaseException:
            await self._drop_first()
            raise
        finally:
            context.handshakes.release()
        self.client = peekable(client)
        inspector = Inspector(
            flow=flow,
            origin=origin,
            rules=lambda: self._rules(name),
            secrets=context.secrets,
            transforms=context.transforms,
            open=self._open,
            report=self._report,
            problem=self._problem,
            limits=context.limits,
        )
        try:
            ended = await serve_http(self.client, inspector, origin=origin, pool=context.pool, limits=context.limits)
            self._served(ended)
        finally:
            await self._drop_first()

    async def _plain_http(self, decision: Relay) -> None:
        """Forward plain-text requests for one target; rules never apply: credentials go out inside TLS only."""
        flow, context = self.flow, self._context
        origin = Origin(str(flow.facts.host), flow.facts.port, "http")
        async with self._dialled(decision.dial) as upstream:
            self._first = upstream
            inspector = Inspector(
                flow=flow,
                origin=origin,
                rules=lambda: None,
                secrets=context.secrets,
                transforms=context.transforms,
                open=self._open,
                report=self._report,
                problem=self._problem,
                limits=context.limits,
            )
            self._release()
            ended = await serve_http(self.client, inspector, origin=origin, limits=context.limits, proxying=True)
        self._served(ended)
        if ended.reason == "elsewhere":
            self.leftover = ended.leftover

    async def _handle(self, decision: Handle) -> None:
        """Give both ends to a third party's handler."""
        async with self._dialled(decision.dial) as upstream:
            await self._accept()
            await self._hand_over(decision, upstream)

    async def _hand_over(self, decision: Handle, upstream: PeekedStream) -> None:
        flow = self.flow
        handler = self._context.handlers[decision.name]  # checked when the stage named it
        self._release()
        await run_stage(f"handler {decision.name!r}", float("inf"), handler.handle, flow, self.client, upstream)
        flow.ended = "eof"

    # -- parts of it

    async def _sniff(self) -> Sniffed | None:
        """Look at the first bytes, at most for ``limits.first_bytes`` in all; ``None`` if that was too short."""
        client, context = self.client, self._context
        sniffers = (*BUILTIN, *context.sniffers)
        with trio.move_on_after(context.limits.first_bytes):
            while True:
                try:
                    # What stands beyond the bound counts as not there, however much of it came with one read.
                    answer = sniff(client.peeked[: context.limits.client_hello], sniffers)
                except Exception as error:  # noqa: BLE001 - its text may quote the bytes
                    raise StageError(f"a sniffer failed with {type(error).__name__}") from None
                if answer is not Hint.NEED_MORE:
                    return answer
                if len(client.peeked) >= context.limits.client_hello:
                    return self._last_word(sniffers)
                wanted = bytes_wanted(client.peeked)
                while len(client.peeked) < wanted:
                    if not await client.fill():
                        return self._last_word(sniffers)
                    self._hold(len(client.peeked))
        return None

    def _last_word(self, sniffers: Sequence[Sniffer]) -> Sniffed:
        answer = sniff(self.client.peeked[: self._context.limits.client_hello], sniffers, eof=True)
        return answer if isinstance(answer, Sniffed) else Sniffed(Wire.UNKNOWN)

    @asynccontextmanager
    async def _dialled(self, dial: Dial) -> AsyncIterator[PeekedStream]:
        """Connect, and judge once more what was connected to; closes it afterwards."""
        flow, context = self.flow, self._context
        stream, address = await context.dialer(dial.addresses, dial.port)
        upstream = peekable(stream)
        try:
            flow.address = address
            flow.facts = replace(flow.facts, addresses=(address,))
            if not context.rejudge(flow):
                raise ClientProtocolError(Reason.POLICY_CHANGED, "the policy changed while this was being connected")
            self._opened()
            yield upstream
        except BaseException:
            await abort(upstream)
            raise
        if flow.ended in _CLEAN:
            await _close(upstream, hard=False)
        else:
            await abort(upstream)

    async def _open_verified(self, dial: Dial, name: Hostname) -> Stream:
        """Connect to the inspected flow's own server, and verify it."""
        flow, context = self.flow, self._context
        stream, address = await context.dialer(dial.addresses, dial.port)
        flow.address = address
        flow.facts = replace(flow.facts, addresses=(address,))
        if not context.rejudge(flow):
            await trio.aclose_forcefully(stream)
            raise Denied(Reason.POLICY_CHANGED, "the policy changed while this was being connected")
        upstream = await self._secured(stream, name)
        self._opened()
        return upstream

    async def _secured(self, stream: Stream, name: Hostname) -> Stream:
        context = self._context
        try:
            with trio.fail_after(context.limits.handshake):
                return await run_stage(
                    "the terminator", context.limits.stage, context.terminator.connect, self.flow, stream, name
                )
        except trio.TooSlowError:
            await trio.aclose_forcefully(stream)
            raise UpstreamError("the upstream's TLS handshake took too long", reason="upstream-tls", status=504) from None
        except StageError as error:
            self._problem(Reason.STAGE_FAILED, str(error))
            await trio.aclose_forcefully(stream)
            raise Denied(Reason.STAGE_FAILED, "a part of the pipeline failed", status=502) from None

    async def _open(self, origin: Origin) -> Stream:
        """Open a connection for a request: the flow's own server's, or one that a forwardURL names."""
        flow, context = self.flow, self._context
        own = origin.host == str(flow.facts.host if flow.front == "http" else flow.facts.server_name)
        if own and origin.port == flow.facts.port:
            first, self._first = self._first, None
            if isinstance(first, UpstreamError | Denied):
                raise first
            if first is not None:
                return first
            facts = replace(flow.facts, addresses=None)
            verdict = judge(context.policy, facts, context.boundary)
            if verdict is Need.ADDRESSES:
                name = canonical_hostname(origin.host)
                assert name is not None
                facts = replace(facts, addresses=await context.resolver.resolve(name))
                verdict = judge(context.policy, facts, context.boundary)
            if isinstance(verdict, Need | Deny) or type(verdict) is not type(flow.decision):
                reason = verdict.reason if isinstance(verdict, Deny) else Reason.POLICY_CHANGED
                raise Denied(reason, "the policy no longer allows this")
            if flow.front == "http":
                stream, flow.address = await context.dialer(verdict.dial.addresses, verdict.dial.port)
                return stream
            return await self._open_verified(verdict.dial, Hostname(origin.host))
        name = Hostname(origin.host)
        addresses = await context.resolver.resolve(name)
        allowed = permitted(context.policy, addresses, origin.port, context.boundary)
        if isinstance(allowed, Deny):
            raise Denied(allowed.reason, "the forwardURL leads to an address that is not open")
        stream, address = await context.dialer(allowed, origin.port)
        if isinstance(permitted(context.policy, (address,), origin.port, context.boundary), Deny):
            await trio.aclose_forcefully(stream)
            raise Denied(Reason.POLICY_CHANGED, "the policy changed while this was being connected")
        return await self._secured(stream, name)

    def _rules(self, name: Hostname) -> RuleSet | None:
        found = self._context.policy.match_domain(name)
        return None if found is None else found.rules

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
            if not self._accepted:
                await self._ask.refuse(deny)
            else:
                await self._say(_denial(self.flow.facts.wire, deny))
            if self.flow.front == "stream" and not self._accepted:
                self.flow.ended = "reset"
                return
            await _linger(self.client)

    async def _fail(self, error: UpstreamError) -> None:
        """Tell the client that what was allowed can't be had."""
        self._failure = error
        self.flow.ended = "failed"
        with trio.move_on_after(GOODBYE), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._accepted:
                await self._ask.refuse(error)
            elif self.flow.facts.wire == Wire.TLS:
                await self._say(alert_record(Alert.INTERNAL_ERROR))
            await _linger(self.client)

    async def _say(self, words: bytes) -> None:
        if words:
            await self.client.send_all(words)
        else:
            self.flow.ended = "reset"

    async def _drop_first(self) -> None:
        first, self._first = self._first, None
        if isinstance(first, Stream):
            await abort(first)

    # -- records

    def _hold(self, size: int) -> None:
        """Count the bytes of a first message against the sandbox's bound."""
        context = self._context
        if context.buffered + size - self.held > context.limits.buffered_bytes_per_sandbox:
            raise LimitError("buffered_bytes_per_sandbox")
        context.buffered += size - self.held
        self.held = size

    def _release(self) -> None:
        self._context.buffered -= self.held
        self.held = 0

    def _problem(self, reason: str, detail: str) -> None:
        self._context.emit(Problem(sandbox=self._context.sandbox, flow=self.flow.id, reason=str(reason), detail=detail))

    def _report(self, record: Record, rule: int | None) -> None:
        self._context.emit(
            RequestDone(
                sandbox=self._context.sandbox,
                flow=self.flow.id,
                method=record.method,
                host=str(self.flow.facts.server_name or self.flow.facts.host),
                path=record.path,
                rule=rule,
                reason=None if record.reason == "ok" else record.reason,
                status=record.status,
                bytes_up=record.bytes_up,
                bytes_down=record.bytes_down,
                duration=record.seconds,
            )
        )

    def _opened(self) -> None:
        flow = self.flow
        decision = flow.decision
        if decision is None or isinstance(decision, Deny):
            return
        self._context.emit(
            FlowOpened(
                sandbox=flow.sandbox,
                flow=flow.id,
                target=_target(flow),
                server_name=flow.facts.server_name,
                decision=type(decision).__name__.lower(),
                reason=str(decision.reason),
                rule=decision.matched,
                address=_address(flow),
            )
        )

    def summary(self) -> FlowClosed:
        """Return the flow's canonical record."""
        flow = self.flow
        decision, failure = flow.decision, self._failure
        detail, remedy = (decision.detail, decision.remedy) if isinstance(decision, Deny) else ("", None)
        if failure is not None:
            detail = str(failure)
        return FlowClosed(
            sandbox=flow.sandbox,
            flow=flow.id,
            front=flow.front,
            target=_target(flow),
            wire=flow.facts.wire,
            server_name=flow.facts.server_name,
            decision="error" if failure is not None or decision is None else type(decision).__name__.lower(),
            reason=failure.reason if failure is not None else str(decision.reason) if decision is not None else flow.ended,
            rule=decision.matched if decision is not None else None,
            detail=detail,
            remedy=remedy,
            address=_address(flow),
            bytes_up=flow.bytes_up,
            bytes_down=flow.bytes_down,
            requests=flow.requests,
            duration=trio.current_time() - flow.started,
            ended=flow.ended,
        )


async def narrow(context: Context, flow: Flow) -> Decision:
    """Ask the third parties' policy stages about a flow that the policy allows; the first that objects decides.

    Raises:
        StageError: one failed, or tried to open more than the policy does.
    """
    for stage in context.policies:
        allowed = flow.decision
        assert allowed is not None
        assert not isinstance(allowed, Deny)
        label = f"policy stage {type(stage).__name__}"
        answer = await run_stage(label, context.limits.stage, stage.decide, flow)
        match answer:
            case Deny():
                flow.decision = answer
                return answer
            case Handle() if answer.dial == allowed.dial and answer.name in context.handlers and isinstance(allowed, Relay):
                flow.decision = answer
            case _ if answer is allowed or answer == allowed:
                pass
            case _:
                raise StageError(f"{label} returned something that the policy does not allow")
    assert flow.decision is not None
    return flow.decision


def _with_wire(facts: Facts, sniffed: Sniffed) -> Facts:
    name = None if sniffed.server_name is None else canonical_hostname(sniffed.server_name)
    problem = sniffed.problem
    if sniffed.server_name is not None and name is None:
        problem = problem or "the server name is not a host name"
    return replace(facts, wire=str(sniffed.wire), server_name=name, alpn=sniffed.alpn, problem=problem)


def _denial(wire: str | None, deny: Deny) -> bytes:
    """Say no as the protocol of the first bytes does; empty where there is no way but a reset."""
    match wire:
        case Wire.TLS:
            return alert_record(Alert.ACCESS_DENIED)
        case Wire.HTTP:
            return refusal_bytes(deny)
        case Wire.POSTGRES:
            return error_response(f"{deny.reason}: {deny.detail}", hint=deny.remedy or "")
        case _:
            return b""


async def _linger(client: PeekedStream) -> None:
    """End our side and read what the client still sends, so that its kernel doesn't throw away what it was told (RFC 9112 9.6)."""
    if isinstance(client, trio.abc.HalfCloseableStream):
        await client.send_eof()
        client.consume(len(client.peeked))
        for _ in range(64):
            if not await client.fill():
                return
            client.consume(len(client.peeked))


async def _close(stream: Stream, *, hard: bool) -> None:
    """Close, within a second; *hard* lets the peer see a reset."""
    if hard:
        await abort(stream)
        return
    with trio.move_on_after(GOODBYE, shield=True), suppress(trio.BrokenResourceError):
        await stream.aclose()


def _target(flow: Flow) -> str:
    host = str(flow.facts.host)
    return f"[{host}]:{flow.facts.port}" if ":" in host else f"{host}:{flow.facts.port}"


def _address(flow: Flow) -> str | None:
    if flow.address is None:
        return None
    host = str(flow.address)
    return f"[{host}]:{flow.facts.port}" if ":" in host else f"{host}:{flow.facts.port}"
