"""Which parts fill the slots, checked when it is put together, and the one way a part is called.

A part that raises or takes too long has failed, and a failed part denies: that is why no part is called but through
``run_stage``.
"""

from __future__ import annotations

__all__ = ["Pipeline", "run_stage"]

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import trio

from sbxproxy.errors import SbxproxyError, StageError
from sbxproxy.events import Observer
from sbxproxy.stages.slots import (
    Handler,
    PolicyStage,
    Terminator,
    TransformFactory,
    check_handler,
    check_observer,
    check_policy,
    check_sniffer,
    check_terminator,
    check_transform,
)
from sbxproxy.wire.result import Sniffer

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The parts beside the built-in ones; each is checked here, so that a misspelt method is an error at start.

    Attributes:
        sniffers: asked after the built-in ones, in order.
        policies: narrow what a sandbox's policy allows, in order; the first that objects decides.
        terminator: instead of the built-in TLS terminator.
        transforms: what a policy's ``{"plugin": NAME, "config": {…}}`` may name: a class, or a function that returns a transform.
        handlers: what a policy stage's ``Handle(NAME)`` may name.
        observers: told of every event of every sandbox.

    Raises:
        TypeError: a part doesn't fit its slot; the message says what does.
    """

    sniffers: Sequence[Sniffer] = ()
    policies: Sequence[PolicyStage] = ()
    terminator: Terminator | None = None
    transforms: Mapping[str, TransformFactory] = field(default_factory=dict)
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    observers: Sequence[Observer] = ()

    def __post_init__(self) -> None:
        """Check every part, of copies: a list that its author still holds must not change the pipeline later."""
        for slot in ("sniffers", "policies", "observers"):
            object.__setattr__(self, slot, tuple(getattr(self, slot)))
        for slot in ("transforms", "handlers"):
            object.__setattr__(self, slot, dict(getattr(self, slot)))
        for sniffer in self.sniffers:
            check_sniffer(sniffer)
        for policy in self.policies:
            check_policy(policy)
        if self.terminator is not None:
            check_terminator(self.terminator)
        for name, factory in self.transforms.items():
            if isinstance(factory, type):
                check_transform(factory)
            elif inspect.iscoroutinefunction(factory) or not callable(factory):
                raise TypeError(f"transform {name!r} must be a class, or a function that returns a transform")
        for handler in self.handlers.values():
            check_handler(handler)
        for observer in self.observers:
            check_observer(observer)


async def run_stage(label: str, limit: float, function: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a part, for at most *limit* seconds.

    Raises:
        StageError: it raised something or took too long. The message names the part and the kind of failure only, since an
            exception's text may quote a secret.
        SbxproxyError: errors of this package's own kinds pass: parts raise them on purpose.
    """
    try:
        with trio.move_on_after(limit):
            return await function(*args, **kwargs)
        failure = f"took longer than {limit:g} s"
    except SbxproxyError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, the part has failed
        failure = f"failed with {type(error).__name__}"
    # Out here it has no context: whoever follows that, or logs it, would have the text of the part's exception.
    raise StageError(f"{label} {failure}")
