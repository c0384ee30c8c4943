from __future__ import annotations

import pytest
import trio
import trio.testing

from sbxproxy.net.engine import Engine

QUIET = 4
"""How often in a row nothing must happen until a patient clock jumps."""


class _Busy(trio.abc.Instrument):
    """Notes that a task has run."""

    seen = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen = True


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """A clock that jumps only when sockets and threads have been quiet for a while too.

    That while is several waits, so that a moment in which the whole process has no processor is one of them, however long it is.
    """
    clock = trio.testing.MockClock(autojump_threshold=0.2 / QUIET)
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


@pytest.fixture
async def engine(nursery):
    engine = Engine()
    await nursery.start(engine.run)
    return engine
