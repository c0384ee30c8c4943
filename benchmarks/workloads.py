"""Everything that a run can measure, in order."""

from __future__ import annotations

__all__ = ["WORKLOADS", "Workload"]

from benchmarks.alone import ALONE
from benchmarks.fairness import FAIRNESS
from benchmarks.streamed import STREAMED
from benchmarks.workload import Workload

WORKLOADS: tuple[Workload, ...] = (*STREAMED, *FAIRNESS, *ALONE)
