"""Waiting for sockets by an epoll instance, without a task for each: who waits is called, or woken if it is a task.

Whoever is called does a connection's next step there and then, so they take turns: a few in each. Time is kept by looking at all
that are waited for when the earliest could be late, instead of by a timer for each, and every few seconds to find sockets that
were closed by somebody else.
"""

from __future__ import annotations

__all__ = ["CALLS", "CAN_RUN", "LOOK", "NEWS", "News", "Tell", "Waiting"]

import math
import select
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

import trio

CAN_RUN = hasattr(select, "epoll")

CALLS = 8
"""Watchers told in a turn: what a new connection takes until it is judged is about as much as copying two chunks."""

LOOK = 2.0
"""Seconds between two looks for sockets that were closed by somebody else; with 10,000 tunnels one takes about 2 ms."""

if CAN_RUN:
    NEWS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
    """What a socket is waited for by that may become an end of a tunnel: edges."""

    _ONE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
    _CONNECTED = select.EPOLLOUT | select.EPOLLONESHOT
else:
    NEWS = 0


class News(Enum):
    """Why a socket is no longer waited for."""

    READY = auto()
    """It has bytes, or room: what was waited for, and nothing else."""

    OTHER = auto()
    """There is an end, an error or urgent data, perhaps beside that."""

    LATE = auto()
    """The time is up."""

    CLOSED = auto()
    """It was closed, or the engine was stopped."""


Tell = Callable[[News], None]


class _Wait:
    """A socket that is waited for, and whom to tell."""

    __slots__ = ("good", "news", "number", "sock", "tell", "until")

    def __init__(self, sock: socket.socket, number: int, until: float, tell: Tell, good: int) -> None:
        self.sock = sock
        self.number = number
        self.until = until
        self.tell = tell
        self.good = good  # the events that are nothing but what was waited for; 0 for a task, which is told at once
        self.news: News | None = None  # what to tell when its turn has come


class Waiting:
    """Sockets that are waited for, and whom to tell; what has the epoll instance is a subclass.

    Attributes:
        now: Trio's time at the beginning of this turn, for those who are called in it.
    """

    __slots__ = ("_calls", "_clock", "_due", "_epoll", "_scope", "_waits", "now")

    def __init__(self) -> None:
        """Begin with none."""
        self._epoll: select.epoll | None = None
        self._waits: dict[int, _Wait] = {}
        self._calls: deque[_Wait] = deque()  # whom to tell next
        self._due = math.inf
        self._scope = trio.CancelScope()
        self._clock: Callable[[], float] = trio.current_time
        self.now = 0.0

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self._epoll is not None

    def time(self) -> float:
        """Return Trio's time, and take it for ``now``: for whoever is not called in a turn."""
        self.now = now = self._clock()
        return now

    async def readable(self, sock: socket.socket, until: float = math.inf) -> bool:
        """Wait until *sock* has bytes, an end or an error; false if that did not come until *until*.

        It costs half of what Trio's own waiting does, and a quarter of that within a deadline. The socket stays in the
        engine's epoll instance, for the next waiting or the tunnel that it becomes an end of.

        Args:
            sock: a connected, non-blocking socket, that nobody else waits for.
            until: by Trio's clock; noticed within a tenth of a second.

        Raises:
            RuntimeError: the engine is not running.
            trio.BusyResourceError: somebody else waits for it.
            trio.ClosedResourceError: it is or was closed; that it was is noticed within seconds, or by ``forget``.
            OSError: epoll can't take it.
        """
        task, news = trio.lowlevel.current_task(), News.CLOSED

        def tell(told: News) -> None:
            nonlocal news
            news = told
            trio.lowlevel.reschedule(task)

        wait = self._wait(sock, until, tell, _ONE, 0, again=False)

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waits[wait.number]  # whose socket may be closed by now
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if news is News.CLOSED:
            raise trio.ClosedResourceError("this socket was closed")
        return news is not News.LATE

    def watch(self, sock: socket.socket, tell: Tell, until: float = math.inf, *, room: bool = False, again: bool = False) -> None:
        """Call *tell* once *sock* has bytes, or *room* for some, an end or an error, or until *until* has come.

        For whoever is no task: it is called from the engine's own, a few at a time, and must not raise, nor work for longer
        than moving a chunk takes. ``News.READY`` is an edge: what came with the bytes that are read then is told anew to
        ``take`` alone, so whoever watches *again* has read until the socket was dry.

        Args:
            sock: a connected, non-blocking socket, that nobody else waits for.
            tell: called once, unless ``ignore`` is called before.
            until: by Trio's clock; noticed within a tenth of a second.
            room: wait for room instead; the end of a connecting counts as that.
            again: it was watched before, in the same way.

        Raises:
            RuntimeError, trio.BusyResourceError, trio.ClosedResourceError, OSError: as for ``readable``.
        """
        mask, good = (_CONNECTED, select.EPOLLOUT) if room else (NEWS, select.EPOLLIN)
        self._wait(sock, until, tell, mask, good, again=again)

    def ignore(self, sock: socket.socket) -> None:
        """Forget that *sock* was waited for, and tell nobody; again is harmless."""
        wait = self._waits.get(sock.fileno())
        if wait is not None and wait.sock is sock:
            del self._waits[wait.number]

    def forget(self, sock: socket.socket) -> None:
        """Tell whoever waits for *sock*, which is about to be closed."""
        wait = self._waits.get(sock.fileno())
        if wait is not None:
            self._tell(wait, News.CLOSED)

    def _wait(self, sock: socket.socket, until: float, tell: Tell, mask: int, good: int, *, again: bool) -> _Wait:
        epoll, number = self._epoll, sock.fileno()
        if epoll is None:
            raise RuntimeError("this engine is not running")
        if number < 0:
            raise trio.ClosedResourceError("this socket was closed")
        before = self._waits.get(number)
        if before is not None:
            if before.sock.fileno() == number:
                raise trio.BusyResourceError("somebody else waits for this socket")
            self._tell(before, News.CLOSED)
        if not again:
            try:
                epoll.register(number, mask)
            except FileExistsError:
                epoll.modify(number, mask)
        wait = self._waits[number] = _Wait(sock, number, until, tell, good)
        due = min(until, self._clock() + LOOK)
        if due < self._due:
            self._set_due(due)
        return wait

    def _tell_in_turn(self, wait: _Wait, news: News) -> None:
        """Tell a task at once, which takes no time, and a watcher when its turn comes."""
        if not wait.good:
            self._tell(wait, news)
        elif wait.news is None:
            wait.news = news
            self._calls.append(wait)
        elif news is News.OTHER:
            wait.news = news

    def _tell(self, wait: _Wait, news: News) -> None:
        del self._waits[wait.number]
        wait.tell(news)

    # -- for the subclass

    def _call(self) -> None:
        """Tell a few of those whose turn it is."""
        for _ in range(min(CALLS, len(self._calls))):
            wait = self._calls.popleft()
            if self._waits.get(wait.number) is wait:  # else it was told meanwhile, or is ignored
                assert wait.news is not None
                self._tell(wait, wait.news if wait.sock.fileno() == wait.number else News.CLOSED)

    def _look_at_waits(self, now: float) -> float:
        """Tell those who are late or whose socket was closed; returns when to look again."""
        due = math.inf
        for wait in tuple(self._waits.values()):
            if self._waits.get(wait.number) is not wait:
                pass  # whoever was told before it has ended it
            elif wait.sock.fileno() != wait.number:
                self._tell(wait, News.CLOSED)
            elif wait.until <= now:
                self._tell_in_turn(wait, News.LATE)
            else:
                due = min(due, wait.until, now + LOOK)
        return due

    def _stop_waiting(self) -> None:
        """Tell everybody that it is over."""
        for wait in tuple(self._waits.values()):
            if self._waits.get(wait.number) is wait:
                self._tell(wait, News.CLOSED)
        self._calls.clear()

    def _set_due(self, due: float) -> None:
        if due != self._due:
            self._due = due
            self._scope.deadline = due
