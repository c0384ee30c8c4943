"""``Pipeline`` and ``run_stage``: what is checked once, and how a part is called and fails."""

from __future__ import annotations

import traceback
from functools import partial
from typing import Any

import pytest
import trio

from sbxproxy.errors import SecretError, StageError, UpstreamTlsError
from sbxproxy.stages import Pipeline, run_stage

CANARY = "canary-4c1d"


class Part:
    """Fits every slot for instances."""

    async def decide(self, flow: Any) -> Any: ...

    async def accept(self, flow: Any, client: Any) -> Any: ...

    async def connect(self, flow: Any, upstream: Any, name: Any) -> Any: ...

    async def handle(self, flow: Any, client: Any, upstream: Any) -> None: ...


class Transform:
    async def on_request(self, flow: Any, request: Any) -> Any: ...


def look(data: Any) -> Any: ...


async def make_later() -> Any: ...


@pytest.mark.parametrize(
    "parts",
    [
        {"sniffers": [Part()]},
        {"policies": [Part]},
        {"policies": [look]},
        {"terminator": Transform()},
        {"terminator": Part},
        {"transforms": {"x": Part}},
        {"transforms": {"x": make_later}},
        {"transforms": {"x": Transform()}},
        {"handlers": {"x": Transform()}},
        {"handlers": {"x": Part}},
        {"observers": [Part()]},
        {"observers": [make_later]},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_a_misfit_in_any_slot_is_a_type_error(parts: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Pipeline(**parts)


def test_what_fits_is_kept_in_order() -> None:
    first, second = Part(), Part()
    pipeline = Pipeline(
        sniffers=[look],
        policies=[first, second],
        terminator=first,
        transforms={"a": Transform, "b": partial(Transform)},
        handlers={"x": second},
        observers=[look],
    )
    assert pipeline.policies == (first, second)
    assert pipeline.terminator is first
    assert list(pipeline.transforms) == ["a", "b"]
    assert pipeline.handlers == {"x": second}


def test_a_pipeline_is_not_changed_through_what_it_was_made_of() -> None:
    """Otherwise a part could be put in unchecked, or taken out, while flows run."""
    lists: dict[str, list[Any]] = {"sniffers": [look], "policies": [Part()], "observers": [look]}
    maps: dict[str, dict[str, Any]] = {"transforms": {"x": Transform}, "handlers": {"x": Part()}}
    pipeline = Pipeline(**lists, **maps)  # type: ignore[arg-type]
    for items in lists.values():
        items.append(None)
    for named in maps.values():
        named["y"] = None
    for slot in (*lists, *maps):
        assert len(getattr(pipeline, slot)) == 1, slot


def test_an_iterator_is_used_up_once_and_still_kept() -> None:
    """A check that consumed it would leave an empty slot."""
    part = Part()
    assert Pipeline(policies=iter([part])).policies == (part,)  # type: ignore[arg-type]


async def test_what_a_part_returns_is_passed_on() -> None:
    async def part(one: int, *, other: int) -> int:
        await trio.lowlevel.checkpoint()
        return one + other

    assert await run_stage("it", 1, part, 1, other=2) == 3


async def test_a_part_that_takes_too_long_is_ended_and_has_failed(autojump_clock: trio.testing.MockClock) -> None:
    ended = False

    async def part() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended = True

    start = trio.current_time()
    with pytest.raises(StageError, match=r"^the part took longer than 2\.5 s$"):
        await run_stage("the part", 2.5, part)
    assert trio.current_time() - start == pytest.approx(2.5)
    assert ended


async def test_a_part_that_is_quick_enough_is_not_ended(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    await run_stage("the part", 2.5, trio.sleep, 2.4)
    assert trio.current_time() - start == pytest.approx(2.4)


async def test_c11_an_exceptions_text_is_nowhere_in_the_failure() -> None:
    """It may quote a secret, and whoever logs the failure may walk along its causes and contexts."""

    async def part() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError(CANARY)

    with pytest.raises(StageError, match=r"^the part failed with KeyError$") as caught:
        await run_stage("the part", 1, part)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert CANARY not in "".join(traceback.format_exception(caught.value, chain=True))


@pytest.mark.parametrize("error", [SecretError("x"), UpstreamTlsError("x"), StageError("x")], ids=repr)
async def test_errors_of_the_packages_own_kinds_pass(error: Exception) -> None:
    """A terminator, for one, says with them who is to blame."""

    async def part() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        await run_stage("the part", 1, part)
    assert caught.value is error


async def test_a_cancellation_from_outside_is_not_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    """A flow that is cut must not be told as a plugin's fault."""
    with trio.move_on_after(1) as scope:
        await run_stage("the part", 5, trio.sleep_forever)
    assert scope.cancelled_caught
    assert trio.current_time() > 0
