"""Processes that the benchmarks start: pinned, measured through /proc, and ended for certain with all that they started."""

from __future__ import annotations

__all__ = ["ROOT", "Process", "cpu_seconds", "memory_bytes", "place", "raise_descriptor_limit", "spawn", "tree"]

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_STOP = 10.0
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def place() -> tuple[int | None, int | None]:
    """Return the processor for load and origin, and the one for the subject; both ``None`` where there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[-1]) if len(cpus) > 1 else (None, None)


def raise_descriptor_limit(wanted: int = 131_072) -> int:
    """Let this process and those it starts have *wanted* descriptors, or as many as it may; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    for limit in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            return limit[0]
    return soft


class Process(subprocess.Popen[bytes]):
    """A process that knows when it was started.

    Attributes:
        born: ``time.perf_counter()`` just before.
    """

    born: float = 0.0


def spawn(
    stack: ExitStack,
    argv: Sequence[str],
    *,
    log: Path,
    cpu: int | None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a process, which *stack* ends.

    It has a session of its own, so that Ctrl-C reaches only this process, which then ends the others in order.
    """
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), **(environment or {})}
    pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
    with log.open("ab") as errors, _uninterrupted():
        born = time.perf_counter()
        process = Process(
            [*pin, *argv],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=everything,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        process.born = born
        stack.enter_context(_stopping(process))
    return process


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C until after the block: between starting a process and noting it, it would leave the process behind.

    The handlers are replaced rather than the signals blocked, because a child inherits what is blocked.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda seen, _frame: came.append(seen)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End *process* and its descendants after the block: asked first, then killed.

    Some of them leave the session and, when their parent ends, the tree, so they are noted before.
    """
    try:
        yield
    finally:
        family = tree(process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            for pid, born in family.items():
                if _born(pid) == born:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait()
            _wait_for_end(family)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _wait_for_end(family: Mapping[int, int]) -> None:
    deadline = time.monotonic() + 2
    while any(_born(pid) == born and _state(pid) not in {"Z", "X", ""} for pid, born in family.items()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _fields(pid: int) -> list[str] | None:
    """Return what stands in /proc/PID/stat after the name: index 0 is field 3 of proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _state(pid: int) -> str:
    fields = _fields(pid)
    return fields[0] if fields else ""


def _born(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[19]) if fields else None


def tree(root: int) -> dict[int, int]:
    """Return a process and its descendants, each with the time of its start, which tells it from a later one of that number."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: dict[int, int] = {}
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        born = _born(pid)
        if born is not None:
            found[pid] = born
            waiting += children.get(pid, [])
    return found


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the user and system time that a process, its descendants, and those it has waited for have used (proc(5), 14 to 17)."""
    ticks = 0
    for pid in tree(process.pid):
        fields = _fields(pid)
        if fields:
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def memory_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the resident memory of a process and its descendants; pages that they share count in each."""
    pages = 0
    for pid in tree(process.pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * _PAGE
