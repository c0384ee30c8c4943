"""What the embedded sandboxes of benchmarks and soak have alike: settings for upstreams on loopback, and their doors."""

from __future__ import annotations

__all__ = ["open_doors", "settings"]

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import trio

from sbxproxy import Limits, Sandbox, Settings
from sbxproxy.capture.captured import Captured
from sbxproxy.hostname import Hostname


def settings(names: Sequence[str], upstream_ca: str, limits: Limits, **more: Any) -> Settings:
    """Make settings by which *names* are on loopback, believed by *upstream_ca*."""
    return Settings(
        private_networks=[IPv4Network("127.0.0.0/8")],
        resolve={Hostname(name): [IPv4Address("127.0.0.1")] for name in names},
        extra_upstream_roots=[Path(upstream_ca)],
        limits=limits,
        **more,
    )


async def open_doors(nursery: trio.Nursery, sandbox: Sandbox, authority: str, *, backlog: int) -> tuple[int, int]:
    """Write the sandbox's CA, and serve it and its DNS on loopback; returns the two ports."""
    Path(authority).write_bytes(sandbox.certificate_pem)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=backlog)
    await nursery.start(sandbox.serve, listeners)
    dns = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await dns.bind(("127.0.0.1", 0))
    await nursery.start(sandbox.serve_captured, Captured(await trio.open_tcp_listeners(0, host="127.0.0.1"), [dns]))
    return listeners[0].socket.getsockname()[1], dns.getsockname()[1]
