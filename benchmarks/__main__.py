"""``python -m benchmarks [connect|relay] [--rounds N] [--quick] [--out DIR]``, ``python -m benchmarks micro`` or ``… postgres``."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import micro, postgres
from benchmarks.report import markdown, save
from benchmarks.run import UNITS, Plan, run
from benchmarks.subjects import SUBJECTS, install_mitmproxy

_INTERRUPTED = 130


def main() -> int:
    if sys.argv[1:2] == ["micro"]:
        return micro.main(sys.argv[2:])
    if sys.argv[1:2] == ["postgres"]:
        return postgres.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure sbxproxy beside others in one run.")
    parser.add_argument("workload", nargs="?", choices=[*UNITS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--concurrency", type=int, default=32, help="connections at a time in connect")
    parser.add_argument("--quick", action="store_true", help="see that it works: one round of 0.2 s; the figures mean nothing")
    parser.add_argument("--only", action="append", metavar="SUBJECT", choices=[subject.name for subject in SUBJECTS])
    parser.add_argument("--install-mitmproxy", action="store_true", help="from PyPI, into an environment of its own")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0 or options.concurrency < 1:
        parser.error("--rounds, --seconds and --concurrency must be positive")
    plan = Plan(rounds=options.rounds, seconds=options.seconds, concurrency=options.concurrency)
    if options.quick:
        plan = Plan(rounds=1, seconds=0.2, concurrency=8)
    workloads = list(UNITS) if options.workload == "all" else [options.workload]
    subjects = [subject for subject in SUBJECTS if not options.only or subject.name in options.only]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    try:
        if options.install_mitmproxy:
            console.print("installing mitmproxy …")
            try:
                install_mitmproxy()
            except subprocess.CalledProcessError as error:
                console.print(f"mitmproxy can't be installed (pip ended with {error.returncode}); its rows stay empty")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting", total=plan.rounds * len(workloads) * len(subjects))
            begun = False

            def tick(label: str) -> None:
                nonlocal begun
                progress.update(task, description=label, advance=1 if begun else 0)
                begun = True

            tables = run(workloads, plan, tick, subjects)
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return _INTERRUPTED
    paths = save(tables, options.out)
    print(markdown(tables))
    for path in paths:
        console.print(f"written: {path}", style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
