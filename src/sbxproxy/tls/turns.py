"""Handshakes share the event loop with tunnels: what takes long is done a few at a time, and others get their turn in between.

A step of a handshake takes a third of a millisecond or more of cryptography. Thirty clients that shake hands at once would
otherwise make one turn of the loop ten milliseconds long, for each connection that has a byte to pass on. What is surprising
is that the steps aren't counted but timed: how long one takes depends on keys, chains and the machine.
"""

from __future__ import annotations

__all__ = ["Turns"]

import time
from collections.abc import Callable
from types import TracebackType

import trio

BUDGET = 0.001
"""Seconds of such work in a row before others get a turn. Half of it costs a handshake in thirty."""

WOKEN = 3
"""Tasks woken at once when there is room again; each that has done its step wakes another while there is."""


class Turns:
    """A bound on the time that long steps take in one turn of the event loop: ``async with`` around each, without ``await`` in it.

    One event loop may use it. A cancelled task that waits for its turn has done nothing.
    """

    __slots__ = ("_clock", "_lot", "_resting", "_spent", "_started")

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with the whole budget.

        Args:
            clock: seconds.
        """
        self._clock = clock
        self._lot = trio.lowlevel.ParkingLot()
        self._spent = 0.0
        self._started = 0.0
        self._resting = False

    async def __aenter__(self) -> None:
        while self._spent >= BUDGET:
            await self._lot.park()
        self._started = self._clock()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spent += self._clock() - self._started
        if self._spent < BUDGET:
            self._lot.unpark()
        elif not self._resting:
            self._resting = True
            try:
                await trio.lowlevel.cancel_shielded_checkpoint()
            finally:
                self._resting = False
                self._spent = 0.0
                self._lot.unpark(count=WOKEN)
