"""What a run found, as values: rows of samples, and how they go to JSON and come back."""

from __future__ import annotations

__all__ = ["Figures", "Row", "Sample"]

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement of one subject.

    Attributes:
        value: in the workload's unit.
        cpu: processor time per operation (microseconds; seconds per GiB where bytes are counted); ``None`` without a process.
        p50: median length of an operation in microseconds; 0 where they have none.
        p99: the same for the slowest hundredth.
        failures: operations that failed.
        why: what failed first.
    """

    value: float
    cpu: float | None = None
    p50: float = 0.0
    p99: float = 0.0
    failures: int = 0
    why: str = ""


@dataclass(slots=True)
class Row:
    """One subject's figures in one workload: a figure per round.

    Attributes:
        workload: its id.
        subject: its name.
        unit: of ``samples``.
        less_is_better: of ``samples``.
        missing: why there are no figures.
    """

    workload: str
    subject: str
    unit: str
    less_is_better: bool = False
    samples: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    failures: int = 0
    why: str = ""
    missing: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def median_cpu(self) -> float | None:
        return statistics.median(self.cpu) if self.cpu else None

    def add(self, sample: Sample) -> None:
        """Add a round's figures."""
        self.failures += sample.failures
        self.why = self.why or sample.why
        if sample.failures and not sample.value:
            self.missing = f"failed: {sample.why}"
            return
        self.samples.append(sample.value)
        if sample.cpu is not None:
            self.cpu.append(sample.cpu)
        if sample.p50:
            self.p50.append(sample.p50)
            self.p99.append(sample.p99)


@dataclass(slots=True)
class Figures:
    """Everything of one run.

    Attributes:
        machine: what it ran on, and when.
        versions: of what was measured; what is missing says so.
        command: that made it.
        plan: rounds and seconds.
        rows: by workload, then by subject, in order.
        about: what one operation is, by workload.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    plan: dict[str, Any]
    rows: list[Row]
    about: dict[str, str] = field(default_factory=dict)

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(row.workload for row in self.rows))

    def of(self, workload: str) -> list[Row]:
        return [row for row in self.rows if row.workload == workload]

    def median(self, workload: str, subject: str) -> float | None:
        """Return a median, ``None`` if there is none."""
        return next((row.median for row in self.rows if (row.workload, row.subject) == (workload, subject)), None)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Figures:
        """Read what ``save`` wrote.

        Raises:
            ValueError: the file is something else.
        """
        try:
            raw = json.loads(path.read_text())
            return cls(**{**raw, "rows": [Row(**row) for row in raw["rows"]]})
        except (OSError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not the figures of a run: {error}") from None
