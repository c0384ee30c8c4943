"""Servers that tests start: as a user without rights, on ports of their own, and ended for certain.

PostgreSQL refuses to run as root, so root's tests start everything as nobody. The kernel ends a server whose test process dies
(prctl(2), PR_SET_PDEATHSIG); ``setpriv`` asks for that after it has changed the user, which would forget it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from support.programs import unavailable

NOBODY = 65534
PORTS = range(20_000, 32_000)  # below the kernel's ephemeral range, whose ports vanish under one's feet
STARTING = 60.0
STOPPING = 15.0


class PortTakenError(Exception):
    """A server ended because somebody else has its port."""


def find_program(name: str, *directories: Path) -> str:
    """Return the path of a program, also where only root looks (``/usr/sbin``) or in *directories*; skip without it."""
    places = [*map(str, directories), *os.get_exec_path(), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        unavailable(f"{name} is not installed")
    return found


def unprivileged(argv: Sequence[str], *, farewell: str = "TERM") -> list[str]:
    """Return *argv* for a user without rights; *farewell* is the signal that it gets when this process dies."""
    drop = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    return [find_program("setpriv"), f"--pdeathsig={farewell}", *drop, "--", *argv]


def give(path: Path, *, mode: int | None = None) -> Path:
    """Make *path* the server user's own."""
    if mode is not None:
        path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    return path


@contextlib.contextmanager
def world_directory(prefix: str) -> Iterator[Path]:
    """A directory that the server user can reach and write; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix=f"sbxtests-{prefix}-"))
    try:
        yield give(directory, mode=0o755)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_tool(argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, stdin: str = "") -> str:
    """Run a server's own tool to its end, as the server user; what it says comes with the failure."""
    done = subprocess.run(
        unprivileged(argv, farewell="KILL"),
        env={**os.environ, **env},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=STARTING,
    )
    assert done.returncode == 0, f"{argv[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def free_port() -> int:
    """Return a port that was free just now; whoever uses it must be ready to try another."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def daemon(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    log: Path,
    ready: Callable[[], bool],
    farewell: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block.

    Args:
        argv: its command line; it must stay in the foreground.
        env: variables besides the present ones.
        log: where its output goes.
        ready: tells whether it takes connections.
        farewell: the signal that makes it end at once, without waiting for clients.

    Raises:
        PortTakenError: it said that its address is in use.
    """
    with log.open("ab") as output:
        give(log)
        process = subprocess.Popen(
            unprivileged(argv, farewell=farewell.name.removeprefix("SIG")),
            env={**os.environ, **env},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the tests, which then end their servers in order
        )
    try:
        deadline = time.monotonic() + STARTING
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")
                if "ddress already in use" in text or "ould not bind" in text:
                    raise PortTakenError
                raise AssertionError(f"{argv[0]} did not start: {text[-2000:]}")
            time.sleep(0.02)
        yield process
    finally:
        _stop(process, farewell)


def _stop(process: subprocess.Popen[bytes], farewell: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        process.send_signal(farewell)
    try:
        process.wait(STOPPING)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def accepts(port: int) -> bool:
    """Tell whether somebody takes connections at *port*."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False
