"""``python -m benchmarks soak``: minutes of everything at once; fails if something grows, leaks, complains or gets through."""

from __future__ import annotations

__all__ = ["State", "faults", "main"]

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from benchmarks.process import spawn
from benchmarks.soak.places import serve_names, start_database
from benchmarks.soak.server import KEEP_ALIVE, Setup
from benchmarks.soak.visits import VISITS, Outcome, Site, Visit, client_context, visit
from sbxproxy.cli.origin import API, DATABASE, FILES, Origin

FLIP = 2.0
"""Seconds between two policies."""

SAMPLE = 2.0
"""Seconds between two looks at the figures."""

GROWTH = 0.05
SLACK = 8 << 20
"""How much more memory the last fifth may hold than the second: a twentieth and 8 MiB, for what an allocator keeps."""

_SECRET = "soak-secret-value"
_NAMES = "*.names.soak.example"
_USER_DEFINED: dict[str, Any] = {
    "allow": {
        FILES: [],
        API: [{"transform": [{"headers": {"authorization": "Bearer ${secret:token}"}}]}],
        DATABASE: [],
        _NAMES: [],
    }
}

_ALL = {"relayed", "inspected", "postgres", "dns"}
POLICIES: dict[str, tuple[Any, set[str], set[str]]] = {
    "user-defined": (_USER_DEFINED, _ALL, set()),
    "one domain": ({"allow": [FILES]}, {"relayed"}, _ALL - {"relayed"}),
    "deny-all": ("deny-all", set(), _ALL),
    "allow-all": ("allow-all", {"relayed", "postgres", "dns"}, set()),
}
"""Each policy, the visits that must succeed while it is in force, and those that must be denied."""


@dataclass(slots=True)
class State:
    """What is going on.

    Attributes:
        policy: the name of the policy in force; empty while it is being changed.
        generation: changes with each policy, twice.
        counts: outcomes by visit.
        wrong: what must not have happened, in words.
        samples: figures of the server, with the seconds since the start.
        flips: policies put in force.
        cut: flows cut by that.
    """

    policy: str = ""
    generation: int = 0
    counts: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    flips: int = 0
    cut: int = 0


class Ended(Exception):  # noqa: N818 - a state
    """The proxy's process ended by itself."""


class Server:
    """The process with the proxy, asked by lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
        self._out = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        self._rest = b""
        self._lock = trio.Lock()

    async def line(self) -> dict[str, int]:
        """Read a line."""
        while b"\n" not in self._rest:
            chunk = await self._out.receive_some(65536)
            if not chunk:
                raise Ended
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, int] = json.loads(line)
        return answer

    async def ask(self, text: str) -> dict[str, int]:
        """Send a line and read one."""
        async with self._lock:
            await self._in.send_all(text.encode() + b"\n")
            return await self.line()


def main(arguments: Sequence[str]) -> int:
    """Soak, print what came of it, and tell by the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the visitors' choices; printed if not given")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    console = Console()
    console.print(f"soak: {options.minutes:g} minutes, seed {seed}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sbxproxy-soak-")))
        found: tuple[State, dict[str, int], dict[str, int]] | None = None
        code = 1
        try:
            found = trio.run(_soak, stack, directory, options.minutes * 60, seed, console)
        except* Ended:
            console.print("[red]the proxy ended[/red]")
            console.print((directory / "server.log").read_text(errors="replace"), markup=False)
        except* KeyboardInterrupt:
            console.print("stopped")
            code = 130
        if found is None:
            return code
        state, last, baseline = found
        stderr = (directory / "server.log").read_text(errors="replace")
    found_faults = faults(state, baseline, last, stderr)
    _print(state, baseline, last, found_faults, console)
    return 1 if found_faults else 0


async def _soak(
    stack: ExitStack, directory: Path, seconds: float, seed: int, console: Console
) -> tuple[State, dict[str, int], dict[str, int]]:
    origin = Origin(directory)
    state = State()
    async with trio.open_nursery() as nursery:
        await nursery.start(origin.serve)
        nameserver = await nursery.start(serve_names)
        database = await trio.to_thread.run_sync(start_database, stack, directory / "database", origin.chain.read_bytes())
        setup = Setup(
            names=[API, FILES, DATABASE],
            upstream_ca=str(origin.certificate),
            authority=str(directory / "sandbox.pem"),
            events=str(directory / "events.jsonl"),
            nameserver=nameserver,
            secret=_SECRET,
        )
        argv = [sys.executable, "-X", "dev", "-m", "benchmarks.soak.server", json.dumps(asdict(setup))]
        server = Server(spawn(stack, argv, log=directory / "server.log", cpu=None, stdin=subprocess.PIPE))
        ports = await server.line()
        site = Site(
            proxy=ports["proxy"],
            dns=ports["dns"],
            origin=origin.port,
            database=database,
            relayed=FILES,
            inspected=API,
            database_name=DATABASE,
            origin_tls=client_context(str(origin.certificate)),
            sandbox_tls=client_context(setup.authority),
        )
        for name in POLICIES:  # what the first of each kind makes stays
            await _put(server, state, name)
            for what, _ in VISITS.values():
                await visit(what, site, random.Random(seed))
        await _quiet(server)
        baseline = await server.ask("?")
        state.counts.clear()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as visitors:
                visitors.start_soon(_flip, server, state, random.Random(seed), seconds)
                visitors.start_soon(_watch, server, state, seconds, console)
                for name, (what, many) in VISITS.items():
                    for number in range(many):
                        visitors.start_soon(_go_on, name, what, site, state, random.Random(f"{seed} {name} {number}"))
        await _quiet(server)
        last = await server.ask("?")
        nursery.cancel_scope.cancel(reason="the soak is over")
    return state, last, baseline


async def _quiet(server: Server) -> None:
    """Wait until everything of the visitors is gone, idle upstream connections included."""
    await trio.sleep(KEEP_ALIVE * 1.5)
    with trio.move_on_after(30):
        while (await server.ask("?"))["flows"]:
            await trio.sleep(0.5)
    await trio.sleep(0.5)


async def _put(server: Server, state: State, name: str) -> None:
    state.policy, state.generation = "", state.generation + 1
    answer = await server.ask(json.dumps(POLICIES[name][0]))
    state.policy, state.generation = name, state.generation + 1
    state.flips += 1
    state.cut += answer["cut"]


async def _flip(server: Server, state: State, chance: random.Random, seconds: float) -> None:
    """Put each policy in force once, and then any; a short soak has shorter times for them."""
    interval = min(FLIP, seconds / len(POLICIES) / 2)
    for name in POLICIES:
        await _put(server, state, name)
        await trio.sleep(interval)
    while True:
        await _put(server, state, chance.choice([name for name in POLICIES if name != state.policy]))
        await trio.sleep(interval)


async def _watch(server: Server, state: State, seconds: float, console: Console) -> None:
    started = time.monotonic()
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("soak", total=seconds, figures="")
        while True:
            figures = await server.ask("?")
            passed = time.monotonic() - started
            state.samples.append({"at": passed, **figures})
            shown = f"{figures['memory'] >> 20} MiB, {figures['descriptors']} fds, {figures['tasks']} tasks, {state.policy}"
            progress.update(task, completed=passed, figures=shown)
            await trio.sleep(SAMPLE)


async def _go_on(name: str, what: Visit, site: Site, state: State, chance: random.Random) -> None:
    while True:
        generation, policy = state.generation, state.policy
        outcome = await visit(what, site, chance)
        state.counts[name, outcome] += 1
        if generation == state.generation and policy:
            _, allowed, denied = POLICIES[policy]
            if name in denied and outcome is Outcome.DONE:
                state.wrong.append(f"{name} got through under {policy}")
            if name in allowed and outcome in {Outcome.DENIED, Outcome.BROKEN}:
                state.wrong.append(f"{name} was {outcome.value} under {policy}")
        await trio.sleep(chance.uniform(0, 0.05 if outcome is Outcome.DONE else 0.2))


def faults(state: State, baseline: dict[str, int], last: dict[str, int], stderr: str) -> list[str]:
    """Say what was wrong with a soak.

    Args:
        state: what went on.
        baseline: the proxy's figures before, when it had been used and was at rest.
        last: its figures afterwards, at rest again.
        stderr: what it wrote there.
    """
    found = [f"{text} ({count} times)" for text, count in Counter(state.wrong).most_common()]
    found += [f"nothing came of {name}" for name in _ALL if name != "postgres" and not state.counts[name, Outcome.DONE]]
    if stderr:
        found.append(f"the proxy wrote to standard error: {stderr.strip().splitlines()[-1][:200]}")
    found += [f"{last[name]} {name} at the end, {baseline[name]} at the start" for name in ("descriptors", "tasks", "flows")
               if last[name] > baseline[name]]  # fmt: skip
    early, late = _fifth(state, 1), _fifth(state, 4)
    if early and late and late > early * (1 + GROWTH) + SLACK:
        found.append(f"memory grew from {early / 2**20:.1f} to {late / 2**20:.1f} MiB")
    return found


def _fifth(state: State, number: int) -> float:
    """Return the mean memory in the *number*-th fifth of the time, in bytes."""
    if not state.samples:
        return 0.0
    length = state.samples[-1]["at"] / 5
    memory = [sample["memory"] for sample in state.samples if number * length <= sample["at"] <= (number + 1) * length]
    return sum(memory) / len(memory) if memory else 0.0


def _print(state: State, baseline: dict[str, int], last: dict[str, int], faults: list[str], console: Console) -> None:
    visits = Table("visit", *(outcome.value for outcome in Outcome), title="Visits")
    for name in VISITS:
        visits.add_row(name, *(f"{state.counts[name, outcome]:,}" for outcome in Outcome))
    console.print(visits)
    figures = Table(
        "figure", "at the start", "least", "most", "at the end", title=f"{state.flips} policies, {state.cut:,} flows cut"
    )
    for name in ("memory", "descriptors", "tasks", "flows"):
        values = [sample[name] for sample in state.samples]
        row = (baseline[name], min(values), max(values), last[name])
        figures.add_row(name, *(f"{value / 2**20:.1f} MiB" if name == "memory" else f"{value:.0f}" for value in row))
    console.print(figures)
    console.print(
        f"memory in the second fifth {_fifth(state, 1) / 2**20:.1f} MiB, in the last {_fifth(state, 4) / 2**20:.1f} MiB"
    )
    for fault in faults:
        console.print(f"[red]{fault}[/red]")
    console.print("[red]failed[/red]" if faults else "[green]flat, silent, and nothing got through[/green]")
