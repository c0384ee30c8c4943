"""A running proxy with one sandbox behind one listener, as an embedder would set it up, and what it told its observers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import trio

import sbxproxy
from sbxproxy.events import Event, FlowClosed
from support.origin import Origin

LOOPBACK = "127.0.0.1"


@dataclass(eq=False)
class Firewall:
    proxy: sbxproxy.Proxy
    sandbox: sbxproxy.Sandbox
    listener: trio.SocketListener
    port: int
    nursery: trio.Nursery
    events: list[Event] = field(default_factory=list)
    clients: list[trio.SocketStream] = field(default_factory=list)

    async def open(self) -> trio.SocketStream:
        """Connect to the proxy as a client does; closed at the end."""
        sock = trio.socket.socket()
        try:
            await sock.connect((LOOPBACK, self.port))
        except BaseException:
            sock.close()
            raise
        self.clients.append(trio.SocketStream(sock))
        return self.clients[-1]

    def environment(self, *roots: Path, auth: sbxproxy.ListenerAuth | None = None) -> dict[str, str]:
        """The environment for a child; with *roots*, a child that also trusts these authorities."""
        mine = self.sandbox.environment(proxy=self.listener, auth=auth)
        bundle = mine["SSL_CERT_FILE"]
        extra = mine["NODE_EXTRA_CA_CERTS"]
        assert bundle is not None
        assert extra is not None
        if roots:
            larger = Path(bundle).with_name("larger.pem")
            larger.write_bytes(Path(bundle).read_bytes() + b"".join(path.read_bytes() for path in roots))
            mine = {name: str(larger) if value in {bundle, extra} else value for name, value in mine.items()}
        return {name: value for name, value in {**os.environ, **mine}.items() if value is not None}

    def closed(self) -> list[FlowClosed]:
        return [event for event in self.events if isinstance(event, FlowClosed)]

    async def next_closed(self, count: int = 1) -> FlowClosed:
        """Wait for the end of the *count*-th flow."""
        with trio.fail_after(30):
            while len(self.closed()) < count:
                await trio.sleep(0.005)
        return self.closed()[count - 1]

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.closed()]


@asynccontextmanager
async def open_firewall(
    policy: object,
    *origins: Origin,
    directory: Path,
    resolve: Mapping[str, Sequence[str]] | None = None,
    private: Sequence[str] = ("127.0.0.0/8",),
    secrets: Any = None,
    limits: sbxproxy.Limits | None = None,
    serve: Mapping[str, Any] | None = None,
    never: Sequence[str] = (),
    **proxy_options: Any,
) -> AsyncIterator[Firewall]:
    """Start *origins* and a firewall that knows their names and authorities; end all of it afterwards."""
    async with trio.open_nursery() as nursery:
        for origin in origins:
            await nursery.start(origin.serve)
        names: dict[Any, Any] = {name: [ip_address(LOOPBACK)] for origin in origins for name in origin.names}
        names.update({name: [ip_address(a) for a in addresses] for name, addresses in (resolve or {}).items()})
        names = {name: addresses for name, addresses in names.items() if "*" not in name}
        settings = sbxproxy.Settings(
            private_networks=[ip_network(network) for network in private],
            never=[ip_network(network) for network in never],
            resolve=names,
            extra_upstream_roots=[origin.write_root(directory) for origin in origins],
            limits=limits or sbxproxy.Limits(),
        )
        events: list[Event] = []
        observers = (*proxy_options.pop("observers", ()), events.append)
        proxy = sbxproxy.Proxy(settings, observers=observers, **proxy_options)
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("box", policy=policy, secrets=secrets)
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        serving = dict(serve or {})

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await sandbox.serve(listeners, task_status=task_status, **serving)

        await nursery.start(run)
        firewall = Firewall(proxy, sandbox, listeners[0], listeners[0].socket.getsockname()[1], nursery, events)
        try:
            yield firewall
        finally:
            nursery.cancel_scope.cancel()
            for client in firewall.clients:
                client.socket.close()
