"""sbxproxy embedded as a process of its own, and tunnels that stand through a proxy."""

from __future__ import annotations

__all__ = ["hold", "room", "start_embedded"]

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks.embedded import Embedding
from benchmarks.process import spawn
from benchmarks.rig import HELLO_NAME, KINDS, PIPELINED, Load, Rig, read_line, tunnel_name
from benchmarks.streamed import connect_option
from benchmarks.subjects import By, Running, Unavailable
from benchmarks.subjects.ours import INJECT, policy

_START = 60.0


def start_embedded(stack: ExitStack, rig: Rig, *, slot: str = "nothing", **limits: object) -> tuple[Running, int]:
    """Start sbxproxy embedded; returns it and its port for DNS.

    Raises:
        Unavailable: it doesn't start.
    """
    rules = rig.directory / f"embedded-{slot}.json"
    content = policy()
    if slot == "transform":
        content["allow"][PIPELINED] = [{"transform": [*INJECT[0]["transform"], {"plugin": "pass", "config": {}}]}]
    rules.write_text(json.dumps(content))
    embedding = Embedding(
        policy=str(rules),
        names=[*(tunnel_name(kind) for kind in KINDS), PIPELINED],
        upstream_ca=str(rig.certificates.origin_ca),
        authority=str(rig.directory / "embedded-ca.pem"),
        events=str(rig.directory / "embedded.jsonl"),
        limits=dict(limits),
        slot=slot,
    )
    log = rig.directory / "embedded.log"
    argv = [sys.executable, "-m", "benchmarks.embedded", json.dumps(asdict(embedding))]
    process = spawn(stack, argv, log=log, cpu=rig.subject_cpu, stdin=subprocess.PIPE)
    line = read_line(process, _START)
    if not line:
        raise Unavailable(f"embedded: {log.read_text().strip().splitlines()[-1:]}")
    port, dns = map(int, line.split())
    return Running(port=port, process=process, tunnels=By.NAME, terminated=By.NAME), dns


def hold(stack: ExitStack, rig: Rig, running: Running, count: int) -> None:
    """Open *count* tunnels, which stand until *stack* ends.

    Raises:
        Unavailable: not all of them come to stand.
    """
    origin = rig.ports["hello"]
    load = Load(
        mode="held",
        port=running.port,
        connect=connect_option(running.tunnels, HELLO_NAME, origin),
        hello=rig.hello_files["hello"],
        concurrency=min(count, 64),
        most=count,
        patience=count / 100 + 20,
    )
    told = read_line(rig.start(stack, load), load.patience + 20)
    held: dict[str, Any] = json.loads(told) if told.startswith("{") else {"count": 0, "why": told}
    if held["count"] < count:
        raise Unavailable(f"holds {held['count']:,} of {count:,} tunnels: {held['why'] or 'no more came to stand'}")


def room(rig: Rig, tunnels: int) -> None:
    """See that a proxy may have enough descriptors for *tunnels*; raises ``Unavailable`` if not."""
    needed = 2 * tunnels + 300
    if rig.descriptors < needed:
        raise Unavailable(f"a process may have {rig.descriptors:,} descriptors here, {needed:,} are needed")
