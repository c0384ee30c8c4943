"""Events on their way out of a worker: in batches, in order, bounded, and lost ones counted."""

from __future__ import annotations

import socket

import trio
import trio.testing

from sbxproxy.events import PolicyChanged, Problem, as_dict, from_dict
from sbxproxy.workers import reporter as module
from sbxproxy.workers.channel import Channel
from sbxproxy.workers.reporter import BATCH, Reporter


def problem(number: int) -> Problem:
    return Problem(sandbox="box", flow=number, reason="r", detail="", time=0.0)


async def test_events_go_in_batches_and_in_order() -> None:
    left, right = socket.socketpair()
    one, other = Channel(left, most=1), Channel(right, most=1 << 24)
    reporter = Reporter(one)
    found, sizes = [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.write)
        nursery.start_soon(reporter.run)
        for number in range(2 * BATCH + 5):
            reporter(problem(number))
        reporter(PolicyChanged(sandbox="box", mode="deny-all", cut=(), kept=0))  # the supervisor's to tell
        while len(found) < 2 * BATCH + 5:
            received = await other.receive()
            assert received is not None
            assert received[0]["lost"] == 0
            sizes.append(len(received[0]["events"]))
            found += received[0]["events"]
        nursery.cancel_scope.cancel()
    assert sizes == [BATCH, BATCH, 5]
    assert list(map(from_dict, found)) == [problem(number) for number in range(2 * BATCH + 5)]
    one.close()
    other.close()


async def test_a_supervisor_that_does_not_read_costs_events_and_no_memory(monkeypatch) -> None:
    monkeypatch.setattr(module, "WAITING", 10)
    left, right = socket.socketpair()
    one, other = Channel(left, most=1), Channel(right, most=1 << 24)
    reporter = Reporter(one)
    for number in range(25):
        reporter(problem(number))
    reporter.flush()
    reporter.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.write)
        received = await other.receive()
        nursery.cancel_scope.cancel()
    assert received is not None
    assert received[0] == {"do": "events", "events": [as_dict(problem(number)) for number in range(10)], "lost": 15}
    one.close()
    other.close()
