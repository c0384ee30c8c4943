"""Secrets that a worker asks for: nothing shows them, and no answer is a refusal."""

from __future__ import annotations

import copy
import math
import pickle
import socket

import pytest
import trio
import trio.testing

from sbxproxy import SecretError
from sbxproxy.secrets import Secret
from sbxproxy.workers.asking import PATIENCE, Asker, RemoteSource
from sbxproxy.workers.channel import Channel


class Posts(Channel):
    """Keeps what is posted."""

    __slots__ = ("posted",)

    def __init__(self) -> None:
        left, right = socket.socketpair()
        right.close()
        super().__init__(left, most=1)
        self.posted: list[dict[str, object]] = []

    def post(self, message, descriptors=()):
        self.posted.append(dict(message))


async def test_each_question_gets_its_own_answer() -> None:
    channel = Posts()
    asker = Asker(channel)
    found: dict[str, str] = {}

    async def ask(name: str) -> None:
        found[name] = (await RemoteSource(asker, "box").get(name)).reveal()

    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(ask, name)
        await trio.testing.wait_all_tasks_blocked()
        for question in reversed(channel.posted):
            assert question["sandbox"] == "box"
            asker.answer(question["ask"], Secret(f"value of {question['name']}"), "")
    assert found == {"a": "value of a", "b": "value of b"}
    assert repr(asker) == "<Asker, 0 questions>"
    channel.close()


async def test_no_answer_in_time_is_a_refusal(autojump_clock: trio.testing.MockClock) -> None:
    channel = Posts()
    asker = Asker(channel)
    with pytest.raises(SecretError, match="no answer"):
        await RemoteSource(asker, "box").get("a")
    assert trio.current_time() == PATIENCE
    asker.answer(1, Secret("late"), "")  # for nobody any more
    channel.close()


async def test_an_error_comes_as_one() -> None:
    channel = Posts()
    asker = Asker(channel)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(SecretError, match="it is not set"):
                await asker.ask("box", "a")

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        asker.answer(1, None, "it is not set")
    channel.close()


@pytest.mark.parametrize(("keep", "asked"), [(math.inf, 1), (1.0, 2), (0.0, 4)])
async def test_a_value_is_kept_as_long_as_the_supervisor_lets_it(
    keep: float, asked: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Counted from when it was asked for, so that what is older is never taken for fresh."""
    channel = Posts()
    asker = Asker(channel)
    source = RemoteSource(asker, "box")
    assert source.at_hand("a") is None
    for number, pause in enumerate((0.5, 0.4, 0.2, 0)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.get, "a")
            await trio.testing.wait_all_tasks_blocked()
            asker.answer(len(channel.posted), Secret(f"canary {number}"), "", keep)
        at_hand = source.at_hand("a")
        assert (at_hand is None) == (keep == 0)
        await trio.sleep(pause)
    assert trio.current_time() == pytest.approx(1.1)
    assert len(channel.posted) == asked
    assert "canary" not in repr(source)
    for copier in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            copier(source)
    channel.close()
