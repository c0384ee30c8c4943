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
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import trio

from sbxproxy import JsonLines, Limits, Proxy, Sandbox, Settings
from sbxproxy.capture.captured import Captured
from sbxproxy.hostname import Hostname

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
    settings = Settings(
        private_networks=[IPv4Network("127.0.0.0/8")],
        resolve={Hostname(name): [IPv4Address("127.0.0.1")] for name in setup.names},
        nameservers=[(IPv4Address("127.0.0.1"), setup.nameserver)],
        extra_upstream_roots=[Path(setup.upstream_ca)],
        limits=Limits(keep_alive=KEEP_ALIVE, first_bytes=3.0, dns_cache=256, leaves=64),
    )
    with ExitStack() as stack:
        events = JsonLines(stack.enter_context(Path(setup.events).open("w", encoding="utf-8")))
        stack.callback(events.close)
        proxy = Proxy(settings, observers=[events])
        sandbox = proxy.create_sandbox("soak", policy="deny-all", secrets={"token": setup.secret})
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            Path(setup.authority).write_bytes(sandbox.certificate_pem)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
            await nursery.start(sandbox.serve, listeners)
            dns = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
            await dns.bind(("127.0.0.1", 0))
            await nursery.start(sandbox.serve_captured, Captured(await trio.open_tcp_listeners(0, host="127.0.0.1"), [dns]))
            _say(proxy=listeners[0].socket.getsockname()[1], dns=dns.getsockname()[1])
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
