"""A deadline that moves with every request and every chunk, at the cost of an assignment.

Moving the deadline of a Trio scope means taking it out of a heap and putting it back. Here one task of the run looks at a
deadline when it would have passed, and if it was moved meanwhile comes back then: for a busy connection once a minute.
"""

from __future__ import annotations

__all__ = ["Patience"]

import heapq
import itertools
from math import inf

import trio

_SWEEP = 64
"""Entries of connections that are gone that may wait for their time, beside as many as there are others."""


class Patience:
    """How long a connection may go on as it is.

    Attributes:
        scope: cancelled when the time is over; the caller enters it once, and calls ``close`` after it.
        now: tells the time, as ``trio.current_time`` does.
        last: when it was begun or pushed last.
    """

    __slots__ = ("_alarms", "_seconds", "_until", "_wake", "last", "now", "scope")

    def __init__(self) -> None:
        """Begin without a deadline."""
        self.scope = trio.CancelScope()
        self.now = trio.lowlevel.current_clock().current_time
        self._alarms = _the_alarms()
        self._seconds = inf
        self._until = inf
        self._wake = inf
        self.last = self.now()

    def begin(self, seconds: float, now: float | None = None) -> float:
        """From now on wait for *seconds* in which nothing is pushed; take the time, if it is not known, and return it."""
        if now is None:
            now = self.now()
        self.last = now
        self._seconds = seconds
        self._until = until = now + seconds
        if until < self._wake:
            self._wake = until
            self._alarms.set(until, self)
        return now

    def push(self) -> None:
        """Something moved."""
        self.last = now = self.now()
        self._until = now + self._seconds

    def rest(self) -> None:
        """Wait for ever."""
        self._seconds = self._until = inf

    def close(self) -> None:
        """Forget the deadline."""
        if self._wake < inf:
            self._wake = -inf
            self._alarms.forget()
        self._until = inf

    def look(self, when: float, now: float) -> float:
        """Be looked at, as was wished for *when*; return the time of the next look, infinite if there is none to be."""
        if self._wake != when:
            return inf  # another entry stands for this one now
        self._wake = self._until
        if self._until > now:
            return self._until
        self._wake = inf
        self.scope.cancel(reason="nothing moved for too long")
        return inf


class _Alarms:
    """The deadlines of all connections of a run, and the task that looks at them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Patience]] = []
        self._order = itertools.count()
        self._gone = 0
        self._earlier = trio.Event()

    def set(self, when: float, patience: Patience) -> None:
        heapq.heappush(self._heap, (when, next(self._order), patience))
        if self._heap[0][2] is patience:
            self._earlier.set()

    def forget(self) -> None:
        self._gone += 1
        if self._gone > _SWEEP and self._gone > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2]._wake == entry[0]]  # noqa: SLF001 - of this module
            heapq.heapify(self._heap)
            self._gone = 0

    async def run(self) -> None:
        while True:
            with trio.move_on_at(self._heap[0][0] if self._heap else inf):
                await self._earlier.wait()
            self._earlier = trio.Event()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                when, _, patience = heapq.heappop(self._heap)
                if (then := patience.look(when, now)) < inf:
                    heapq.heappush(self._heap, (then, next(self._order), patience))


_of_run: trio.lowlevel.RunVar[_Alarms] = trio.lowlevel.RunVar("sbxproxy.http.patience")


def _the_alarms() -> _Alarms:
    try:
        return _of_run.get()
    except LookupError:
        alarms = _Alarms()
        _of_run.set(alarms)
        trio.lowlevel.spawn_system_task(alarms.run, name="deadlines of HTTP connections")
        return alarms
