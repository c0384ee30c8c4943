"""The short way of a plain tunnel: from its first bytes to its end without a task of its own.

    accepted ─▶ head of a CONNECT ─▶ ClientHello ─▶ judge ─▶ connect ─▶ tunnel ─▶ end
                      │                    │           │         │
                      └────────────────────┴───────────┴─────────┴──▶ anything else: a task, and the ordinary way

A tunnel that rules don't touch is what most connections are, and half of its time went into beginning to wait, being woken
and passing through coroutines. Here the engine calls when there is news, and what is done then takes no longer than copying a
chunk. It is the story that ``story`` tells, by the same parts: head, sniffers, judge, addresses, checks, events and ends. What
is surprising is how little it may do: whatever is not exactly the common shape is left to the story, at the place where it was
noticed and with all bytes still there, so that nothing unusual is handled in two places.

Structure is kept by one task, ``keep``, for all connections of a group of listeners: while it runs they may live, and however
it ends, they end with it. So none outlives the nursery that it came by, as if each had a task there.
"""

from __future__ import annotations

__all__ = ["Express"]

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias, TypeVar

import trio

from sbxproxy.connection.context import Context
from sbxproxy.connection.first_bytes import with_wire
from sbxproxy.connection.places import Place, Places, Road
from sbxproxy.connection.record import Recorder
from sbxproxy.connection.story import resume_flow
from sbxproxy.connection.upstream import CLEAN_ENDS
from sbxproxy.errors import ClientProtocolError, LimitError, UpstreamError
from sbxproxy.flow import Flow
from sbxproxy.fronts.ask import StreamAsk
from sbxproxy.net.bare import BareStream
from sbxproxy.net.dial import STAGGER, Peer, begin, check, failure
from sbxproxy.net.engine import Engine, News
from sbxproxy.net.outcome import Ended
from sbxproxy.net.peek import RECEIVE_SIZE
from sbxproxy.net.relay import relay
from sbxproxy.net.sockets import is_tcp, reset_on_close
from sbxproxy.net.tunnel import Tunnel
from sbxproxy.policy.decision import Facts, Need, Reason, Relay
from sbxproxy.wire.result import Sniffed
from sbxproxy.wire.sniff import BUILTIN, sniff

_T = TypeVar("_T")

MOST_HELD = 4096
"""Most first bytes held while a connection is waited for; a ClientHello seldom has half as many."""

Problem: TypeAlias = UpstreamError | ClientProtocolError | LimitError


class Express:
    """Carries connections of listeners with an explicit front that asks for no password, or of captured ones.

    Attributes:
        context: what the sandbox's connections share.
        engine: what waits and moves bytes.
        places: where requests have led lately.
    """

    __slots__ = ("_broke", "_done", "_empty", "_finishing", "_ordinary", "_passages", "_start", "context", "engine", "places")

    def __init__(
        self,
        context: Context,
        engine: Engine,
        *,
        start: Callable[[Callable[[], Awaitable[object]]], object],
        ordinary: Callable[[BareStream, float], Awaitable[object]],
        done: Callable[[BareStream], None],
        broke: Callable[[BaseException], None],
    ) -> None:
        """Take nothing yet; ``keep`` has to be running when it does.

        Args:
            context: what the sandbox's connections share; no sniffers or policy stages of third parties, and the dialler is ours.
            engine: it has to be running.
            start: runs a task among those of the connections.
            ordinary: serves a connection of which nothing was answered yet, accepted at a time by Trio's clock.
            done: closes a connection's stream and gives its slot back; called once for each.
            broke: tells of an exception that should not have been.
        """
        self.context = context
        self.engine = engine
        self.places = Places(context)
        self._start = start
        self._ordinary = ordinary
        self._done = done
        self._broke = broke
        self._passages: dict[_Passage, None] = {}
        self._finishing = False
        self._empty = trio.Event()

    async def keep(self) -> None:
        """Let connections live until they have ended after ``finish``; cut them if this is cancelled before."""
        try:
            await self._empty.wait()
        finally:
            self._finishing = True
            for passage in tuple(self._passages):
                passage.end("cancelled")

    def admit(self, client: BareStream, ask: StreamAsk | None = None) -> bool:
        """Take over a connection that has just been accepted, with its slot; false if that can't be.

        Args:
            client: the program's side.
            ask: the wish, where the kernel knows it; else it is read.
        """
        if self._finishing or not self.engine.running:
            return False
        passage = _Passage(self, client)
        self._passages[passage] = None
        passage.begin(None if ask is None else self.places.of(ask))
        return True

    def finish(self) -> None:
        """Take no more; what does not stand yet goes the ordinary way."""
        self._finishing = True
        for passage in tuple(self._passages):
            passage.hurry()
        self._look_whether_empty()

    def _look_whether_empty(self) -> None:
        if self._finishing and not self._passages:
            self._empty.set()

    # -- for its passages

    def leave_to_task(self, passage: _Passage, run: Callable[[], Awaitable[object]]) -> None:
        """Carry *passage* in a task from now on."""

        async def carry() -> None:
            try:
                await run()
            except* Exception as group:  # noqa: BLE001 - nothing of one connection can end another's
                self._broke(group)
            finally:
                self._done(passage.client)

        self._start(carry)
        del self._passages[passage]
        self._look_whether_empty()

    def leave_to_front(self, passage: _Passage) -> None:
        """Carry a connection in a task, from its beginning."""
        self.leave_to_task(passage, partial(self._ordinary, passage.client, passage.started))

    def carries(self, passage: _Passage) -> bool:
        """Tell whether *passage* has neither ended nor been left to a task."""
        return passage in self._passages

    def over(self, passage: _Passage) -> None:
        """See *passage* gone."""
        del self._passages[passage]
        self._done(passage.client)
        self._look_whether_empty()

    def broke(self, error: BaseException) -> None:
        """Tell of a defect."""
        self._broke(error)


class _Passage:
    """One connection's way.

    Attributes:
        client: the program's side.
        started: when it was accepted, by Trio's clock.
    """

    __slots__ = (
        "_accepted",
        "_context",
        "_deadline",
        "_engine",
        "_express",
        "_flow",
        "_next",
        "_place",
        "_record",
        "_road",
        "_tunnel",
        "_upstream",
        "client",
        "started",
    )

    _flow: Flow
    _record: Recorder
    _road: Road

    def __init__(self, express: Express, client: BareStream) -> None:
        self._express = express
        self._context = express.context
        self._engine = express.engine
        self._place: Place | None = None  # from then on there is a flow
        self._accepted = False
        self._deadline: float | None = None
        self._upstream: socket.socket | None = None
        self._tunnel: Tunnel | None = None
        self.client = client
        self.started = express.engine.time()

    # -- from one piece of news to the next

    def begin(self, place: Place | None) -> None:
        """Wait for the request, or go on to *place*."""
        self.client.engine = self._engine
        if place is not None:
            self._go(_Passage._open, place)
            return
        self._await(_Passage._hear_request, self.started + self._context.limits.first_bytes)

    def _await(self, then: Callable[[_Passage, News], None], until: float, *, again: bool = False) -> None:
        """Wait for the client's next bytes."""
        self._next = then
        try:
            self._engine.watch(self.client.socket, self._told, until, again=again)
        except (OSError, RuntimeError, trio.ClosedResourceError, trio.BusyResourceError):
            self._detour()

    def _told(self, news: News) -> None:
        self._go(self._next, news)

    def _go(self, then: Callable[[_Passage, _T], None], what: _T) -> None:
        """Go on, and be sure that whatever goes wrong ends this connection and nothing else."""
        try:
            then(self, what)
        except Exception as error:  # noqa: BLE001 - its text may quote the bytes
            self._express.broke(error)
            self.end("cancelled")

    def hurry(self) -> None:
        """Go the ordinary way, unless the tunnel stands."""
        if self._tunnel is None:
            self._detour()

    def _detour(self, problem: Problem | None = None) -> None:
        """Leave the rest to a task and the ordinary way: the flow from its beginning, or what has become of it."""
        client, place, upstream = self.client, self._place, self._upstream
        self._engine.ignore(client.socket)
        if place is None:
            self._express.leave_to_front(self)
            return
        flow, begun = self._flow, None
        if upstream is not None:
            self._engine.ignore(upstream)
            if problem is None:
                begun = (upstream, self._road.address)
            else:
                reset_on_close(upstream)
                upstream.close()
        if problem is None:
            flow.facts, flow.decision, flow.address = flow.facts.at(None), None, None
        flow.stop_by(None)
        run = partial(
            resume_flow,
            self._context,
            flow,
            client,
            place.ask(client),
            accepted=self._accepted,
            deadline=self._deadline,
            begun=begun,
            problem=problem,
        )
        self._express.leave_to_task(self, run)

    # -- the request

    def _hear_request(self, news: News) -> None:
        if news is News.READY and self._receive():
            place = self._express.places.find(self.client)
            if place is not None:
                self._open(place)
                return
        self._detour()

    def _receive(self) -> bool:
        """Read once what is there; false if that was nothing, or may not have been all."""
        client = self.client
        try:
            chunk = client.socket.recv(RECEIVE_SIZE)
        except OSError:  # the next who reads finds it too, or the end behind it
            return False
        client.peeked = client.peeked + chunk if client.peeked else chunk
        return 0 < len(chunk) < RECEIVE_SIZE

    def _open(self, place: Place) -> None:
        context = self._context
        flow = Flow(sandbox=context.sandbox, front=place.front, facts=place.wished, started=self.started)
        self._flow, self._place = flow, place
        self._record = Recorder(context, flow)
        context.flows[flow.id] = flow
        flow.stop_by(self._cut)
        place.renew(context.era())
        if place.waiting is not None:
            self._await_first_bytes(place)
        elif (road := place.roads.get(None)) is not None:
            self._set_out(road)
        else:
            self._decide(place, place.wished, None)

    # -- the decision

    def _decide(self, place: Place, facts: Facts, key: object) -> None:
        """Go on with what the judge says, if that is a plain relay, or what leads to one; it is kept under *key*."""
        context = self._context
        while True:
            verdict = context.judge(facts)
            if verdict is Need.ADDRESSES:
                name = facts.host if isinstance(facts.host, str) else facts.server_name
                known = None if name is None else context.known(name)
                if known is None:
                    break
                facts = facts.at(known)
            elif verdict is Need.WIRE and facts.wire is None:
                place.waiting = facts
                self._await_first_bytes(place)
                return
            elif type(verdict) is Relay and not verdict.provisional and not verdict.only_postgres:
                self._set_out(place.keep(key, Road(facts, verdict)))
                return
            else:
                break
        self._detour()

    def _await_first_bytes(self, place: Place) -> None:
        if not self._accept(place):
            return
        self._deadline = self._engine.now + self._context.limits.first_bytes
        if self.client.peeked:
            self._look()
        else:
            # What came with descriptors, on a local socket, is not read in one go, and has to be told anew.
            again = bool(place.told) and is_tcp(self.client.socket)
            self._await(_Passage._hear_first_bytes, self._deadline, again=again)

    def _accept(self, place: Place) -> bool:
        """Tell the client to go ahead; false if it is gone."""
        try:
            sent = self.client.socket.send(place.told) if place.told else 0
        except OSError:
            sent = 0
        if sent != len(place.told):  # nothing was sent to it before: what could be full?
            self.end("client-reset")
            return False
        self._accepted = True
        return True

    def _hear_first_bytes(self, news: News) -> None:
        if news is News.READY and self._receive():
            self._look()
        else:
            self._detour()

    def _look(self) -> None:
        place, context = self._place, self._context
        assert place is not None
        found = sniff(self.client.peeked[: context.limits.client_hello], BUILTIN)
        if not isinstance(found, Sniffed):
            self._detour()
            return
        road = place.roads.get(found) if place.era is context.era() else None
        if road is not None:
            self._set_out(road)
            return
        place.renew(context.era())
        self._flow.facts = with_wire(place.wished, found)  # for the other way, should the policy have become another meanwhile
        self._decide(place, with_wire(place.waiting or place.wished, found), found)

    # -- the other side

    def _set_out(self, road: Road) -> None:
        """Connect, to the first address only: if another has to be tried, that is not done here."""
        flow, limits = self._flow, self._context.limits
        self._road = road
        flow.facts, flow.decision = road.facts, road.relay
        try:
            self._upstream, peer = begin(road.address, road.port, road.text)
        except OSError as error:
            self._fail(error)
            return
        if peer is not None:
            self._connect(self._upstream, peer)
            return
        if len(self.client.peeked) > MOST_HELD:
            self._detour()  # where it counts against the sandbox's bound
            return
        patience = STAGGER if road.others else min(limits.connect, limits.connect_total)
        self._next = _Passage._hear_upstream
        try:
            self._engine.watch(self._upstream, self._told, self._engine.now + patience, room=True)
        except (OSError, RuntimeError) as error:
            self._fail(OSError(getattr(error, "errno", None) or errno.ENOMEM, "can't be waited for"))

    def _hear_upstream(self, news: News) -> None:
        assert self._upstream is not None
        match news:
            case News.READY | News.OTHER:
                self._connect(self._upstream, None)
            case News.LATE if self._road.others:
                self._detour()  # which tries the others beside it
            case News.LATE:
                self._fail(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
            case News.CLOSED:
                self._fail(OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def _fail(self, error: OSError) -> None:
        """Leave it to a task to tell the client, or to try other addresses."""
        if not self._road.others:
            self._detour(failure([error]))
            return
        if self._upstream is not None:
            self._engine.ignore(self._upstream)
            self._upstream.close()
            self._upstream = None
        self._detour()

    def _connect(self, upstream: socket.socket, peer: Peer | None) -> None:
        """Let the tunnel stand, unless the policy says otherwise by now."""
        context, flow, road, client = self._context, self._flow, self._road, self.client
        try:
            check(upstream, road.address, road.port, road.text, peer)
        except OSError as error:
            self._fail(error)
            return
        flow.facts, flow.address = road.connected, road.address
        # What was said of this very address in this very step need not be asked again.
        if (peer is None or not road.sole) and not context.rejudge(flow):
            self._detour(ClientProtocolError(Reason.POLICY_CHANGED, "the policy changed while this was being connected"))
            return
        self._record.opened()
        if not self._express.carries(self):
            return  # an observer has cut it
        assert self._place is not None
        if not self._accepted and not self._accept(self._place):
            return
        up = client.consume(len(client.peeked))
        tunnel = self._engine.take(
            client.socket, upstream, idle=context.limits.idle, count=flow, closing=True, up=up, watched=True, probe=True
        )
        if tunnel is None:
            client.peeked = up
            flow.stop_by(None)
            self._upstream = None
            self._express.leave_to_task(self, partial(self._relay, BareStream(upstream)))
        elif tunnel.ended is not None:
            self.end(tunnel.ended)
        else:
            self._tunnel = tunnel
            tunnel.tell = self._over

    async def _relay(self, upstream: BareStream) -> None:
        """Relay without the engine, which couldn't take the pair."""
        flow, limits = self._flow, self._context.limits
        self._upstream = upstream.socket
        try:
            with flow.scope:
                ended = await relay(self.client, upstream, idle=limits.idle, linger=limits.linger, count=flow)
                flow.ended = flow.ended or ended
        finally:
            self._close("cancelled")

    # -- the end

    def _over(self, ended: Ended) -> None:
        """See to the end of the tunnel."""
        try:
            self.end(ended)
        except Exception as error:  # noqa: BLE001 - an observer's, say
            self._express.broke(error)

    def _cut(self) -> None:
        """End now: the flow says why."""
        self.end("cancelled")

    def end(self, why: str) -> None:
        """Close everything and tell of it; *why* unless the flow says so itself. Again, or once a task carries it, is harmless."""
        if not self._express.carries(self):
            return
        self._engine.ignore(self.client.socket)
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.tell = None
            self._engine.cut(tunnel)
        try:
            if self._place is not None:
                self._close(why)
        finally:
            self._express.over(self)

    def _close(self, why: str) -> None:
        client, flow, upstream = self.client, self._flow, self._upstream
        flow.ended = flow.ended or why
        hard = flow.ended not in CLEAN_ENDS
        flow.stop_by(None)
        try:
            if upstream is not None:
                self._engine.ignore(upstream)
                if hard:
                    reset_on_close(upstream)
                upstream.close()
            self._context.emit(self._record.summary())
            if hard:
                reset_on_close(client.socket)
            client.close()
        finally:
            del self._context.flows[flow.id]
            flow.finish()
