"""The checks of the slots: whatever nothing would call, or would call wrongly, is an error when a pipeline is put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sbxproxy.stages import (
    check_handler,
    check_observer,
    check_policy,
    check_sniffer,
    check_terminator,
    check_transform,
)


class Policy:
    async def decide(self, flow: Any) -> Any: ...


class Terminator:
    async def accept(self, flow: Any, client: Any) -> Any: ...

    async def connect(self, flow: Any, upstream: Any, name: Any) -> Any: ...


class Handler:
    async def handle(self, flow: Any, client: Any, upstream: Any) -> None: ...


class Transform:
    async def on_request(self, flow: Any, request: Any) -> Any: ...

    async def on_response(self, flow: Any, request: Any, response: Any) -> Any: ...


class PlainCallable:
    def __call__(self, data: Any) -> Any: ...


class AsyncCallable:
    async def __call__(self, data: Any) -> Any: ...


async def async_function(data: Any) -> Any: ...


class Made:
    def __init__(self, data: Any) -> None: ...


def plain(data: Any) -> Any: ...


def none() -> Any: ...


def two(one: Any, other: Any) -> Any: ...


INSTANCES: list[tuple[Callable[[Any], None], type]] = [
    (check_policy, Policy),
    (check_terminator, Terminator),
    (check_handler, Handler),
]


@pytest.mark.parametrize(("check", "kind"), [*INSTANCES, (check_transform, Transform)])
def test_what_fits_is_taken(check: Callable[[Any], None], kind: type) -> None:
    check(kind())


def test_a_transform_may_be_a_class() -> None:
    """A policy makes transforms from their class, so that the class is what is checked at start."""
    check_transform(Transform)


@pytest.mark.parametrize(("check", "kind"), INSTANCES)
def test_a_class_is_refused_where_an_instance_is_needed(check: Callable[[Any], None], kind: type) -> None:
    """Its methods look right, and would be called without a self."""
    with pytest.raises(TypeError, match=f"{kind.__name__} is a class"):
        check(kind)


METHODS = [
    (check_policy, Policy, "decide"),
    (check_terminator, Terminator, "accept"),
    (check_terminator, Terminator, "connect"),
    (check_handler, Handler, "handle"),
    (check_transform, Transform, "on_request"),
    (check_transform, Transform, "on_response"),
]


@pytest.mark.parametrize(("check", "kind", "method"), METHODS)
def test_a_method_that_is_not_async_is_refused(check: Callable[[Any], None], kind: type, method: str) -> None:
    def sync(self: Any, *args: Any) -> Any: ...

    wrong = type("Wrong", (kind,), {method: sync})
    with pytest.raises(TypeError, match=f"async def {method}"):
        check(wrong())


@pytest.mark.parametrize(("check", "kind", "method"), METHODS)
@pytest.mark.parametrize("count", [-1, 1])
def test_a_method_of_another_arity_is_refused(check: Callable[[Any], None], kind: type, method: str, count: int) -> None:
    async def none(self: Any) -> Any: ...

    async def many(self: Any, one: Any, two: Any, three: Any, four: Any) -> Any: ...

    wrong = type("Wrong", (kind,), {method: none if count < 0 else many})
    with pytest.raises(TypeError, match=f"{method} must take exactly"):
        check(wrong())


@pytest.mark.parametrize("count", [-1, 1])
def test_the_arity_of_a_transform_class_counts_its_self(count: int) -> None:
    """Off by one either way: ``self`` is not bound on a class."""

    async def fewer(self: Any, flow: Any) -> Any: ...

    async def more(self: Any, flow: Any, request: Any, other: Any) -> Any: ...

    with pytest.raises(TypeError, match="on_request must take exactly 2"):
        check_transform(type("Wrong", (), {"on_request": fewer if count < 0 else more}))


def test_a_static_hook_has_no_self_to_count() -> None:
    class Static:
        @staticmethod
        async def on_request(flow: Any, request: Any) -> Any: ...

    class Wrong:
        @staticmethod
        async def on_request(self: Any, flow: Any, request: Any) -> Any: ...

    check_transform(Static)
    check_transform(Static())
    for part in (Wrong, Wrong()):
        with pytest.raises(TypeError, match="on_request must take exactly 2"):
            check_transform(part)


@pytest.mark.parametrize(("check", "kind", "method"), [row for row in METHODS if row[2] != "on_response"])
def test_a_missing_method_is_refused_and_what_is_there_is_named(check: Callable[[Any], None], kind: type, method: str) -> None:
    class Wrong:
        async def misspelt(self) -> None: ...

        if method == "connect":
            accept = Terminator.accept

    with pytest.raises(TypeError, match=rf"async def {method}.*misspelt"):
        check(Wrong())


@pytest.mark.parametrize("hook", ["on_reqest", "on_responses", "on_close"])
@pytest.mark.parametrize("instance", [False, True])
def test_a_misspelt_hook_is_refused(hook: str, instance: bool) -> None:
    """A signature check that is never called is worse than none at all."""

    async def extra(self: Any, flow: Any, request: Any) -> Any: ...

    kind = type("Wrong", (Transform,), {hook: extra})
    with pytest.raises(TypeError, match=f"{hook}, which nothing calls"):
        check_transform(kind() if instance else kind)


@pytest.mark.parametrize("limit", [-1, "10", None, 1.5])
def test_a_body_limit_that_is_no_number_of_bytes_is_refused(limit: Any) -> None:
    with pytest.raises(TypeError, match="body_limit"):
        check_transform(type("Wrong", (Transform,), {"body_limit": limit})())


@pytest.mark.parametrize("check", [check_sniffer, check_observer])
@pytest.mark.parametrize("part", [plain, PlainCallable(), lambda _: None, partial(two, 1)])
def test_a_plain_callable_is_taken(check: Callable[[Any], None], part: Any) -> None:
    check(part)


@pytest.mark.parametrize("check", [check_sniffer, check_observer])
@pytest.mark.parametrize("part", [none, two, async_function, AsyncCallable(), PlainCallable, Made, 3, None, "x"])
def test_what_is_no_plain_callable_of_one_argument_is_refused(check: Callable[[Any], None], part: Any) -> None:
    """An async one would return a coroutine that nobody awaits; a class would make an object and look at nothing."""
    with pytest.raises(TypeError, match="must be a plain function"):
        check(part)


def test_a_callable_that_does_not_tell_its_arguments_is_refused() -> None:
    """What can't be told fails closed, and as the same error."""
    with pytest.raises(TypeError, match="must be a plain function"):
        check_sniffer(partial(two, 1, 2, 3))
