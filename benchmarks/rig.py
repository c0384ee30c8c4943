"""What every measurement stands on: the origin, certificates, names, and the load generator."""

from __future__ import annotations

__all__ = [
    "DENIED",
    "FRESH",
    "HELLO",
    "HELLO_NAME",
    "KINDS",
    "PIPELINED",
    "Load",
    "Measured",
    "Rig",
    "open_rig",
    "read_line",
    "tunnel_name",
]

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.build import build, program
from benchmarks.certificates import Certificates
from benchmarks.process import Process, place, raise_descriptor_limit, spawn
from sbxproxy.testing import client_hello

KINDS = ("hello", "down", "up", "echo", "tls")
"""What the origin does behind a tunnel; each has a port, and a name of its own for proxies that route by it."""

PIPELINED = "w3.api.example"
"""The host whose requests get a header."""

FRESH = 8000
"""Hosts n0.api.example to n7999.api.example, of which each is met once."""

DENIED = "denied.example"

_GO = 90.0
_HANG = 60.0


def tunnel_name(kind: str) -> str:
    """Return the name that is tunnelled to a port of the origin."""
    return f"{kind}.tunnel.example"


HELLO_NAME = tunnel_name("hello")
HELLO = client_hello(HELLO_NAME, padding=333)
"""517 bytes, about what curl and Python send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One run of the load generator: its options, see ``c/load.c``."""

    mode: str
    port: int
    connect: str = ""
    name: str = ""
    hello: Path | None = None
    concurrency: int = 1
    seconds: float = 1.0
    warm: float = 0.2
    first: int = 0
    most: int = 0
    expect: str = ""
    patience: float = 60.0

    @property
    def options(self) -> list[str]:
        given = {name: getattr(self, name) for name in self.__slots__}
        return [f"{name}={value}" for name, value in given.items() if value not in {None, ""}]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the load generator counted, and what the caller measured from its beginning to count to its end.

    Attributes:
        count: operations, or bytes.
        seconds: the time that they took.
        failures: operations that failed, at any time.
        opened: connections, those before the counting included.
        why: what failed first.
        p50: microseconds, where operations have a length.
        p99: the same.
        spent: what *meter* rose by.
    """

    count: int
    seconds: float
    failures: int
    opened: int
    why: str
    p50: float
    p99: float
    spent: float | None

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Rig:
    """An origin that runs, and all that subjects are configured with.

    Attributes:
        directory: scratch space; everybody may enter it, since some proxies drop root.
        ports: the origin's ports by kind, and ``plain``.
        load_cpu: for load and origin.
        subject_cpu: for what is measured.
        descriptors: how many a process may have.
        next_fresh: the first host that a subject hasn't met, by subject.
    """

    directory: Path
    certificates: Certificates
    ports: Mapping[str, int]
    load_cpu: int | None
    subject_cpu: int | None
    descriptors: int
    next_fresh: dict[str, int] = field(default_factory=dict)

    @property
    def hello_files(self) -> Mapping[str, Path]:
        return {kind: self.directory / f"{kind}.hello" for kind in KINDS}

    def measure(self, load: Load, meter: Callable[[], float] | None = None, generator: str = "load") -> Measured:
        """Run the load; *meter* is read when it begins to count and when it has ended."""
        with ExitStack() as stack:
            process = self.start(stack, load, generator)
            line = read_line(process, _GO)
            if line != "go":  # it gave up before
                return _measured(line, None)
            before = meter() if meter else 0.0
            line = read_line(process, load.seconds + _HANG)
            spent = meter() - before if meter else None
            return _measured(line, spent)

    def start(self, stack: ExitStack, load: Load, generator: str = "load") -> Process:
        """Start a load and leave it to the caller to read what it says."""
        argv = [str(program(generator)), *load.options]
        return spawn(stack, argv, log=self.directory / "load.log", cpu=self.load_cpu, stdin=subprocess.PIPE)


def _measured(line: str, spent: float | None) -> Measured:
    if not line.startswith("{"):
        return Measured(0, 0.0, 1, 0, "the load ended without a word", 0, 0, spent)
    told = json.loads(line)
    return Measured(
        told["count"], told["seconds"], told["failures"], told["opened"], told["why"], told["p50_us"], told["p99_us"], spent
    )


def read_line(process: Process, patience: float) -> str:
    """Read one line from a process's output; what came of it if it ended, or *patience* seconds have passed."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    line = b""
    deadline = time.monotonic() + patience
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode().strip()


@contextmanager
def open_rig() -> Iterator[Rig]:
    """Build what is to be built, start the origin, and end it after the block.

    Raises:
        CannotBuild: a compiler or a library is missing.
    """
    build()
    load_cpu, subject_cpu = place()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sbxproxy-bench-")))
        directory.chmod(0o755)  # nothing in it is worth a secret
        names = ["*.tunnel.example", "*.api.example"]
        certificates = Certificates.make(directory, names, names[1:])
        descriptors = raise_descriptor_limit()
        argv = [str(program("origin")), f"chain={certificates.origin_chain}", f"key={certificates.origin_key}"]
        origin = spawn(stack, argv, log=directory / "origin.log", cpu=load_cpu, stdin=subprocess.PIPE)
        ports = dict(zip((*KINDS, "plain"), map(int, read_line(origin, _HANG).split()), strict=True))
        rig = Rig(directory, certificates, ports, load_cpu, subject_cpu, descriptors)
        for kind, path in rig.hello_files.items():
            path.write_bytes(client_hello(tunnel_name(kind), padding=333))
        yield rig
