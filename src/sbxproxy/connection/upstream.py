"""The other side of a connection: judged addresses, connected to, judged once more, and verified where TLS is ours."""

from __future__ import annotations

__all__ = ["Upstream"]

import socket
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio
from trio.abc import Stream

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.connection.context import Context
from sbxproxy.connection.postgres import prove_postgres, request_tls
from sbxproxy.connection.record import Recorder
from sbxproxy.errors import ClientProtocolError, StageError, UpstreamError
from sbxproxy.flow import Flow
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.http.handler import Denied, Origin
from sbxproxy.net.dial import dial as resume
from sbxproxy.net.goodbye import close
from sbxproxy.net.peek import PeekedStream, peekable
from sbxproxy.net.sockets import abort, socket_below
from sbxproxy.policy.decision import Deny, Dial, Need, Reason, Relay
from sbxproxy.policy.judge import permitted
from sbxproxy.stages.pipeline import run_stage

CLEAN_ENDS = frozenset({"eof", "idle", "linger", "denied", "failed", "closed", "upgraded", "elsewhere", "drained"})
"""Ends after which a side may be closed with a goodbye. Any other must look like the break that it is."""


class _Dialled(AbstractAsyncContextManager[PeekedStream]):
    """A connection for as long as a block runs."""

    __slots__ = ("_ask_for_tls", "_dial", "_flow", "_stream", "_upstream")

    _stream: PeekedStream

    def __init__(self, upstream: Upstream, flow: Flow, dial: Dial, *, ask_for_tls: bool) -> None:
        self._upstream = upstream
        self._flow = flow
        self._dial = dial
        self._ask_for_tls = ask_for_tls

    async def __aenter__(self) -> PeekedStream:
        self._stream = await self._upstream.connect(self._dial, ask_for_tls=self._ask_for_tls)
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._flow.ended in CLEAN_ENDS:
            await close(self._stream, hard=False)
        else:
            await abort(self._stream)


class Upstream:
    """Opens connections for one flow.

    Attributes:
        begun: a connecting that has begun already, and the address it is to; taken up by the first dialling that allows it.
        first: what the first request's connection came to, where it was opened before the request: a stream, or why there is none.
    """

    __slots__ = ("_context", "_flow", "_record", "begun", "first")

    def __init__(self, context: Context, flow: Flow, record: Recorder) -> None:
        self._context = context
        self._flow = flow
        self._record = record
        self.begun: tuple[socket.socket, IPAddress] | None = None
        self.first: Stream | UpstreamError | Denied | None = None

    def dialled(self, dial: Dial, *, ask_for_tls: bool = False) -> AbstractAsyncContextManager[PeekedStream]:
        """Connect, and judge once more what was connected to; closes it afterwards.

        Args:
            dial: where to.
            ask_for_tls: ask it as a PostgreSQL server for TLS first: its client was promised that.

        Raises:
            UpstreamError: it can't be connected to, or is not what it must be.
            ClientProtocolError: the policy has changed meanwhile.
        """
        return _Dialled(self, self._flow, dial, ask_for_tls=ask_for_tls)

    async def connect(self, dial: Dial, *, ask_for_tls: bool) -> PeekedStream:
        """Do as ``dialled`` does, and leave it to the caller to close what is returned."""
        flow, context = self._flow, self._context
        patience = context.limits.handshake
        stream, address = await self._dial(dial)
        upstream = peekable(stream)
        try:
            flow.address = address
            flow.facts = flow.facts.at((address,))
            self._still_allowed()
            if ask_for_tls:
                await request_tls(upstream, patience)
            elif isinstance(flow.decision, Relay) and flow.decision.only_postgres:
                witness, _ = await context.dialer((address,), dial.port)
                await prove_postgres(peekable(witness), patience)
            self._record.opened()
        except BaseException:
            await abort(upstream)
            raise
        return upstream

    async def _dial(self, dial: Dial) -> tuple[Stream, IPAddress]:
        begun, limits = self.begun, self._context.limits
        if begun is None or begun[1] != dial.addresses[0] or dial.port != self._flow.facts.port:
            self.forget_begun()
            return await self._context.dialer(dial.addresses, dial.port)
        self.begun = None
        return await resume(dial.addresses, dial.port, connect=limits.connect, total=limits.connect_total, begun=begun[0])

    def forget_begun(self) -> None:
        """Close a connecting that nobody took up."""
        begun, self.begun = self.begun, None
        if begun is not None:
            begun[0].close()

    def _still_allowed(self) -> None:
        if not self._context.rejudge(self._flow):
            raise ClientProtocolError(Reason.POLICY_CHANGED, "the policy changed while this was being connected")

    async def open_verified(self, dial: Dial, name: Hostname) -> Stream:
        """Connect to the inspected flow's own server, and verify it.

        Raises:
            UpstreamError: it can't be connected to, or verified.
            Denied: the policy has changed meanwhile, or the terminator failed.
        """
        flow, context = self._flow, self._context
        self.forget_begun()
        stream, address = await context.dialer(dial.addresses, dial.port)
        flow.address = address
        flow.facts = flow.facts.at((address,))
        if not context.rejudge(flow):
            await trio.aclose_forcefully(stream)
            raise Denied(Reason.POLICY_CHANGED, "the policy changed while this was being connected")
        upstream = await self._secured(stream, name)
        self._record.opened()
        return upstream

    def reuse(self, dial: Dial, origin: Origin) -> bool:
        """Tell whether an idle connection to the inspected flow's own server, verified when it was opened, will do.

        It stays in the pool, for whichever request comes first.

        Raises:
            Denied: the policy has changed meanwhile.
        """
        flow, context = self._flow, self._context
        stream = context.pool.idle(origin)
        address = None if stream is None else peer_address(stream)
        if address is None or address not in dial.addresses:
            return False
        flow.address = address
        flow.facts = flow.facts.at((address,))
        if not context.rejudge(flow):
            raise Denied(Reason.POLICY_CHANGED, "the policy changed while this was being connected")
        self._record.opened()
        return True

    async def _secured(self, stream: Stream, name: Hostname) -> Stream:
        context = self._context
        try:
            with trio.fail_after(context.limits.handshake):
                return await run_stage(
                    "the terminator", context.limits.stage, context.terminator.connect, self._flow, stream, name
                )
        except trio.TooSlowError:
            await trio.aclose_forcefully(stream)
            raise UpstreamError("the upstream's TLS handshake took too long", reason="upstream-tls", status=504) from None
        except StageError as error:
            self._record.problem(Reason.STAGE_FAILED, str(error))
            await trio.aclose_forcefully(stream)
            raise Denied(Reason.STAGE_FAILED, "a part of the pipeline failed", status=502) from None

    async def open(self, origin: Origin) -> Stream:
        """Open a connection for a request: the flow's own server's, or one that a forwardURL names.

        Raises:
            UpstreamError: it can't be had.
            Denied: the policy doesn't allow it.
        """
        flow = self._flow
        own = origin.host == str(flow.facts.host if flow.front == "http" else flow.facts.server_name)
        if not (own and origin.port == flow.facts.port):
            return await self._open_elsewhere(origin)
        first, self.first = self.first, None
        if isinstance(first, UpstreamError | Denied):
            raise first
        return first or await self._open_own(origin)

    async def _open_own(self, origin: Origin) -> Stream:
        flow, context = self._flow, self._context
        facts = flow.facts.at(None)
        verdict = context.judge(facts)
        if verdict is Need.ADDRESSES:
            name = canonical_hostname(origin.host)
            assert name is not None
            facts = facts.at(await context.resolver.resolve(name))
            verdict = context.judge(facts)
        if isinstance(verdict, Need | Deny) or type(verdict) is not type(flow.decision):
            reason = verdict.reason if isinstance(verdict, Deny) else Reason.POLICY_CHANGED
            raise Denied(reason, "the policy no longer allows this")
        if flow.front == "http":
            stream, flow.address = await context.dialer(verdict.dial.addresses, verdict.dial.port)
            return stream
        return await self.open_verified(verdict.dial, Hostname(origin.host))

    async def _open_elsewhere(self, origin: Origin) -> Stream:
        context = self._context
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

    async def drop_first(self) -> None:
        """Reset what was opened and not used."""
        first, self.first = self.first, None
        if isinstance(first, Stream):
            await abort(first)


def peer_address(stream: Stream) -> IPAddress | None:
    """Return the address at the other end of the socket below *stream*; ``None`` if there is none, or no longer."""
    sock = socket_below(stream)
    if sock is None:
        return None
    try:
        peer = sock.getpeername()
    except OSError:
        return None
    return parse_address(peer[0]) if isinstance(peer, tuple) else None
