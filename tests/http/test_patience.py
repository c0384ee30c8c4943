"""Deadlines of connections: exact, however often they move, and forgotten with their connection."""

from __future__ import annotations

from math import inf

import pytest
import trio
import trio.testing

from sbxproxy.http.patience import _SWEEP, Patience, _of_run


async def test_it_ends_exactly_when_nothing_was_pushed_for_so_long(autojump_clock):
    patience = Patience()
    start = trio.current_time()
    with patience.scope:
        patience.begin(5)
        await trio.sleep(4)
        patience.push()
        await trio.sleep(4)
        patience.push()
        await trio.sleep_forever()
    assert trio.current_time() - start == 13
    patience.close()


@pytest.mark.parametrize(("first", "then"), [(5, 60), (60, 5), (5, 5)])
async def test_the_next_phase_has_its_own_time(autojump_clock, first, then):
    """Longer or shorter than what is left of the one before."""
    patience = Patience()
    start = trio.current_time()
    with patience.scope:
        patience.begin(first)
        await trio.sleep(1)
        patience.begin(then)
        await trio.sleep_forever()
    assert trio.current_time() - start == 1 + then
    patience.close()


async def test_phases_in_turn(autojump_clock):
    """As on a connection with many requests: short waits between long ones."""
    patience = Patience()
    with patience.scope:
        for _ in range(100):
            patience.begin(60)
            await trio.sleep(50)
            patience.begin(300)
            await trio.sleep(250)
        patience.begin(60)
        start = trio.current_time()
        await trio.sleep_forever()
    assert trio.current_time() - start == 60
    patience.close()


async def test_a_known_time_is_taken_as_the_beginning(autojump_clock):
    patience = Patience()
    with patience.scope:
        begun = patience.begin(10)
        await trio.sleep(4)
        assert patience.begin(10, begun) == patience.last == begun
        await trio.sleep_forever()
    assert trio.current_time() - begun == 10
    patience.close()


async def test_at_rest_nothing_ends(autojump_clock):
    patience = Patience()
    with patience.scope:
        patience.begin(5)
        patience.rest()
        patience.push()
        await trio.sleep(1000)
        patience.begin(5)
        start = trio.current_time()
        await trio.sleep_forever()
    assert trio.current_time() - start == 5
    patience.close()


async def test_many_end_each_at_its_own_time(autojump_clock):
    ended = {}

    async def one(seconds):
        patience = Patience()
        with patience.scope:
            patience.begin(seconds)
            await trio.sleep_forever()
        ended[seconds] = trio.current_time()
        patience.close()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for seconds in (7, 3, 11, 5, 2, 13):
            nursery.start_soon(one, seconds)
    assert {seconds: time - start for seconds, time in ended.items()} == {s: s for s in (7, 3, 11, 5, 2, 13)}


async def test_a_closed_one_is_not_waited_for(autojump_clock):
    patience = Patience()
    patience.begin(5)
    patience.close()
    patience.close()
    await trio.sleep(10)
    assert not patience.scope.cancel_called


async def test_what_is_gone_does_not_pile_up():
    """A connection that lasts a moment must not be remembered for a minute."""
    kept = Patience()
    kept.begin(1000)
    for _ in range(50 * _SWEEP):
        patience = Patience()
        patience.begin(60)
        patience.close()
    assert len(_of_run.get()._heap) <= 2 * _SWEEP + 2
    assert any(entry[2] is kept for entry in _of_run.get()._heap)
    kept.close()


async def test_a_busy_connection_is_looked_at_once_in_its_shortest_time(autojump_clock):
    """Moving a deadline costs an assignment; the heap stays as it is."""
    patience = Patience()
    with patience.scope:
        patience.begin(60)
        entries = list(_of_run.get()._heap)
        for _ in range(1000):
            patience.begin(300)
            patience.push()
            patience.begin(60)
        assert _of_run.get()._heap == entries
    patience.close()
    assert patience._until == inf
