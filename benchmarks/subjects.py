"""What is measured: each subject is a process of its own, started once, waited for until it is ready, and ended for certain."""

from __future__ import annotations

__all__ = ["SUBJECTS", "Running", "Subject", "Unavailable", "cpu_seconds", "install_mitmproxy", "spawn"]

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import NAME

ROOT = Path(__file__).resolve().parent.parent
MITMPROXY = ROOT / ".venv" / "bench-mitmproxy"
_START = 30.0
_STOP = 10.0
_TICK = os.sysconf("SC_CLK_TCK")


class Unavailable(Exception):  # noqa: N818 - a state, shown in the table
    """Why a subject has no figures."""


@dataclass(frozen=True, slots=True)
class Running:
    """A subject that takes connections: its port (``None``: go straight to the origin), and its process."""

    port: int | None
    process: subprocess.Popen[bytes] | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A name for the table, and what starts it.

    ``start`` is given the stack that ends the process, a scratch directory, and the CPU to stay on; it raises ``Unavailable``.
    """

    name: str
    start: Callable[[ExitStack, Path, int | None], Running]


def spawn(
    stack: ExitStack,
    argv: Sequence[str],
    *,
    log: Path,
    cpu: int | None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process, which *stack* ends.

    It has a session of its own, so that Ctrl-C reaches only this process, which then ends the others in order.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with log.open("ab") as errors, _uninterrupted():
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        stack.enter_context(stopping(process))
    if cpu is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, {cpu})
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
def stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End *process* after the block: asked first, then killed; nothing of its session stays."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def cpu_seconds(process: subprocess.Popen[bytes] | None) -> float | None:
    """Return the user and system time that a process has used (proc(5), fields 14 and 15); ``None`` where there is none."""
    if process is None:
        return None
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICK


def _first_line(process: subprocess.Popen[bytes], what: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise Unavailable(f"{what} did not start")
    return line


def _start_direct(_stack: ExitStack, _directory: Path, _cpu: int | None) -> Running:
    return Running(None, None)


def _start_naive(stack: ExitStack, directory: Path, cpu: int | None) -> Running:
    process = spawn(stack, [sys.executable, "-m", "benchmarks.naive"], log=directory / "naive.log", cpu=cpu)
    return Running(int(_first_line(process, "the naive relay")), process)


def _start_sbxproxy(stack: ExitStack, directory: Path, cpu: int | None) -> Running:
    """Start what users start, as they would: an allow list of domains, events written to a file."""
    read, write = os.pipe()
    options = ["--allow", NAME, "--resolve", f"{NAME}:127.0.0.1", "--private-network", "127.0.0.0/8"]
    extra = [option for index in range(1000) for option in ("--allow", f"other{index}.example")]
    command = [sys.executable, "-c", "from sbxproxy.cli import main; main()", "serve", "--listen", "127.0.0.1:0", "--quiet"]
    argv = [*command, *options, *extra, "--events", str(directory / "events.jsonl"), "--ready-fd", str(write)]
    try:
        process = spawn(stack, argv, log=directory / "sbxproxy.log", cpu=cpu, pass_fds=[write])
    finally:
        os.close(write)
    with os.fdopen(read) as ready:
        line = ready.readline().strip()
    if not line:
        raise Unavailable(f"sbxproxy serve did not start: {_last_line(directory / 'sbxproxy.log')}")
    return Running(int(line.rpartition(":")[2]), process)


def _start_mitmproxy(stack: ExitStack, directory: Path, cpu: int | None) -> Running:
    """Start mitmproxy so that it passes TLS on: the same work as the others."""
    program = MITMPROXY / "bin" / "mitmdump"
    if not program.exists():
        raise Unavailable("not installed; --install-mitmproxy puts it into an environment of its own")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--listen-host", "127.0.0.1", "-p", str(port), "--ignore-hosts", ".*", "-q", "--set", f"confdir={directory}"]
    process = spawn(stack, [str(program), *options], log=directory / "mitmproxy.log", cpu=cpu)
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return Running(port, process)
        time.sleep(0.1)
    raise Unavailable(f"mitmdump did not start: {_last_line(directory / 'mitmproxy.log')}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:200] if lines else "no message"


def install_mitmproxy() -> None:
    """Put mitmproxy from PyPI into an environment of its own: it pins versions of libraries that sbxproxy uses too."""
    if (MITMPROXY / "bin" / "mitmdump").exists():
        return
    MITMPROXY.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(MITMPROXY)], check=True)
    subprocess.run([str(MITMPROXY / "bin" / "pip"), "install", "--quiet", "mitmproxy"], check=True)


SUBJECTS = (
    Subject("direct", _start_direct),
    Subject("sbxproxy", _start_sbxproxy),
    Subject("naive Trio", _start_naive),
    Subject("mitmproxy", _start_mitmproxy),
)
