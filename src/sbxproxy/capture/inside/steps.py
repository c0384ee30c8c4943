"""What the program says when it can't go on: the step, and the kernel's reason; and what it passes over."""

from __future__ import annotations

__all__ = ["StepError", "passing_over", "step"]

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class StepError(Exception):
    """A step of the confinement failed; nothing of the command was executed.

    Attributes:
        step: what was being done.
        reason: why it failed, in words.
        number: the kernel's error number, or 0.
    """

    def __init__(self, step: str, reason: str, number: int = 0) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.reason = reason
        self.number = number


class step:  # noqa: N801 - reads as a statement
    """Name what the block does: an ``OSError`` in it becomes a ``StepError``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, OSError):
            about = f" ({error.filename})" if error.filename else ""
            number = error.errno or 0
            raise StepError(self.name, f"{error.strerror or os.strerror(number)}{about}", number) from error


class passing_over:  # noqa: N801 - reads as a statement
    """Leave the block without more ado at an error of these kinds."""

    __slots__ = ("kinds",)

    def __init__(self, *kinds: type[OSError]) -> None:
        self.kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        return isinstance(error, self.kinds)
