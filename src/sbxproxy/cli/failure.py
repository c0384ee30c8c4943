"""An error that ends the program with one sentence and an exit code."""

from __future__ import annotations

__all__ = ["NOT_HELD", "OWN_FAILURE", "Failure"]

import click

OWN_FAILURE = 125
"""The exit code where sbxproxy itself failed, and not the command that it was to run."""

NOT_HELD = (
    "holds nobody back: a program that ignores proxy variables, opens sockets of its own, asks another resolver or "
    "speaks UDP is not stopped, and it can see and signal sbxproxy itself"
)
"""What is to be said of ``--capture=env``."""


class Failure(click.ClickException):
    """Printed as ``Error: …``, without a traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Take the sentence and the exit code."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable there, read from the instance
