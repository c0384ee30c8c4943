"""Long steps are spread over turns of the event loop, and none is forgotten."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sbxproxy.tls.turns import BUDGET, Turns


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


async def crowd(turns, clock, *, many: int, each: float) -> list[int]:
    """Let *many* tasks take a step of *each* seconds at once; returns how many were done after each turn of another task."""
    done = 0
    after: list[int] = []

    async def work() -> None:
        nonlocal done
        async with turns:
            clock.now += each
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(many):
            nursery.start_soon(work)
        while done < many:
            await trio.lowlevel.checkpoint()
            after.append(done)
    return after


async def test_x3_a_turn_has_no_more_long_steps_than_its_budget(clock):
    """However many shake hands, a tunnel waits for about a millisecond of it."""
    with trio.fail_after(30):
        after = await crowd(Turns(clock=clock), clock, many=100, each=BUDGET / 2)
    steps = [now - before for before, now in zip([0, *after], after, strict=False)]
    # Two of half the budget use it up; chance may put the end of one turn's and the beginning of the next one's together.
    assert max(steps) <= 5
    assert after[-1] == 100


async def test_a_step_longer_than_the_budget_is_alone_in_its_turn(clock):
    with trio.fail_after(30):
        after = await crowd(Turns(clock=clock), clock, many=20, each=BUDGET * 3)
    steps = [now - before for before, now in zip([0, *after], after, strict=False)]
    assert max(steps) <= 2


async def test_short_steps_wait_for_nobody(clock):
    turns = Turns(clock=clock)
    for _ in range(9):
        with trio.testing.assert_no_checkpoints():
            async with turns:
                clock.now += BUDGET / 10


async def test_a_step_that_fails_counts_and_gives_its_turn_on(clock):
    turns = Turns(clock=clock)
    with pytest.raises(KeyError):
        async with turns:
            clock.now += BUDGET
            raise KeyError
    with trio.fail_after(30):
        assert (await crowd(turns, clock, many=10, each=BUDGET))[-1] == 10


async def test_cancelled_tasks_leave_the_others_their_turn(clock):
    turns = Turns(clock=clock)
    done = []

    async def work(scope: trio.CancelScope, number: int) -> None:
        with scope:
            async with turns:
                clock.now += BUDGET
            done.append(number)

    scopes = [trio.CancelScope() for _ in range(30)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(scopes):
                nursery.start_soon(work, scope, number)
            await trio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
    assert set(range(1, 30, 2)) <= set(done)
