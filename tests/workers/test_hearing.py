"""What workers say, taken one message at a time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from sbxproxy.events import Event, Problem, as_dict
from sbxproxy.workers.hearing import Hearing
from sbxproxy.workers.member import Member


class Silent(Member):
    """Has no process; keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(0, 1)
        self.posted: list[Any] = []

    def post(self, message: Any, descriptors: Any = ()) -> None:
        self.posted.append(message)


def problem(sandbox: str = "gone") -> dict[str, Any]:
    return as_dict(Problem(sandbox=sandbox, flow=None, reason="r", detail="d", time=0.0))


async def test_events_of_a_closed_sandbox_and_lost_ones_are_told() -> None:
    told: list[Event] = []

    def fail(_event: Event) -> None:
        raise ValueError

    member = Silent()
    async with trio.open_nursery() as nursery:
        hearing = Hearing({}, [fail, told.append], lambda: nursery)
        hearing.take(member, {"do": "events", "events": [problem()], "lost": 3})
        hearing.take(member, {"do": "events", "events": [], "lost": 0})
    assert [(event.sandbox, event.reason, event.detail) for event in told if isinstance(event, Problem)] == [
        ("gone", "r", "d"),
        ("", "events-lost", "3 events of worker 1"),
    ]
    hearing.lost(member)
    assert isinstance(told[-1], Problem)
    assert told[-1].reason == "worker-lost"
    assert member.why == ""


class Held:
    """A sandbox with a secret."""

    async def secret(self, name: str) -> tuple[str, float]:
        return "canary", 0.0


@pytest.mark.parametrize("sandbox", ["absent", "box"])
async def test_s3_a_worker_gets_no_secret_of_a_sandbox_that_it_does_not_serve(sandbox: str) -> None:
    member = Silent()
    async with trio.open_nursery() as nursery:
        hearing = Hearing({"box": Held()}, [], lambda: nursery)  # type: ignore[dict-item]
        hearing.take(member, {"do": "ask", "ask": 7, "sandbox": sandbox, "name": "a"})
    assert member.posted == [{"do": "secret", "ask": 7, "error": "no sandbox has the secret 'a'"}]


@pytest.mark.parametrize(
    "message",
    [
        {"do": "else"},
        {"do": "ask", "ask": 1, "sandbox": "box"},
        {"do": "events", "events": [{**problem(), "more": 1}], "lost": 0},
        {
            "do": "events",
            "events": [{"event": "policy-changed", "sandbox": "box", "mode": "", "cut": [], "kept": 0, "time": 0}],
            "lost": 0,
        },
        {"do": "events", "events": [{**problem(), "flow": 1.5}], "lost": 0},
        {"do": "events", "events": [{**problem(), "event": []}], "lost": 0},
    ],
)
async def test_what_is_nothing_known_ends_the_worker(message: dict[str, Any]) -> None:
    member = Silent()
    async with trio.open_nursery() as nursery:
        Hearing({}, [], lambda: nursery).take(member, message)
    assert member.why
