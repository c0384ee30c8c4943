"""Checks of the parts at the edge: sources of secrets, and observers."""

from __future__ import annotations

__all__ = ["check_observer", "check_secret_source"]

import inspect
from collections.abc import Callable, Sequence

import trio

from sbxproxy.errors import SecretError
from sbxproxy.events import Event, FlowClosed, FlowOpened, Observer, PolicyChanged, Problem, RequestDone
from sbxproxy.secrets import Secret, Secrets, SecretSource, checked
from sbxproxy.testing.checks import PATIENCE, ensure, of_part

_AT_ONCE = 8
_HOSTILE = "x\n\x1b[31m\u202e{}%s\"'"


async def check_secret_source(
    source: SecretSource, names: Sequence[str], *, unknown: str | None = None, patience: float = PATIENCE
) -> None:
    """Check *source* on *names*: asked again, by many at once, and after a call that was cancelled.

    Its values must be ``Secret`` objects fit for a header, those of ``at_hand`` included. Its ``repr`` may show none, and a name it
    doesn't know is a ``SecretError`` that shows none either.

    Args:
        source: the part.
        names: names that it has a value for; at least one.
        unknown: a name that it has none for, if there is such a thing for it.
        patience: seconds that one answer may take.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule.
    """
    label = f"secret source {type(source).__name__}"
    get = getattr(source, "get", None)
    if not inspect.iscoroutinefunction(get):
        raise TypeError(f"{label} needs `async def get(name)`")
    at_hand = getattr(source, "at_hand", None)
    if at_hand is not None and (not callable(at_hand) or inspect.iscoroutinefunction(at_hand)):
        raise TypeError(f"{label}: at_hand must be a plain function")
    if not names:
        raise ValueError("give at least one name that the source has")
    values: list[str] = []
    for name in names:
        values.append(await _value(source, name, label, patience))
        await _cancelled(source, name)
        await _many(source, name, label, patience)
        if at_hand is not None:
            values.extend(_at_hand(at_hand, name, label, patience))
        with of_part(f"{label}, checked for use in a header,", patience):
            await Secrets({name: source}).get(name)
    _check_hidden(f"the repr of {label}", repr(source) + str(source), values)
    if unknown is not None:
        await _check_unknown(source, unknown, label, values, patience)
        if at_hand is not None:
            ensure(not _at_hand(at_hand, unknown, label, patience), f"{label} has a name at hand that it should not know")


async def _value(source: SecretSource, name: str, label: str, patience: float) -> str:
    with of_part(label, patience):
        answer: object = await source.get(name)
    ensure(isinstance(answer, Secret), f"{label} must return a Secret, not {type(answer).__name__}")
    assert isinstance(answer, Secret)
    return answer.reveal()


def _at_hand(at_hand: Callable[[str], object], name: str, label: str, patience: float) -> list[str]:
    """Return the value that is at hand, if one is."""
    with of_part(f"at_hand of {label}", patience):
        answer = at_hand(name)
        if not isinstance(answer, Secret):
            ensure(answer is None, f"{label}: at_hand must return a Secret or None, not {type(answer).__name__}")
            return []
        return [checked(name, answer).reveal()]


async def _many(source: SecretSource, name: str, label: str, patience: float) -> None:
    answers: list[str] = []

    async def ask() -> None:
        answers.append(await _value(source, name, label, patience))

    failed: BaseExceptionGroup[AssertionError] | None = None
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(ask)
    except* AssertionError as group:
        failed = group
    if failed is not None:  # older Python wraps what is raised in ``except*`` once more
        raise AssertionError(f"{label} fails when asked by {_AT_ONCE} at once: {failed.exceptions[0]}") from failed


async def _cancelled(source: SecretSource, name: str) -> None:
    with trio.CancelScope() as scope:
        scope.cancel(reason="the check of a cancelled look-up")
        await source.get(name)


async def _check_unknown(source: SecretSource, unknown: str, label: str, values: Sequence[str], patience: float) -> None:
    with of_part(label, patience):
        try:
            await source.get(unknown)
        except SecretError as error:
            _check_hidden(f"an error of {label}", str(error) + repr(error), values)
        else:
            raise AssertionError(f"{label} has a value for a name that it should not know")


def _check_hidden(where: str, text: str, values: Sequence[str]) -> None:
    ensure(not any(value in text for value in values), f"{where} shows a secret")


def _sample_events() -> list[Event]:
    opened = FlowOpened(
        sandbox=_HOSTILE,
        flow=1,
        target="api.example.com:443",
        server_name="api.example.com",
        decision="relay",
        reason="domain-allowed",
        rule="*.example.com",
        address="1.2.3.4:443",
    )
    denied = FlowClosed(
        sandbox="test",
        flow=2,
        front="connect",
        target=_HOSTILE,
        wire=None,
        server_name=None,
        decision="deny",
        reason="domain-not-allowed",
        rule=None,
        address=None,
        bytes_up=0,
        bytes_down=0,
        requests=0,
        duration=0.0,
        ended="denied",
    )
    request = RequestDone(
        sandbox="test",
        flow=1,
        method="GET",
        host="api.example.com",
        path=_HOSTILE,
        rule=None,
        reason=None,
        status=200,
        bytes_up=0,
        bytes_down=2**40,
        duration=1e-6,
    )
    changed = PolicyChanged(sandbox="test", mode="deny-all", cut=(1, 2), kept=0)
    return [opened, request, denied, changed, Problem(sandbox="test", flow=None, reason="stage-failed", detail=_HOSTILE)]


def check_observer(observer: Observer, *, events: Sequence[Event] = ()) -> None:
    """Check that *observer* takes every kind of event, hostile names in it included, and *events*; twice over.

    It must be a plain function that returns ``None``: it can neither delay nor change a flow, so nothing would await or heed
    anything else.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule.
    """
    observe: object = observer
    # An instance's method may be async where the instance isn't.
    if not callable(observe) or inspect.iscoroutinefunction(observe) or inspect.iscoroutinefunction(observe.__call__):
        raise TypeError("an observer must be a plain function: (event) -> None")
    for event in (*_sample_events(), *events) * 2:
        try:
            answer: object = observe(event)
        except Exception as error:
            raise AssertionError(f"observer raised {type(error).__name__} for a {type(event).__name__}") from error
        ensure(answer is None, f"observer returned {type(answer).__name__} for a {type(event).__name__}; nothing heeds that")
