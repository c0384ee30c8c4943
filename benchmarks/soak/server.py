"""The proxy under the soak, in a process of its own. ``python -m benchmarks.soak.server JSON`` takes the fields of ``Setup``.

It prints its ports as JSON and then answers each line of its standard input with one of JSON: ``?`` asks for figures, anything else is
a policy to put in force. It serves until that input ends.
"""

from __future__ import annotations

__all__ = ["Setup"]

import gc
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import trio

from benchmarks.doors import open_doors, settings
from sbxproxy import JsonLines, Limits, Proxy, Sandbox

KEEP_ALIVE = 4.0
"""Seconds that idle upstream connections are kept: short, so that none is left when the end is looked at."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What runs.

    Attributes:
        names: host names that are on loopback.
        upstream_ca: roots of upstreams besides the system's.
        authority: where the sandbox's CA is written.
        events: where events are written.
        nameserver: port of a name server on loopback.
        secret: what is injected.
    """

    names: Sequence[str]
    upstream_ca: str
    authority: str
    events: str
    nameserver: int
    secret: str


async def main(setup: Setup) -> None:
    """Serve until standard input ends."""
    limits = Limits(keep_alive=KEEP_ALIVE, first_bytes=3.0, dns_cache=256, leaves=64)
    nameservers = [(IPv4Address("127.0.0.1"), setup.nameserver)]
    with ExitStack() as stack:
        events = JsonLines(stack.enter_context(Path(setup.events).open("w", encoding="utf-8")))
        stack.callback(events.close)
        proxy = Proxy(settings(setup.names, setup.upstream_ca, limits, nameservers=nameservers), observers=[events])
        sandbox = proxy.create_sandbox("soak", policy="deny-all", secrets={"token": setup.secret})
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            port, dns = await open_doors(nursery, sandbox, setup.authority, backlog=1024)
            _say(proxy=port, dns=dns)
            async for line in _lines():
                if line == "?":
                    _say(**_figures(sandbox), lost=events.lost)
                else:
                    change = await sandbox.update_policy(json.loads(line))
                    _say(cut=len(change.cut), kept=change.kept)
            nursery.cancel_scope.cancel(reason="standard input has ended")


async def _lines() -> Any:
    """Give the lines of standard input without a thread, which would count among what is measured."""
    stream = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    rest = b""
    async with stream:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode()


def _figures(sandbox: Sandbox) -> dict[str, int]:
    gc.collect()
    return {
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "flows": len(sandbox.flows),
    }


def _say(**values: int) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    trio.run(main, Setup(**json.loads(sys.argv[1])))
