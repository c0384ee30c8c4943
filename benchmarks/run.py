"""Runs rounds: each measures every subject once in every workload, so that what the machine does meanwhile hits them alike."""

from __future__ import annotations

__all__ = ["run"]

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.check import Wrong, check_denied, check_terminated, check_tunnel
from benchmarks.figures import Figures, Row
from benchmarks.plan import Plan
from benchmarks.process import ROOT
from benchmarks.rig import Rig, open_rig
from benchmarks.streamed import Streamed
from benchmarks.subjects import Running, Subject, Unavailable
from benchmarks.workload import Workload

_SETTLE = 0.1


def run(
    workloads: Sequence[Workload], subjects: Sequence[Subject], plan: Plan, tick: Callable[[str, int], None], command: str
) -> Figures:
    """Start every subject, look whether it does what it should, measure in rounds, and end everything, Ctrl-C included.

    Args:
        workloads: what to measure.
        subjects: whom.
        plan: how much.
        tick: called before each step with what it is, and how many there are.
        command: told in the figures.

    Raises:
        CannotBuild: the load generator can't be compiled.
    """
    names = [subject.name for subject in subjects]
    rows = [Row(work.id, name, work.unit, work.less_is_better) for work in workloads for name in work.rows(names)]
    versions = {subject.name: subject.version() for subject in subjects}
    told = {name: "missing" if version is None else version for name, version in versions.items()}
    figures = Figures(machine(), told, command, asdict(plan), rows, {work.id: work.about for work in workloads})
    standing = subjects if any(work.standing for work in workloads) else []
    total = len(standing) + sum(min(plan.rounds, work.most_rounds) * len(work.rows(names)) for work in workloads)
    with ExitStack() as stack:
        rig = stack.enter_context(open_rig())
        running: dict[str, Running | str] = {}
        for subject in standing:
            tick(f"starting {subject.name}", total)
            running[subject.name] = _start(stack, rig, subject)
        wrong = {name: _check(rig, one, workloads) for name, one in running.items() if isinstance(one, Running)}
        for number in range(plan.rounds):
            for work in workloads:
                for row in figures.of(work.id) if number < work.most_rounds else ():
                    tick(f"round {number + 1}: {work.id}, {row.subject}", total)
                    if not row.missing:
                        _measure(rig, work, row, running.get(row.subject), wrong, plan)
    return figures


def _start(stack: ExitStack, rig: Rig, subject: Subject) -> Running | str:
    try:
        return subject.start(stack, rig)
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        return str(error)


def _check(rig: Rig, running: Running, workloads: Sequence[Workload]) -> dict[bool, str]:
    """Return what is wrong with a subject's tunnels (``False``) and terminated connections (``True``)."""
    found = {}
    for terminated in {isinstance(work, Streamed) and work.terminated for work in workloads if work.standing}:
        try:
            if not terminated:
                check_tunnel(rig, running)
                check_denied(running)
            elif running.authority is not None:
                check_terminated(rig, running)
        except Wrong as error:
            found[terminated] = f"not measured, since it does something else: {error}"
    return found


def _measure(
    rig: Rig, work: Workload, row: Row, running: Running | str | None, wrong: dict[str, dict[bool, str]], plan: Plan
) -> None:
    if work.standing:
        terminated = isinstance(work, Streamed) and work.terminated
        row.missing = running if isinstance(running, str) else wrong[row.subject].get(terminated, "")
    if row.missing or isinstance(running, str):
        return
    time.sleep(_SETTLE)
    try:
        row.add(work.measure(rig, row.subject, running, plan))
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        row.missing = str(error)


def machine() -> dict[str, Any]:
    """Return what tells this machine and moment from others."""
    model = next((line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), "")
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "revision": revision,
        "load average": list(os.getloadavg()),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
