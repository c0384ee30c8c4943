"""Two sandboxes of one proxy that differ in nothing but whether plain tunnels go the short way, upstreams, and scripted clients."""

from __future__ import annotations

import dataclasses
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import trio
import trio.testing

import sbxproxy
from sbxproxy.connection.express import Express
from sbxproxy.events import Event, FlowClosed
from sbxproxy.net.listen import Slots
from sbxproxy.sandbox.doors import Doors
from sbxproxy.testing.hello import client_hello
from support.tcp import reset

LOOPBACK = "127.0.0.1"
NAME, OTHER, TWO, HANGS, HOLE = (f"{name}.test.example" for name in ("origin", "other", "two", "hangs", "hole"))
NAMES = {NAME: [LOOPBACK], OTHER: [LOOPBACK], TWO: ["127.0.0.8", LOOPBACK], HANGS: ["127.0.0.9", LOOPBACK], HOLE: ["127.0.0.9"]}
PATIENCE = 40.0
HELLO = client_hello(NAME)
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

Step = tuple[Any, ...]
"""``("send", data)``, ``("read", size)``, ``("until", the end of what is read)``, ``("rest", seconds)``, ``("fin",)``, ``("reset",)``."""

QUIET: Step = ("quiet",)
"""Go on when everybody waits for something: what was sent has been dealt with then, however slow the machine."""


def head(target: str, *fields: str) -> bytes:
    return "\r\n".join([f"CONNECT {target} HTTP/1.1", f"Host: {target}", *fields, "", ""]).encode("latin-1")


@dataclass(eq=False)
class Upstream:
    """A server; ``mode`` says what it does with each connection.

    Modes: ``answer`` at the end of what it is sent; ``first`` to what it is sent first, and close; ``close`` or ``reset`` after
    that without an answer; ``reset-at-once``; ``postgres`` that agrees to TLS and then answers as ``answer`` does.
    """

    mode: str = "answer"
    port: int = 0
    got: list[bytes] = field(default_factory=list)

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._talk, listeners)

    async def _talk(self, stream: trio.SocketStream) -> None:
        index = len(self.got)
        self.got.append(b"")
        with suppress(trio.BrokenResourceError):
            if self.mode == "reset-at-once":
                reset(stream)
                return
            if self.mode == "postgres":
                self.got[index] += await stream.receive_some(8)
                await stream.send_all(b"S")
            if self.mode in {"first", "close", "reset"}:
                self.got[index] += await stream.receive_some()
                match self.mode:
                    case "first":
                        await stream.send_all(b"an answer at once")
                    case "reset":
                        reset(stream)
                await stream.aclose()
                return
            async for chunk in stream:
                self.got[index] += chunk
            await stream.send_all(b"<%d bytes>" % len(self.got[index]))
            await stream.aclose()


@dataclass
class Seen:
    """What a client saw."""

    data: bytes
    end: str


class Client:
    """A program that follows a script, and reads all the while."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.end = ""
        self._more = trio.Condition()

    async def play(self, steps: Sequence[Step]) -> Seen:
        try:
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        for step in steps:
                            await self._do(step)
        finally:
            self.stream.socket.close()
        return Seen(bytes(self.data), self.end)

    async def _do(self, step: Step) -> None:
        match step:
            case "send", data:
                await self.stream.send_all(data)
            case "read", size:
                await self._until(lambda: len(self.data) >= size)
            case "until", end:
                await self._until(lambda: self.data.endswith(end))
            case "rest", seconds:
                await trio.sleep(seconds)
            case ("quiet",):
                await trio.testing.wait_all_tasks_blocked(0.001)
            case ("fin",):
                await self.stream.send_eof()
            case ("reset",):
                self.end = "left"
                reset(self.stream)
            case _:
                raise AssertionError(step)

    async def _until(self, done: Callable[[], bool]) -> None:
        async with self._more:
            while not done() and not self.end:
                await self._more.wait()

    async def _read(self) -> None:
        end = "eof"
        try:
            async for chunk in self.stream:
                self.data += chunk
                await self._tell()
        except trio.BrokenResourceError:
            end = "reset"
        except trio.ClosedResourceError:
            pass
        self.end = self.end or end
        await self._tell()

    async def _tell(self) -> None:
        async with self._more:
            self._more.notify_all()


@dataclass(eq=False)
class Pair:
    """The two sandboxes, ``short`` and ``long``."""

    proxy: sbxproxy.Proxy
    upstream: Upstream
    running: trio.Nursery
    boxes: dict[str, sbxproxy.Sandbox] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    scopes: dict[str, trio.CancelScope] = field(default_factory=dict)
    served: dict[str, trio.Event] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    expresses: list[Express] = field(default_factory=list)

    @property
    def short(self) -> sbxproxy.Sandbox:
        return self.boxes["short"]

    def slots(self, box: str = "short") -> Slots:
        return self.boxes[box]._doors._slots

    @property
    def total(self) -> int:
        return self.proxy.settings.limits.flows_per_sandbox

    async def open(self, box: str = "short") -> Client:
        sock = trio.socket.socket()
        try:
            await sock.connect((LOOPBACK, self.ports[box]))
        except BaseException:
            sock.close()
            raise
        return Client(trio.SocketStream(sock))

    async def play(self, steps: Sequence[Step], box: str = "short") -> Seen:
        return await (await self.open(box)).play(steps)

    async def settle(self, box: str = "short") -> None:
        """Wait until nothing is open, and see that each slot has been given back, once."""
        slots, pause = self.slots(box), 0.002
        with trio.fail_after(PATIENCE):
            while self.boxes[box].flows or slots.free != self.total or any(express._passages for express in self.expresses):
                await trio.sleep(pause)
                pause = min(2 * pause, 0.5)  # few steps for a clock that jumps
        await trio.sleep(0.002)
        assert slots.free == self.total

    async def told(self, kind: str, box: str = "short", count: int = 1) -> list[Event]:
        """Wait for *count* events of a kind."""
        with trio.fail_after(PATIENCE):
            while True:
                found = [event for event in self.events if type(event).__name__ == kind and event.sandbox == box]
                if len(found) >= count:
                    return found
                await trio.sleep(0.002)

    def story(self, box: str, *, keep: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Events, without what differs from one run to the next."""
        told = []
        for event in self.events:
            if event.sandbox == box:
                fields = {
                    name: value for name, value in dataclasses.asdict(event).items() if name not in _PASSING or name in keep
                }
                told.append({"kind": type(event).__name__, **fields})
        return told

    def closed(self, box: str = "short") -> list[FlowClosed]:
        return [event for event in self.events if isinstance(event, FlowClosed) and event.sandbox == box]

    async def warm(self) -> None:
        """Carry one connection, so that what it takes is loaded; the short way opens behind the first."""
        mode, self.upstream.mode = self.upstream.mode, "answer"
        for box in self.boxes:
            await self.play([("send", head(f"{LOOPBACK}:1")), ("fin",)], box)
            await self.settle(box)
        self.upstream.mode = mode
        self.events.clear()
        self.upstream.got.clear()
        self.ways.clear()


_PASSING = ("sandbox", "time", "flow", "duration")


@contextmanager
def one_way_only(box: str = "long") -> Iterator[None]:
    """Keep the short way shut for sandboxes of that name."""
    before = Doors._open_express

    def open_express(self: Doors, *args: Any) -> Express | None:
        return None if self._context.sandbox == box else before(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Doors, "_open_express", open_express)
        yield


@contextmanager
def _watched(pair: Pair) -> Iterator[None]:
    """Count which way connections go."""
    admit, leave, init = Express.admit, Express.leave_to_task, Express.__init__

    def counted_admit(self: Express, client: Any, ask: Any = None) -> bool:
        taken = admit(self, client, ask)
        pair.ways["short" if taken else "refused"] += 1
        return taken

    def counted_leave(self: Express, passage: Any, run: Any) -> None:
        pair.ways["left"] += 1
        leave(self, passage, run)

    def noted_init(self: Express, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        pair.expresses.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Express, "admit", counted_admit)
        patch.setattr(Express, "leave_to_task", counted_leave)
        patch.setattr(Express, "__init__", noted_init)
        yield


@asynccontextmanager
async def open_pair(
    policy: object,
    *,
    mode: str = "answer",
    limits: Mapping[str, Any] | None = None,
    names: Mapping[str, Sequence[str]] = NAMES,
    serve: Mapping[str, Any] | None = None,
    boxes: Sequence[str] = ("short", "long"),
    warm: bool = True,
    observers: Sequence[Any] = (),
) -> AsyncIterator[Pair]:
    """Run an upstream, a proxy and its sandboxes."""
    async with AsyncExitStack() as stack:
        stack.enter_context(one_way_only())
        nursery = await stack.enter_async_context(trio.open_nursery())
        upstream = Upstream(mode)
        await nursery.start(upstream.serve)
        settings = sbxproxy.Settings(
            private_networks=[ip_network("127.0.0.0/8")],
            resolve={name: [ip_address(text) for text in addresses] for name, addresses in names.items()},
            engine=True,
            limits=sbxproxy.Limits(**{"flows_per_sandbox": 64, **(limits or {})}),
        )
        events: list[Event] = []
        proxy = sbxproxy.Proxy(settings, observers=[events.append, *observers])
        running = await stack.enter_async_context(trio.open_nursery())
        pair = Pair(proxy, upstream, running, events=events)
        stack.enter_context(_watched(pair))
        await running.start(proxy.run)

        async def run(box: str, listeners: list[trio.SocketListener], *, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as pair.scopes[box]:
                await pair.boxes[box].serve(listeners, task_status=task_status, **(serve or {}))
            pair.served[box].set()

        for box in boxes:
            pair.boxes[box] = proxy.create_sandbox(box, policy=policy)
            listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
            pair.ports[box] = listeners[0].socket.getsockname()[1]
            pair.served[box] = trio.Event()
            await running.start(run, box, listeners)
        if warm:
            await pair.warm()
        yield pair
        running.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def scrub(data: bytes, *ports: int) -> bytes:
    """Leave out what differs in answers: the clock and port numbers."""
    data = re.sub(rb"(?im)^date: [^\r\n]*", b"date:", data)
    return re.sub(rb"\b(%s)\b" % b"|".join(b"%d" % port for port in ports), b"PORT", data)


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody listens on, nor will."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()[1]
