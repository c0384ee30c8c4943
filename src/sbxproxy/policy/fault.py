"""What is wrong with one value of a policy document, before anyone knows where it stands."""

from __future__ import annotations

__all__ = ["REDACTED", "Fault"]

REDACTED = "<redacted>"
"""Stands for header values and plugin options wherever a policy is shown; a policy that holds it is
refused."""


class Fault(ValueError):  # noqa: N818 - not an error yet, until it has a place
    """A value is not acceptable; whoever knows its place makes a ``PolicyProblem`` of it.

    Attributes:
        problem: what is wrong, without the value.
        expected: what would be right.
        within: where inside the value, in the notation of places; mostly empty.
    """

    def __init__(self, problem: str, expected: str = "", *, within: str = "") -> None:
        """Take texts that never quote a value that may be secret."""
        super().__init__(problem)
        self.problem = problem
        self.expected = expected
        self.within = within
