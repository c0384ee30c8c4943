"""One connection's passage on the short way: each step is done in the call that brings its news. See ``express`` for the whole.

Where it stops is told by what is there: without ``_place`` the request is waited for; with it there is a flow; with ``_upstream`` a
connection is begun; with ``_tunnel`` it stands. What is surprising is that any step may be the last: the flow may be cut by whoever is
told of something on the way.
"""

from __future__ import annotations

__all__ = ["Passage"]

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import trio

from sbxproxy.connection.first_bytes import with_wire
from sbxproxy.connection.places import Place, Road
from sbxproxy.connection.record import Recorder
from sbxproxy.connection.story import resume_flow
from sbxproxy.connection.upstream import CLEAN_ENDS
from sbxproxy.errors import ClientProtocolError, LimitError, UpstreamError
from sbxproxy.flow import Flow
from sbxproxy.net.bare import BareStream
from sbxproxy.net.dial import STAGGER, Peer, begin, check, failure
from sbxproxy.net.outcome import Ended
from sbxproxy.net.peek import RECEIVE_SIZE
from sbxproxy.net.relay import relay
from sbxproxy.net.sockets import is_tcp, reset_on_close
from sbxproxy.net.tunnel import Tunnel
from sbxproxy.net.waiting import News
from sbxproxy.policy.decision import Facts, Need, Reason, Relay
from sbxproxy.wire.result import Sniffed
from sbxproxy.wire.sniff import BUILTIN, sniff

if TYPE_CHECKING:
    from sbxproxy.connection.express import Express

_T = TypeVar("_T")

MOST_HELD = 4096
"""Most first bytes held while a connection is waited for; a ClientHello seldom has half as many."""

Problem: TypeAlias = UpstreamError | ClientProtocolError | LimitError


class Passage:
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
            self._go(Passage._open, place)
            return
        self._await(Passage._hear_request, self.started + self._context.limits.first_bytes)

    def _await(self, then: Callable[[Passage, News], None], until: float, *, again: bool = False) -> None:
        """Wait for the client's next bytes."""
        self._next = then
        try:
            self._engine.watch(self.client.socket, self._told, until, again=again)
        except (OSError, RuntimeError, trio.ClosedResourceError, trio.BusyResourceError):
            self._detour()

    def _told(self, news: News) -> None:
        self._go(self._next, news)

    def _go(self, then: Callable[[Passage, _T], None], what: _T) -> None:
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
                self._drop_upstream(hard=True)
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
            self._await(Passage._hear_first_bytes, self._deadline, again=again)

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
        facts = with_wire(place.waiting or place.wished, found)
        self._flow.facts = facts  # for the other way, should the policy have become another meanwhile
        self._decide(place, facts, found)

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
        self._next = Passage._hear_upstream
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
        self._drop_upstream(hard=False)
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
        self._go(Passage.end, ended)

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
        client, flow = self.client, self._flow
        flow.ended = flow.ended or why
        hard = flow.ended not in CLEAN_ENDS
        flow.stop_by(None)
        try:
            self._drop_upstream(hard=hard)
            self._context.emit(self._record.summary())
            if hard:
                reset_on_close(client.socket)
            client.close()
        finally:
            del self._context.flows[flow.id]
            flow.finish()

    def _drop_upstream(self, *, hard: bool) -> None:
        """Close the other side, if there is one; *hard* lets it see a reset."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._engine.ignore(upstream)
            if hard:
                reset_on_close(upstream)
            upstream.close()
