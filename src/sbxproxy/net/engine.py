"""One task that moves the bytes of all tunnels between sockets, so that a tunnel costs no task, nursery or wake-up of its own.

Theory of operation. The engine has an epoll instance with both sockets of every tunnel in it, edge-triggered, and
Trio watches that instance's one descriptor. A flow's task calls ``relay``, which registers the pair and parks the
task; the engine's task pumps the lanes whose sockets have news (see ``tunnel``) and wakes the flow's task with the
outcome. Cancelling the parked task takes the pair out at once, in the same step: when ``cancel()`` returns nothing
moves any more.

A turn is bounded, in all and per lane, and other tasks run between two turns. Lanes with news go before greedy
ones, which used up what they were allowed and would go on: so a keystroke waits for one turn and not for two
hundred downloads, and at least one greedy lane goes on in each turn.

Time is kept by looking at all tunnels now and then instead of by a timer for each: when the earliest could be
over its idle limit, and every few seconds to find sockets that were closed under the engine. Such a socket leaves
epoll silently, and its number may come back with the next connection; nothing here trusts a number for longer than
one step.
"""

from __future__ import annotations

__all__ = ["CAN_RUN", "Engine"]

import math
import select
from collections import deque

import trio

from sbxproxy.net.direction import CHUNK, SPLICE_PER_TURN, Broken
from sbxproxy.net.outcome import Counts, Ended
from sbxproxy.net.pipes import PipePool, pipe_pool
from sbxproxy.net.sockets import AnySocket, enable_keepalive
from sbxproxy.net.tunnel import Lane, State, Tunnel
from sbxproxy.net.waiting import CAN_RUN, LOOK, NEWS, News, Waiting

TURN = 2 * SPLICE_PER_TURN
"""Bytes moved before other tasks get the processor; about a quarter of a millisecond spliced, twice that copied."""

PUMP_COST = 32 * 1024
"""What a lane that moves little counts for in a turn: a handful of system calls take as long as copying this much."""

EVENTS = 256
"""Events taken from epoll at once. More are left for the next turn."""

if CAN_RUN:
    _ROOM = select.EPOLLOUT
    _BEHIND = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
    _ROOM_OR_WORSE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class Engine(Waiting):
    """Moves bytes for any number of tunnels of one event loop while ``run`` is running, and tells of sockets that are waited for."""

    __slots__ = (
        "_greedy",
        "_lanes",
        "_pipes",
        "_ready",
        "_scratch",
        "_tunnels",
    )

    def __init__(self) -> None:
        """Make one; no I/O."""
        super().__init__()
        self._pipes: PipePool | None = None
        self._scratch = memoryview(bytearray(CHUNK))
        self._tunnels: dict[Tunnel, None] = {}
        self._lanes: dict[int, tuple[Lane, Lane]] = {}  # by descriptor: the lane that reads it, the one that writes it
        self._ready: deque[Lane] = deque()
        self._greedy: deque[Lane] = deque()

    def __repr__(self) -> str:
        return f"<Engine {len(self._tunnels)} tunnels{'' if self.running else ', not running'}>"

    @property
    def tunnels(self) -> int:
        """How many tunnels it has."""
        return len(self._tunnels)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move bytes until cancelled. Whatever ends this, each tunnel still there ends as ``stopped``.

        Without epoll (not Linux) it only waits, and takes no tunnels.

        Raises:
            RuntimeError: it is running already.
        """
        if self._epoll is not None:
            raise RuntimeError("this engine is running already")
        if not CAN_RUN:
            task_status.started()
            await trio.sleep_forever()
        self._pipes = pipe_pool()
        self._clock = trio.lowlevel.current_clock().current_time
        self.time()
        with select.epoll() as epoll:
            self._epoll = epoll
            try:
                task_status.started()
                while True:
                    # One scope for many waits: a scope for each would cost as much as the wait.
                    with trio.CancelScope(deadline=self._due) as self._scope:
                        await self._serve(epoll)
                    self._look()
            finally:
                self._epoll = None
                for tunnel in tuple(self._tunnels):
                    if tunnel.ended is None:  # whoever was told before it may have ended it
                        self._end(tunnel, "stopped")
                self._stop_waiting()
                self._ready.clear()
                self._greedy.clear()
                self._set_due(math.inf)

    def take(
        self,
        client: AnySocket,
        upstream: AnySocket,
        *,
        idle: float | None,
        count: Counts,
        closing: bool = False,
        up: bytes = b"",
        down: bytes = b"",
        watched: bool = False,
        probe: bool = False,
    ) -> Tunnel | None:
        """Begin to copy bytes both ways between two connected stream sockets; ``carry`` has to be awaited at once.

        Neither socket is closed, and nobody else may read or write them meanwhile.

        Args:
            client: the sandboxed program's side.
            upstream: the other side.
            idle: seconds without a byte in either direction after which it ends, at most a second late or a tenth
                of it; ``None`` for no bound.
            count: gets ``bytes_up`` and ``bytes_down`` increased as the receiving side's kernel takes bytes.
            closing: the caller closes both sockets at once, so that the second end need not be passed on before that.
            up: bytes that were read from the client before, and go first.
            down: the same from the upstream.
            watched: the client's socket was waited for before.
            probe: let the kernel probe the upstream, should the tunnel live for longer than most do.

        Returns:
            What to ``carry``; ``None`` if the engine can't take the pair, and nothing has been sent.

        Raises:
            trio.BusyResourceError: one of them is in this engine already.
        """
        if self._epoll is None or self._pipes is None:
            return None
        now = self.time()
        tunnel = Tunnel(
            client,
            upstream,
            closing=closing,
            idle=math.inf if idle is None else idle,
            count=count,
            up=up,
            down=down,
            now=now,
            pipes=self._pipes,
        )
        if not tunnel.is_open():
            tunnel.ended = "closed"
        elif not self._register(tunnel, self._epoll, watched=watched):
            return None
        else:
            due = now + min(tunnel.idle, LOOK)
            if due < self._due:
                self._set_due(due)
            tunnel.probe = probe
            if up:
                self._advance(tunnel.up, None)
            if down and tunnel.ended is None:
                self._advance(tunnel.down, None)
        return tunnel

    async def carry(self, tunnel: Tunnel) -> Ended:
        """Wait until both directions of *tunnel* have ended, and return why.

        Cancelling this is immediate, with an unknown part of what was read sent.
        """
        if tunnel.ended is None:
            task = trio.lowlevel.current_task()
            tunnel.tell = lambda _ended: trio.lowlevel.reschedule(task)

            def abort(_: object) -> trio.lowlevel.Abort:
                tunnel.tell = None
                self._end(tunnel, "closed")
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        else:
            await trio.lowlevel.checkpoint()
        assert tunnel.ended is not None
        return tunnel.ended

    # -- the tunnels

    def _register(self, tunnel: Tunnel, epoll: select.epoll, *, watched: bool) -> bool:
        numbers = tunnel.numbers
        if numbers[0] == numbers[1]:
            raise trio.BusyResourceError("a socket can't be both ends of a tunnel")
        for number in numbers:
            if number in self._lanes:
                other = self._lanes[number][0]
                if other.source.fileno() == number:
                    raise trio.BusyResourceError("this socket is in the engine already")
                self._end(other.tunnel, "closed")  # its socket was closed, and the number has a new one
        try:
            for number in numbers:
                try:
                    # Said anew, since that makes epoll look: what came meanwhile is not missed.
                    epoll.modify(number, NEWS) if watched else epoll.register(number, NEWS)
                except FileExistsError:
                    epoll.modify(number, NEWS)
                except FileNotFoundError:
                    epoll.register(number, NEWS)
                watched = False
        except OSError:  # no memory, or more than /proc/sys/fs/epoll/max_user_watches
            return False
        self._lanes[numbers[0]] = (tunnel.up, tunnel.down)
        self._lanes[numbers[1]] = (tunnel.down, tunnel.up)
        self._tunnels[tunnel] = None
        return True

    # -- ends

    def cut(self, tunnel: Tunnel) -> None:
        """End *tunnel* as ``closed``; again is harmless."""
        if tunnel.ended is None:
            self._end(tunnel, "closed")

    def _end(self, tunnel: Tunnel, ended: Ended) -> None:
        """Take *tunnel* out and tell whoever waits for that."""
        del self._tunnels[tunnel]
        tunnel.ended = ended
        tunnel.leave()
        # The sockets are about to be closed, and leave epoll by themselves then.
        for number in tunnel.numbers:
            del self._lanes[number]
        tell, tunnel.tell = tunnel.tell, None
        if tell is not None:
            tell(ended)

    # -- time

    def _look(self) -> None:
        """End tunnels that were silent for too long or lost a socket, and say when to look again."""
        now = self.time()
        due, shortest = self._look_at_waits(now), math.inf
        for tunnel in tuple(self._tunnels):
            over = tunnel.moved + tunnel.idle
            if tunnel.ended is not None:
                pass  # likewise
            elif not tunnel.is_open():
                self._end(tunnel, "closed")
            elif over <= now:
                self._end(tunnel, "idle")
            else:
                if tunnel.probe:
                    tunnel.probe = False
                    enable_keepalive(tunnel.upstream)
                due = min(due, over, now + LOOK)
                shortest = min(shortest, tunnel.idle)
        # Limits that run out one after the other are not worth a look each.
        self._set_due(max(due, now + min(0.1 if self._waits else 1.0, shortest / 10)) if due < math.inf else math.inf)

    # -- bytes

    async def _serve(self, epoll: select.epoll) -> None:
        number = epoll.fileno()
        while True:
            if self._ready or self._greedy or self._calls:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(number)
            self._turn(epoll)

    def _turn(self, epoll: select.epoll) -> None:
        """Take the news and move bytes, but not for long."""
        lanes, ready, greedy = self._lanes, self._ready, self._greedy
        self.time()
        for number, flags in epoll.poll(0, EVENTS):
            pair = lanes.get(number)
            if pair is None:
                wait = self._waits.get(number)
                if wait is None:
                    pass  # its tunnel or its waiting is over, and it wasn't closed yet
                else:
                    self._tell_in_turn(wait, News.OTHER if flags & ~wait.good else News.READY)
                continue
            reads, writes = pair
            if flags & _BEHIND:
                reads.careful = True
            if flags & ~_ROOM and reads.state is State.READING:
                reads.state = State.QUEUED
                ready.append(reads)
            if flags & _ROOM_OR_WORSE and writes.state is State.FULL:
                writes.state = State.QUEUED
                ready.append(writes)
        self._call()
        left = TURN
        while ready and left > 0:
            left -= self._advance(ready.popleft(), self._scratch)
        for _ in range(len(greedy)):
            left -= self._advance(greedy.popleft(), self._scratch)
            if left <= 0:
                break

    def _advance(self, lane: Lane, scratch: memoryview | None) -> int:
        """Let *lane* move bytes, and see to what it stopped at; returns the cost."""
        if lane.state is State.DONE:
            return 0  # its tunnel ended while it stood in line
        tunnel, epoll = lane.tunnel, self._epoll
        assert epoll is not None
        try:
            moved = lane.pump(scratch, self.now)
            match lane.state:
                case State.FULL:
                    # Said anew each time: that makes epoll look, so room made meanwhile is not missed.
                    epoll.modify(lane.sink.fileno(), NEWS | _ROOM)
                case State.QUEUED:
                    self._greedy.append(lane)
                case State.DONE:
                    if tunnel.up.state is State.DONE and tunnel.down.state is State.DONE:
                        self._end(tunnel, "eof")
                case State.READING:
                    pass
        except Broken as failure:
            self._end(tunnel, lane.blame(failure))
            return PUMP_COST
        except OSError:  # from epoll: the number is no longer this socket's
            self._end(tunnel, "closed")
            return PUMP_COST
        return moved + PUMP_COST
