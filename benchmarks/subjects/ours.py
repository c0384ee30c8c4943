"""sbxproxy as a user starts it, the forty lines one would write instead, and no proxy at all."""

from __future__ import annotations

__all__ = ["DIRECT", "NAIVE", "SBXPROXY", "SECRET", "VARIABLE", "serve_command", "start_serve", "write_configuration"]

import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from benchmarks.process import spawn
from benchmarks.rig import DENIED, FRESH, KINDS, PIPELINED, Rig, read_line, tunnel_name
from benchmarks.subjects.subject import By, Running, Subject, Unavailable, last_line, wait_for_port

_OTHERS = 1000
_START = 30.0

INJECT = [{"transform": [{"headers": {"x-bench": "${secret:bench}"}}]}]
VARIABLE = "SBXPROXY_BENCH"
SECRET = {VARIABLE: "injected"}
"""What is put into the header, and the variable that sbxproxy finds it in, at each request."""


def policy() -> dict[str, dict[str, object]]:
    """Return what is allowed: tunnels, hosts whose requests get a header, and a thousand others."""
    others: dict[str, object] = {f"other{index}.example": [] for index in range(_OTHERS)}
    return {"allow": {**others, "*.tunnel.example": [], PIPELINED: INJECT, "*.api.example": INJECT}}


def write_configuration(rig: Rig) -> Path:
    """Write policy.json and the TOML file with everything else; return the latter."""
    (rig.directory / "policy.json").write_text(json.dumps(policy()))
    hosts = [*(tunnel_name(kind) for kind in KINDS), PIPELINED, *(f"n{index}.api.example" for index in range(FRESH))]
    lines = [
        'policy = "policy.json"',
        f'upstream-ca = ["{rig.certificates.origin_ca.name}"]',
        'private-network = ["127.0.0.0/8"]',
        f"resolve = {json.dumps([f'{host}:127.0.0.1' for host in hosts])}",
    ]
    path = rig.directory / "sbxproxy.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def serve_command(*options: str) -> list[str]:
    """Return the command line of ``sbxproxy serve``, run by this Python."""
    program = [sys.executable, "-c", "from sbxproxy.cli import main; main()"]
    return [*program, "serve", "--listen", "127.0.0.1:0", "--secret", f"bench=env:{VARIABLE}", *options]


def start_serve(
    stack: ExitStack, rig: Rig, options: Sequence[str], name: str = "sbxproxy", *, bytecode: Path | None = None
) -> Running:
    """Start ``sbxproxy serve`` and wait until it listens; *bytecode* is a directory to keep compiled modules in.

    Raises:
        Unavailable: it doesn't.
    """
    authority = rig.directory / f"{name}-ca.pem"
    log = rig.directory / f"{name}.log"
    read, write = os.pipe()
    argv = serve_command(*options, "--ca-out", str(authority), "--ready-fd", str(write))
    try:
        environment = {"XDG_RUNTIME_DIR": str(rig.directory), **SECRET}
        if bytecode is not None:
            environment |= {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
        process = spawn(stack, argv, log=log, cpu=rig.subject_cpu, pass_fds=[write], environment=environment)
    finally:
        os.close(write)
    with os.fdopen(read) as ready:
        line = ready.readline().strip()
    if not line:
        raise Unavailable(f"sbxproxy serve did not start: {last_line(log)}")
    return Running(
        port=int(line.rpartition(":")[2]),
        process=process,
        tunnels=By.NAME,
        terminated=By.NAME,
        mints=True,
        authority=authority,
        denied=(f"{DENIED}:{rig.ports['hello']}", DENIED),
    )


def _start_sbxproxy(stack: ExitStack, rig: Rig) -> Running:
    options = ["--config", str(write_configuration(rig)), "--events", str(rig.directory / "events.jsonl")]
    return start_serve(stack, rig, options)


def _start_naive(stack: ExitStack, rig: Rig) -> Running:
    log = rig.directory / "naive.log"
    process = spawn(stack, [sys.executable, "-m", "benchmarks.naive"], log=log, cpu=rig.subject_cpu)
    line = read_line(process, _START)
    if not line:
        raise Unavailable(f"did not start: {last_line(log)}")
    wait_for_port(process, int(line), log)
    return Running(port=int(line), process=process)


def _start_direct(_stack: ExitStack, _rig: Rig) -> Running:
    return Running(port=0, process=None, tunnels=By.NOTHING, terminated=By.NOTHING)


def _python() -> str:
    return f"trio {version('trio')}, Python {platform.python_version()}"


DIRECT = Subject("direct", "no proxy: the ceiling of the set-up", lambda: "", _start_direct)
SBXPROXY = Subject(
    "sbxproxy",
    "`sbxproxy serve --policy`, 1,003 rules, a secret from the environment, events to a file, all limits on",
    lambda: f"{version('sbxproxy')}, {_python()}",
    _start_sbxproxy,
)
NAIVE = Subject(
    "naive", "CONNECT and two copy loops in a Trio nursery: no policy, limits, time-outs or events", _python, _start_naive
)
