"""Runs rounds: each round measures every subject once, so that what the machine does meanwhile hits them alike."""

from __future__ import annotations

__all__ = ["Plan", "Row", "Table", "run"]

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.load import HELLO, Load, Measured
from benchmarks.subjects import SUBJECTS, Running, Subject, Unavailable, cpu_seconds, spawn

UNITS = {"connect": "tunnels/s", "relay": "Gbit/s"}
CPU_UNITS = {"connect": "CPU µs/tunnel", "relay": "CPU s/GiB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: measurements of each subject.
        seconds: length of one.
        concurrency: connections at a time in ``connect``, over all load processes.
    """

    rounds: int = 5
    seconds: float = 3.0
    concurrency: int = 32


@dataclass(slots=True)
class Row:
    """One subject's figures in a table.

    Attributes:
        subject: its name.
        samples: one figure per round, in the table's unit.
        cpu: processor time per operation, one figure per round; empty where there is no process.
        failures: operations that failed.
        missing: why there are no figures.
    """

    subject: str
    samples: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    failures: int = 0
    missing: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None


@dataclass(slots=True)
class Table:
    """The figures of one workload."""

    workload: str
    plan: Plan
    rows: list[Row]

    @property
    def unit(self) -> str:
        return UNITS[self.workload]

    def ratio(self, row: Row) -> float | None:
        """Return a row's median against that of ``direct``."""
        direct = next((other.median for other in self.rows if other.subject == "direct"), None)
        return row.median / direct if row.median and direct else None


def run(workloads: Sequence[str], plan: Plan, tick: Callable[[str], None], subjects: Sequence[Subject] = SUBJECTS) -> list[Table]:
    """Start every subject, measure *workloads* in rounds, and end everything, Ctrl-C included.

    Args:
        workloads: ``connect``, ``relay``.
        plan: how much.
        tick: called before each measurement with what it is.
        subjects: what to measure.
    """
    load_cpus, subject_cpu = _placement()
    tables = [Table(workload, plan, [Row(subject.name) for subject in subjects]) for workload in workloads]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sbxproxy-bench-")))
        origin = spawn(
            stack,
            [sys.executable, "-m", "benchmarks.origin", str(len(HELLO))],
            log=directory / "origin.log",
            cpu=load_cpus[0] if load_cpus else None,
            stdin=subprocess.PIPE,
        )
        assert origin.stdout is not None
        small, bulk = map(int, origin.stdout.readline().split())
        running: dict[str, Running | str] = {}
        for subject in subjects:
            try:
                running[subject.name] = subject.start(stack, directory, subject_cpu)
            except Unavailable as error:
                running[subject.name] = str(error)
        for number in range(plan.rounds):
            for table in tables:
                for row in table.rows:
                    started_or_why = running[row.subject]
                    tick(f"round {number + 1}: {table.workload}, {row.subject}")
                    if isinstance(started_or_why, str):
                        row.missing = started_or_why
                    else:
                        port = small if table.workload == "connect" else bulk
                        _measure(table, row, started_or_why, origin=port, cpus=load_cpus, directory=directory)
    return tables


def _placement() -> tuple[list[int], int | None]:
    """Keep the load and the origin off the subject's processor, where there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[:-1], cpus[-1]) if len(cpus) > 1 else ([], None)


def _measure(table: Table, row: Row, subject: Running, *, origin: int, cpus: Sequence[int], directory: Path) -> None:
    workload, plan = table.workload, table.plan
    processes = max(1, min(len(cpus), 4)) if workload == "connect" else 1
    load = Load(
        mode=workload,
        origin=origin,
        proxy=subject.port,
        seconds=plan.seconds,
        concurrency=max(1, plan.concurrency // processes),
    )
    before = cpu_seconds(subject.process)
    results = _load(load, processes, cpus, directory)
    after = cpu_seconds(subject.process)
    row.failures += sum(result.failures for result in results)
    count = sum(result.count for result in results)
    rate = sum(result.count / result.seconds for result in results)
    row.samples.append(rate if workload == "connect" else rate * 8 / 1e9)
    if before is not None and after is not None and count:
        row.cpu.append((after - before) / count * (1e6 if workload == "connect" else 2**30))


def _load(load: Load, processes: int, cpus: Sequence[int], directory: Path) -> list[Measured]:
    with ExitStack() as stack:
        argv = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(load))]
        started = [
            spawn(stack, argv, log=directory / "load.log", cpu=cpus[index % len(cpus)] if cpus else None)
            for index in range(processes)
        ]
        outputs = [process.communicate(timeout=load.seconds * 3 + 60)[0] for process in started]
        return [Measured(**json.loads(output)) for output in outputs]
