"""Run many sandboxes, one after another and at once, and count what they leave behind: nothing, it should be.

    python -m support.leftovers [--runs 200] [--at-once 20] [--how library|program | --everything]

By the library all are made by one process that lives on, as an embedder's does; by the program each is a ``sbxproxy run``. Temporary
and runtime directories are this run's own, so that what others do on the machine isn't counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

NAMESPACES = ("net", "mnt", "pid", "ipc", "user")

_SCRIPT = """
import socket, sys
try:
    socket.getaddrinfo("left.example", 443)
except OSError:
    pass
try:
    with socket.create_connection(("1.2.3.4", 443), 5) as sock:
        sock.sendall(b"x")
        sock.recv(1)
except OSError:
    pass
sys.exit(7)
"""
COMMAND = [
    "sh",
    "-c",
    'setsid sleep 3600 >/dev/null 2>&1 </dev/null & readlink /proc/self/ns/net; exec "$0" -c "$1"',
    sys.executable,
    _SCRIPT,
]
"""It leaves a process behind, has a connection denied and a name not found, and ends with a code of its own."""


@dataclass
class Census:
    """What there is now of the things that could be left."""

    descriptors: int = 0
    threads: int = 0
    children: list[int] = field(default_factory=list)
    mounts: int = 0
    files: list[str] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)

    @classmethod
    def take(cls, places: list[Path], mark: str) -> Census:
        """Count; *mark* is in the environment of every command."""
        children, marked = _children(), list(_marked(mark.encode()))
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            children=children,
            mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
            files=sorted(str(path) for place in places for path in place.rglob("*")),
            processes=marked,
            namespaces=sorted(_namespaces([*children, *marked])),
            named=_listdir("/run/netns"),
        )


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _children() -> list[int]:
    found = []
    for task in os.listdir("/proc/self/task"):
        found += [int(number) for number in Path(f"/proc/self/task/{task}/children").read_text().split()]
    return found


def _marked(mark: bytes) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if mark in Path(f"/proc/{name}/environ").read_bytes():
                    yield int(name)
            except OSError:
                continue


def _namespaces(processes: list[int]) -> set[str]:
    """Return those that *processes* are in, or that this one holds, other than its own.

    What the kernel calls them is used again at once, so it is no use to remember the names.
    """
    found = set()
    for place in ["/proc/self/fd", *(f"/proc/{number}/ns" for number in processes)]:
        for entry in _listdir(place):
            try:
                found.add(os.readlink(f"{place}/{entry}"))
            except OSError:
                continue
    own = {os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")}
    return {name for name in found - own if name.split(":")[0] in NAMESPACES}


def by_library(runs: int, at_once: int, progress: Callable[[], None]) -> None:
    """Run them in this process."""
    import trio

    import sbxproxy
    from support.embedded import run

    async def one(proxy: sbxproxy.Proxy, number: int) -> None:
        sandbox = proxy.create_sandbox(f"left-{number}", policy={"allow": ["good.example"]})
        try:
            code, output = await run(proxy, sandbox, COMMAND)
        finally:
            await sandbox.aclose()
        _check(code, output)
        progress()

    async def main() -> None:
        proxy = sbxproxy.Proxy()
        slots = trio.Semaphore(at_once)

        async def turn(number: int) -> None:
            async with slots:
                await one(proxy, number)

        async with trio.open_nursery() as outer:
            await outer.start(proxy.run)
            async with trio.open_nursery() as nursery:
                for number in range(runs):
                    nursery.start_soon(turn, number)
            outer.cancel_scope.cancel()

    trio.run(main)


def by_program(runs: int, at_once: int, progress: Callable[[], None]) -> None:
    """Run a program for each."""
    argv = [
        sys.executable,
        "-c",
        "from sbxproxy.cli import main; main()",
        "run",
        "--quiet",
        "--allow",
        "good.example",
        "--",
        *COMMAND,
    ]
    running: list[subprocess.Popen[str]] = []
    for _ in range(runs):
        if len(running) == at_once:
            _finish(running.pop(0))
            progress()
        running.append(
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _finish(process)
        progress()


def _finish(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=120)
    assert errors == "", errors
    _check(process.returncode, output)


def _check(code: int, output: str) -> None:
    assert code == 7, (code, output)
    assert output.startswith("net:["), output
    assert output.strip() != os.readlink("/proc/self/ns/net")


@dataclass
class Report:
    runs: int
    at_once: int
    how: str
    user: int
    seconds: float
    before: Census
    after: Census
    grown: int

    @property
    def left(self) -> dict[str, object]:
        """What is there now that wasn't, by kind; empty if all is well."""
        found: dict[str, object] = {}
        for name in ("children", "files", "processes", "namespaces", "named"):
            more = [one for one in getattr(self.after, name) if one not in getattr(self.before, name)]
            if more:
                found[name] = more
        for name in ("descriptors", "threads", "mounts"):
            more_of = getattr(self.after, name) - getattr(self.before, name)
            if more_of > 0:
                found[name] = more_of
        return found


def measure(runs: int, at_once: int, how: str, show: Callable[[int], None] = lambda _done: None) -> Report:
    """Run one to warm up, then *runs* of which up to *at_once* at the same time, with a census before and after."""
    work = by_library if how == "library" else by_program
    mark = f"SBX_LEFTOVERS={uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="sbx-left-") as base:
        places = [Path(base, name) for name in ("tmp", "run")]
        for place in places:
            place.mkdir(mode=0o700)
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of orphans become children of this process
        os.environ |= {"TMPDIR": str(places[0]), "XDG_RUNTIME_DIR": str(places[1]), **dict([mark.split("=")])}
        tempfile.tempdir = str(places[0])
        work(1, 1, lambda: None)
        before, memory = Census.take(places, mark), _resident()
        done = 0

        def progress() -> None:
            nonlocal done
            done += 1
            show(done)

        started = time.monotonic()
        work(runs, at_once, progress)
        seconds = time.monotonic() - started
        time.sleep(0.2)  # a thread's last moments
        after = Census.take(places, mark)
        return Report(runs, at_once, how, os.geteuid(), seconds, before, after, _resident() - memory)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--how", choices=["library", "program"], default="library")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--everything", action="store_true", help="both ways, one after another and at once, as this user and as another"
    )
    options = parser.parse_args()
    if options.everything:
        sys.exit(_everything(options.runs, max(options.at_once, 20)))

    def show(done: int) -> None:
        if sys.stderr.isatty():
            filled = 40 * done // options.runs
            end = "\n" if done == options.runs else ""
            print(f"\r  [{'#' * filled}{'.' * (40 - filled)}] {done}/{options.runs}", end=end, file=sys.stderr, flush=True)

    report = measure(options.runs, options.at_once, options.how, show)
    if options.json:
        json.dump({"left": report.left, "seconds": report.seconds, "grown": report.grown}, sys.stdout)
        return
    user = "root" if report.user == 0 else f"user {report.user}"
    print(
        f"{user}, by the {report.how}: {report.runs} sandboxes, {report.at_once} at once, in {report.seconds:.1f} s "
        f"({report.runs / report.seconds:.1f} a second); memory grew by {report.grown // 1024} KiB; "
        f"descriptors {report.before.descriptors} before and {report.after.descriptors} after; "
        f"left: {report.left or 'nothing'}"
    )
    sys.exit(1 if report.left else 0)


def _everything(runs: int, at_once: int) -> int:
    """Run this program for each; an exit code."""
    from support.captured import as_user, environment

    failed = 0
    for mode in ("root", "unprivileged") if os.geteuid() == 0 else ("unprivileged",):
        for how, together in (("library", 1), ("library", at_once), ("program", 1), ("program", at_once)):
            count = runs if how == "library" else runs // 4  # a program each takes its time
            argv = [*as_user(mode), "-m", "support.leftovers", f"--runs={count}", f"--at-once={together}", f"--how={how}"]
            failed += subprocess.run(argv, env=environment(), cwd="/").returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    main()
