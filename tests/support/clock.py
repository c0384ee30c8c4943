"""Clocks and waits that depend on what happens, and not on how long it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

QUIET = 4
"""How often in a row nothing must happen until a patient clock jumps."""


class _Busy(trio.abc.Instrument):
    """Notes that a task has run."""

    seen = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen = True


def make_patient(seconds: float = 0.2) -> trio.testing.MockClock:
    """Return a clock that jumps only when sockets and threads have been quiet for *seconds* too.

    That while is several waits, so that a moment in which the whole process has no processor is one of them, however long it is.
    """
    clock = trio.testing.MockClock(autojump_threshold=seconds / QUIET)
    jump, busy, quiet = clock._autojump, _Busy(), -1

    def autojump() -> None:
        nonlocal quiet
        if quiet < 0:
            trio.lowlevel.add_instrument(busy)
        quiet = 1 if busy.seen or quiet < 0 else quiet + 1
        busy.seen = False
        if quiet >= QUIET:
            quiet = 0
            jump()

    clock._autojump = autojump
    return clock


async def until_stuck(function: Callable[..., Awaitable[Any]], *arguments: Any, cushion: float = 0.02) -> None:
    """Call *function*, which must not return by itself, and cancel it when no task has had anything to do for *cushion* seconds."""
    returned = False

    async def call() -> None:
        nonlocal returned
        await function(*arguments)
        returned = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked(cushion)
        assert not returned
        nursery.cancel_scope.cancel()
