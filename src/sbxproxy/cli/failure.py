"""An error that ends the program with one sentence and an exit code."""

from __future__ import annotations

__all__ = ["Failure"]

import click


class Failure(click.ClickException):
    """Printed as ``Error: …``, without a traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Take the sentence and the exit code."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable there, read from the instance
