"""``python -m benchmarks startup [--quick]``: how long the program takes to start, beside the interpreter that it starts with.

One command after another, in turns, so that whatever else the machine does meets all alike. Byte code is written before the first turn,
to a directory of the benchmark's own, as an installed package has it.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

_PROGRAM = [sys.executable, "-c", "from sbxproxy.cli import main; main()"]
_RULE = '{"allow": {"api.bench.example": [{"transform": [{"headers": {"authorization": "Bearer ${secret:token}"}}]}]}}'


@dataclass(slots=True)
class Row:
    """What one command took.

    Attributes:
        what: the command, in words.
        start: runs it once, to the moment that counts; returns what of its end is still to be done.
        wall: milliseconds to that moment, one figure a round.
        cpu: milliseconds of processor time of it and all that it has started, one figure a round.
    """

    what: str
    start: Callable[[Mapping[str, str]], Callable[[], None]]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, and save it as JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="see that it works: one round, nothing is saved")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="sbxproxy-bench-") as directory, Progress(transient=True) as progress:
        rows = _rows(Path(directory))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {"PYTHONPYCACHEPREFIX": f"{directory}/bytecode", "BENCH_TOKEN": "none"}
        task = progress.add_task("startup", total=(rounds + 1) * len(rows))
        for turn in range(rounds + 1):
            for row in rows:
                wall, cpu = _once(row, environment)
                if turn:  # the first one writes byte code
                    row.wall.append(wall)
                    row.cpu.append(cpu)
                progress.advance(task)
    _show(rows)
    if not options.quick:
        _save(rows, options.out)
    return 0


def _rows(directory: Path) -> list[Row]:
    policy = directory / "policy.json"
    policy.write_text(_RULE)
    run = [*_PROGRAM, "run", "--quiet"]
    rules = ["--policy", str(policy), "--secret", "token=env:BENCH_TOKEN"]
    return [
        Row("python -c pass", _to_its_end([sys.executable, "-c", "pass"])),
        Row("sbxproxy --version", _to_its_end([*_PROGRAM, "--version"])),
        Row("sbxproxy run --policy deny-all -- true", _to_its_end([*run, "--policy", "deny-all", "--", "true"])),
        Row(
            "the same, to the command's first word",
            _to_its_first_line([*run, "--policy", "deny-all", "--", "sh", "-c", "echo; exec sleep 60"]),
        ),
        Row(
            "sbxproxy run --capture=env --policy deny-all -- true",
            _to_its_end([*run, "--capture", "env", "--policy", "deny-all", "--", "true"]),
        ),
        Row("sbxproxy run with a rule and a secret -- true", _to_its_end([*run, *rules, "--", "true"])),
        Row(
            "sbxproxy serve, to listening",
            _to_its_first_line(
                [*_PROGRAM, "serve", "--quiet", "--policy", "deny-all", "--listen", "127.0.0.1:0", "--ready-fd", "1"]
            ),
        ),
    ]


def _to_its_end(argv: Sequence[str]) -> Callable[[Mapping[str, str]], Callable[[], None]]:
    def start(environment: Mapping[str, str]) -> Callable[[], None]:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"{argv}: exit code {done.returncode}: {done.stderr.decode()}")
        return lambda: None

    return start


def _to_its_first_line(argv: Sequence[str]) -> Callable[[Mapping[str, str]], Callable[[], None]]:
    def start(environment: Mapping[str, str]) -> Callable[[], None]:
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        said = process.stdout
        assert said is not None
        line = said.readline()

        def end() -> None:
            process.terminate()
            process.wait(20)
            said.close()

        if not line:
            end()
            raise SystemExit(f"{argv}: it ended before it said anything")
        return end

    return start


def _once(row: Row, environment: Mapping[str, str]) -> tuple[float, float]:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    end = row.start(environment)
    wall = time.perf_counter() - begun
    end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1000, cpu * 1000


_HEADS = ("command", "ms: median (least to most)", "over the interpreter: median, least", "CPU ms")


def _cells(row: Row, first: Row) -> list[str]:
    over = f"{statistics.median(row.wall) - statistics.median(first.wall):.0f}, {min(row.wall) - min(first.wall):.0f}"
    wall = f"{statistics.median(row.wall):.0f} ({min(row.wall):.0f} to {max(row.wall):.0f})"
    return [row.what, wall, "–" if row is first else over, f"{statistics.median(row.cpu):.0f}"]  # noqa: RUF001 - a dash is meant


def _show(rows: list[Row]) -> None:
    table = Table(*_HEADS, title="start-up; CPU is that of all processes, to their end")
    for row in rows:
        table.add_row(*_cells(row, rows[0]))
    Console().print(table)


def _save(rows: list[Row], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    document = {"rows": [{"what": row.what, "wall": row.wall, "cpu": row.cpu} for row in rows]}
    (directory / "startup.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [f"| {' | '.join(_HEADS)} |", "|---|--:|--:|--:|", *(f"| {' | '.join(_cells(row, rows[0]))} |" for row in rows)]
    (directory / "startup.md").write_text("\n".join(lines) + "\n")
