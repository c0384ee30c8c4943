"""What the conformance checks share: how one fails, and how a flow and a part's patience are guarded."""

from __future__ import annotations

__all__ = ["PATIENCE", "Unchanged", "ensure", "of_part"]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import trio

from sbxproxy.flow import Flow

PATIENCE = 30.0
"""Seconds that one call of a part may take: the default of ``Limits.stage``, after which it has failed."""


def ensure(condition: object, message: str) -> None:
    """Fail the check with *message* unless *condition* holds; stays in force under ``python -O``."""
    if not condition:
        raise AssertionError(message)


@contextmanager
def of_part(label: str, patience: float = PATIENCE) -> Iterator[None]:
    """Make what a part raises, or a call that takes longer than *patience* seconds, a failure of the check.

    The text of the exception is left out, as the core does: it may quote a secret. It is there as the cause.
    """
    end = trio.current_time() + patience
    try:
        with trio.fail_after(patience):
            yield
        # One that shields itself is not stopped by the deadline.
        ensure(trio.current_time() <= end, f"{label} took longer than {patience:g} s")
    except AssertionError:
        raise
    except trio.TooSlowError as error:
        raise AssertionError(f"{label} took longer than {patience:g} s") from error
    except Exception as error:
        raise AssertionError(f"{label} raised {type(error).__name__}") from error


class Unchanged:
    """Holds a flow against what it was: plugins read it, only the core writes it."""

    _LOOKED_AT = tuple(field.name for field in fields(Flow) if field.name not in {"_scope", "_finished"})

    def __init__(self, flow: Flow) -> None:
        """Note what *flow* is now."""
        self._flow = flow
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        return {name: getattr(self._flow, name) for name in self._LOOKED_AT}

    def verify(self, label: str) -> None:
        """Fail if the flow is no longer what it was."""
        now = self._now()
        changed = [name for name, value in self._before.items() if now[name] != value]
        ensure(not changed, f"{label} wrote to the flow: {', '.join(changed)}")
        ensure(not self._flow.scope.cancel_called, f"{label} cancelled the flow")
        ensure(not self._flow.finished.is_set(), f"{label} set flow.finished")
