"""What is measured: each subject is a process of its own, waited for until it is ready, and ended with its children."""

from __future__ import annotations

__all__ = ["By", "Running", "Subject", "Unavailable", "free_port", "last_line", "program_version", "wait_for_port"]

import contextlib
import enum
import re
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import Process
from benchmarks.rig import Rig

_START = 30.0
_POLL = 0.002


class Unavailable(Exception):  # noqa: N818 - a state, shown in the table
    """Why a subject has no figures."""


class By(enum.Enum):
    """How a subject is told where to go."""

    NAME = "CONNECT with the host's name"
    ADDRESS = "CONNECT with the origin's address"
    SNI = "the server name alone: no CONNECT, a round trip less"
    NOTHING = "no proxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A subject that takes connections.

    Attributes:
        port: its port for tunnels; 0 where the origin's own ports are used.
        terminated_port: its port for terminated connections where it is another one.
        process: ``None`` for no proxy.
        tunnels: how it is told where to go.
        terminated: the same for terminated connections; ``None`` if it doesn't terminate.
        mints: whether it makes a certificate for a host it hasn't met.
        authority: what its certificates are verified with.
        denied: a CONNECT target and a server name that it must refuse; ``None`` where it has nothing to refuse by.
    """

    port: int
    process: Process | None
    terminated_port: int | None = None
    tunnels: By = By.ADDRESS
    terminated: By | None = None
    mints: bool = False
    authority: Path | None = None
    denied: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A name for tables, what it is and how it runs, what tells its version, and what starts it.

    ``start`` is given the stack that ends the process; it raises ``Unavailable``.
    """

    name: str
    about: str
    version: Callable[[], str | None]
    start: Callable[[ExitStack, Rig], Running]


def free_port() -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for_port(process: Process, port: int, log: Path) -> None:
    """Wait until *port* takes connections.

    Raises:
        Unavailable: the process has ended, or takes longer than half a minute.
    """
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(_POLL)
    raise Unavailable(f"did not start: {last_line(log)}")


def last_line(log: Path) -> str:
    """Return what a log ends with."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:200] if lines else "no message"


def program_version(argv: list[str], pattern: str = r"(\d+(?:\.\d+)+\S*)") -> str | None:
    """Return the version that a program tells of itself; ``None`` if it isn't there."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else None
