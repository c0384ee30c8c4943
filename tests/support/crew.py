"""Workers with one sandbox, as an embedder would set them up, and what their observers were told."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import trio

import sbxproxy
from sbxproxy.events import Event, FlowClosed, FlowOpened, Problem
from sbxproxy.workers import SharedSandbox, Workers
from sbxproxy.workers.member import FLOWS
from sbxproxy.workers.process import ENVIRONMENT
from support.origin import Origin
from support.talk import connect, exactly

LOOPBACK = "127.0.0.1"
OPEN = {"subnets": {"allow": ["127.0.0.0/8"]}}


def environment(**more: str) -> dict[str, str]:
    """What workers have by default, and what the measuring of coverage needs in each process."""
    return {
        **{name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("COVERAGE")},
        **more,
    }


@dataclass(eq=False)
class Crew:
    workers: Workers
    sandbox: SharedSandbox
    nursery: trio.Nursery
    events: list[Event] = field(default_factory=list)
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def open(self, endpoint: str = "") -> trio.SocketStream:
        """Connect to the proxy as a client does; closed at the end."""
        where = endpoint or self.sandbox.endpoints[0]
        if where.startswith("unix:"):
            sock = trio.socket.socket(socket.AF_UNIX)
            address: Any = where.removeprefix("unix:")
        else:
            host, _, port = where.rpartition(":")
            sock = trio.socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)
            address = (host.strip("[]"), int(port))
        stream = trio.SocketStream(sock)
        self.streams.append(stream)
        await sock.connect(address)
        return stream

    async def tunnel(self, target: str, endpoint: str = "") -> tuple[int, trio.SocketStream]:
        """Ask for *target*; the status, and the stream."""
        stream = await self.open(endpoint)
        status, _ = await connect(stream, target)
        return status, stream

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        with trio.fail_after(seconds):
            while not (found := condition()):
                await trio.sleep(0.01)
        return found

    async def until_lost(self, count: int = 1) -> None:
        """Wait until that many workers were lost, and others have taken their places."""
        await self.until(lambda: len([p for p in self.of(Problem) if p.reason == "worker-lost"]) >= count)
        await self.until(lambda: len(self.workers.processes) == self.workers.count)

    async def flows(self, count: int) -> dict[int, list[int]]:
        """Wait until that many flows are open; their ids by the number of their worker."""
        await self.until(lambda: len(self.sandbox.flows) >= count)
        found: dict[int, list[int]] = {}
        for flow in sorted(self.sandbox.flows):
            found.setdefault(flow // FLOWS, []).append(flow)
        return found

    def ids(self) -> list[int]:
        return [event.flow for event in self.of(FlowOpened)]

    @property
    def closed(self) -> list[FlowClosed]:
        return self.of(FlowClosed)


@asynccontextmanager
async def open_workers(
    policy: object,
    *origins: Origin,
    directory: Path,
    count: int = 2,
    secrets: Any = None,
    listen: Any = ("127.0.0.1:0",),
    limits: sbxproxy.Limits | None = None,
    plugins: Any = (),
    sandbox: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Crew]:
    """Start *origins* and workers that know their names and authorities; end all of it afterwards."""
    async with trio.open_nursery() as nursery:
        for origin in origins:
            await nursery.start(origin.serve)
        settings = sbxproxy.Settings(
            private_networks=[ip_network("127.0.0.0/8")],
            resolve={name: [ip_address(LOOPBACK)] for origin in origins for name in origin.names},  # type: ignore[misc]
            extra_upstream_roots=[origin.write_root(directory) for origin in origins],
            limits=limits or sbxproxy.Limits(),
        )
        events: list[Event] = []
        options.setdefault("environment", environment())
        workers = Workers(settings, count=count, plugins=plugins, observers=[events.append], **options)
        await nursery.start(workers.run)
        made = await workers.create_sandbox("box", policy=policy, secrets=secrets, listen=listen, **(sandbox or {}))
        crew = Crew(workers, made, nursery, events)
        try:
            yield crew
            with trio.move_on_after(10):
                await workers.drain(0)  # so that coverage of their processes is written
        finally:
            nursery.cancel_scope.cancel()
            for stream in crew.streams:
                stream.socket.close()


@dataclass(eq=False)
class EchoOrigin:
    """A server of plain TCP that sends back what it gets."""

    port: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.port = listeners[0].socket.getsockname()[1]

        async def echo(stream: trio.SocketStream) -> None:
            try:
                async for data in stream:
                    await stream.send_all(data)
            except trio.BrokenResourceError:
                pass

        await trio.serve_listeners(echo, listeners, task_status=task_status)


async def echoes(stream: trio.abc.Stream) -> bool:
    """Whether what is sent comes back."""
    try:
        await stream.send_all(b"are you there")
        with trio.move_on_after(10):
            return await exactly(stream, 13) == b"are you there"
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return False


Setup = Callable[..., Awaitable[Crew]]


@asynccontextmanager
async def open_echo(policy: object = OPEN, *, tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Crew, str]]:
    """Workers, and the target of an origin that says everything again."""
    echo = EchoOrigin()
    async with trio.open_nursery() as nursery:
        await nursery.start(echo.serve)
        async with open_workers(policy, directory=tmp_path, **options) as crew:
            yield crew, f"127.0.0.1:{echo.port}"
        nursery.cancel_scope.cancel()
