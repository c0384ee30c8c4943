"""A sandbox without sockets: names, dials and both ends of every connection are the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import trio
import trio.testing

import sbxproxy
from sbxproxy.address import IPAddress
from sbxproxy.events import Event, FlowClosed
from sbxproxy.hostname import Hostname
from support.talk import until_end

ALERT_ACCESS_DENIED = bytes.fromhex("15030300020231")


@dataclass(eq=False)
class Wires:
    """Resolver and dialer in one. Each look-up of a name takes its next answer; the last one stays."""

    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    dialled: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    upstreams: list[trio.StapledStream[Any, Any]] = field(default_factory=list)
    before_dial: Any = None
    connected_to: str | None = None  # a dialer that breaks its contract

    async def resolve(self, name: Hostname) -> tuple[IPAddress, ...]:
        await trio.lowlevel.checkpoint()
        self.queries.append(str(name))
        answers = self.answers[str(name)]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return tuple(ip_address(text) for text in answer)

    async def dial(self, addresses: Sequence[IPAddress], port: int) -> tuple[Any, IPAddress]:
        self.dialled.append((tuple(str(address) for address in addresses), port))
        if self.before_dial is not None:
            await self.before_dial()
        await trio.lowlevel.checkpoint()
        near, far = trio.testing.memory_stream_pair()
        self.upstreams.append(far)
        return near, ip_address(self.connected_to) if self.connected_to else addresses[0]


@dataclass(eq=False)
class Box:
    sandbox: sbxproxy.Sandbox
    proxy: sbxproxy.Proxy
    wires: Wires
    nursery: trio.Nursery
    events: list[Event]

    def open(self, host: str, port: int = 443) -> trio.StapledStream[Any, Any]:
        """Connect to *host* from within the sandbox; returns the program's end."""
        near, far = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.sandbox.handle, far, (host, port))
        return near

    async def say(self, host: str, data: bytes, port: int = 443) -> bytes:
        """Connect, send *data*, and return what comes back until the end; for flows that are refused."""
        stream = self.open(host, port)
        await stream.send_all(data)
        with trio.fail_after(30):
            answer, _ = await until_end(stream)
        await stream.aclose()
        await self.settle()  # a denied client is given a moment to read; its record is told after that
        return answer

    @property
    def closed(self) -> list[FlowClosed]:
        return [event for event in self.events if isinstance(event, FlowClosed)]

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_box(
    policy: object,
    names: Mapping[str, Sequence[Sequence[str]] | str] | None = None,
    *,
    private: Sequence[str] = (),
    never: Sequence[str] = (),
    limits: sbxproxy.Limits | None = None,
    secrets: Any = None,
    **options: Any,
) -> AsyncIterator[Box]:
    answers = {name: [[a]] if isinstance(a, str) else [list(answer) for answer in a] for name, a in (names or {}).items()}
    wires = Wires(answers)
    events: list[Event] = []
    settings = sbxproxy.Settings(
        private_networks=[ip_network(network) for network in private],
        never=[ip_network(network) for network in never],
        limits=limits or sbxproxy.Limits(),
    )
    observers = (*options.pop("observers", ()), events.append)
    proxy = sbxproxy.Proxy(settings, resolver=wires, dialer=wires.dial, observers=observers, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield Box(proxy.create_sandbox("box", policy=policy, secrets=secrets), proxy, wires, nursery, events)
        nursery.cancel_scope.cancel()
