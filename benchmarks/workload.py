"""What a workload is."""

from __future__ import annotations

__all__ = ["Workload"]

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Sample
from benchmarks.plan import Plan
from benchmarks.rig import Rig
from benchmarks.subjects import Running


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Something to measure.

    Attributes:
        id: what it is called, ``FAMILY variant``.
        about: what one operation is.
        unit: of the figure.
        less_is_better: of the figure.
        most_rounds: more rounds than that would tell nothing more.
        in_quick: whether a quick run has it without being asked.
        standing: whether it measures subjects that stand all the time; else it starts what it measures.
    """

    id: str
    about: str
    unit: str
    less_is_better: bool = False
    most_rounds: int = 1000
    in_quick: bool = True
    standing: bool = False

    @property
    def family(self) -> str:
        return self.id.partition(" ")[0]

    def rows(self, subjects: Sequence[str]) -> Sequence[str]:
        """Return what it measures when *subjects* are chosen."""
        return subjects

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:
        """Measure a row once.

        Raises:
            Unavailable: it can't be measured; the message says why.
        """
        raise NotImplementedError
