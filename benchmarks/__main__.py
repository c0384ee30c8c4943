"""``python -m benchmarks [run|all|setup|document|micro|policy|postgres|capture|startup|soak] …``; without a word, ``run``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import capture, document, micro, policy, postgres, setup
from benchmarks.build import BUILD, CannotBuild
from benchmarks.figures import Figures
from benchmarks.flame import profile
from benchmarks.plan import Plan
from benchmarks.plots import draw
from benchmarks.report import comparison, markdown
from benchmarks.run import run
from benchmarks.soak import main as soak
from benchmarks.streamed import Streamed
from benchmarks.subjects import SUBJECTS, Subject
from benchmarks.workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results"
PASSING = BUILD / "results"
"""Where a part of a run goes, since it isn't what the documentation shows."""

_INTERRUPTED = 130
_PROFILED = 32
_STARTUP = "startup"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code."""
    others = {
        "micro": micro.main,
        "postgres": postgres.main,
        "policy": policy.main,
        "setup": setup.main,
        "document": document.main,
        "soak": soak.main,
        "capture": capture.main,
    }
    if arguments and arguments[0] in others:
        return others[arguments[0]](list(arguments[1:]))
    if _STARTUP in arguments[:1]:
        return _optional(_STARTUP, arguments[1:])
    if arguments and arguments[0] == "all":
        quick = ["--quick"] if "--quick" in arguments else []
        rest = (partial(postgres.main, quick), partial(capture.main, quick), partial(_optional, _STARTUP, quick))
        return main(["run", *arguments[1:]]) or max(one() for one in rest)
    if arguments and arguments[0] == "run":
        arguments = arguments[1:]
    options = _options(arguments)
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        old = Figures.load(options.compare) if options.compare else None
        figures = _run(options, console)
        if options.profile:
            _profile(options, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return _INTERRUPTED
    except (CannotBuild, RuntimeError, ValueError) as error:
        console.print(f"benchmarks: {error}", markup=False, highlight=False)
        return 1
    print(markdown(figures))
    if old is not None:
        print(comparison(figures, old))
    if options.out is not None:
        _write(figures, options, console)
    return 0


def _optional(name: str, arguments: Sequence[str]) -> int:
    """Run a benchmark that not every version has; without it there is nothing to do."""
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        return 0
    code: int = importlib.import_module(f"benchmarks.{name}").main(list(arguments))
    return code


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    families = list(dict.fromkeys(work.family for work in WORKLOADS))
    names = [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks run",
        description="Measure sbxproxy beside other proxies in one interleaved run.",
        epilog=(
            f"Workloads: {', '.join(families)}. Subjects: {', '.join(names)}. "
            "Also: setup, document, micro, policy, postgres, capture, startup, soak."
        ),
    )
    parser.add_argument("--only", metavar="W1b,W3", help="families of workloads, or ids such as 'W1b c32'")
    parser.add_argument("--subjects", metavar="A,B", help="what is measured; default: everything that is installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="one round of 0.4 s, within two minutes; the figures mean little")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="show what changed since that run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write JSON and Markdown there; default: benchmarks/results for a whole run, else build/bench/results",
    )
    parser.add_argument("--name", metavar="NAME", help="of the files; default: run, quick, or the chosen workloads")
    parser.add_argument("--profile", action="store_true", help="then record flame graphs of sbxproxy under W1b, W3 and W3b")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    try:
        options.workloads = _chosen(options.only, {work.id: work for work in WORKLOADS}, families)
        if options.quick and not options.only:
            options.workloads = [work for work in options.workloads if work.in_quick]
        options.chosen = _subjects(options.subjects, names)
    except ValueError as error:
        parser.error(str(error))
    options.plan = (
        Plan(rounds=1, seconds=0.4, quick=True) if options.quick else Plan(rounds=options.rounds, seconds=options.seconds)
    )
    options.name = options.name or (options.only or ("quick" if options.quick else "run")).replace(",", "-").replace(" ", "-")
    whole = not (options.only or options.subjects or options.quick)
    options.out = None if options.no_save else options.out or (RESULTS if whole else PASSING)
    return options


def _chosen(text: str | None, known: dict[str, Workload], families: Sequence[str]) -> list[Workload]:
    if text is None:
        return list(known.values())
    words: list[str] = []
    for part in text.split(","):
        # "idle 1,000" has a comma of its own.
        whole = f"{words[-1]},{part.strip()}" if words else ""
        if whole in known:
            words[-1] = whole
        else:
            words.append(part.strip())
    for word in words:
        if word not in known and word not in families:
            raise ValueError(f"--only: no workload {word!r}; there are {', '.join(families)}, and {', '.join(known)}")
    return [work for work in known.values() if work.id in words or work.family in words]


def _subjects(text: str | None, names: Sequence[str]) -> list[Subject]:
    words = [word.strip().lower() for word in text.split(",")] if text else [name.lower() for name in names]
    for word in words:
        if word not in [name.lower() for name in names]:
            raise ValueError(f"--subjects: no subject {word!r}; there are {', '.join(names)}")
    return [subject for subject in SUBJECTS if subject.name.lower() in words]


def _run(options: argparse.Namespace, console: Console) -> Figures:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting")

        def tick(label: str, total: int) -> None:
            progress.update(task, description=label, total=total, advance=1)

        return run(options.workloads, options.chosen, options.plan, tick, command)


def _profile(options: argparse.Namespace, console: Console) -> None:
    for work in options.workloads:
        if isinstance(work, Streamed) and work.family in {"W1b", "W3", "W3b"} and work.concurrency == _PROFILED:
            path = profile(work, (options.out or PASSING) / f"{work.id.replace(' ', '-')}-flame.svg")
            console.print(f"written: {path}", style="dim", highlight=False)


def _write(figures: Figures, options: argparse.Namespace, console: Console) -> None:
    data = options.out / f"{options.name}.json"
    figures.save(data)
    text = data.with_suffix(".md")
    text.write_text(markdown(figures))
    plot = draw(figures, data.with_suffix(".svg"))
    if options.out.resolve() == RESULTS and options.name == "run":
        document.write(figures)
    for path in (data, text, *([plot] if plot else [])):
        console.print(f"written: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
