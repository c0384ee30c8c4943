"""A worker: a program with one proxy, which does what its supervisor says, and ends at once when that is gone.

It begins with nothing: settings, sandboxes, certificate authorities and listening sockets all come over its channel. A sandbox's policy
comes with the sandbox, before it accepts anything.
"""

from __future__ import annotations

__all__ = ["main"]

import base64
import dataclasses
import math
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import trio

from sbxproxy.address import IPAddress, parse_address, parse_network
from sbxproxy.errors import SbxproxyError
from sbxproxy.flow import CUT_PATIENCE, all_finished, number_from
from sbxproxy.fronts.ask import ListenerAuth
from sbxproxy.loading import collect_seldom
from sbxproxy.plugins import load
from sbxproxy.policy.model import Policy
from sbxproxy.proxy import Proxy
from sbxproxy.sandbox.identity import Identity
from sbxproxy.sandbox.sandbox import Sandbox
from sbxproxy.secrets import Secret, Secrets
from sbxproxy.tls.authority import Founding
from sbxproxy.workers.asking import Asker, RemoteSource
from sbxproxy.workers.channel import Channel
from sbxproxy.workers.process import tie_to
from sbxproxy.workers.reporter import Reporter
from sbxproxy.workers.share import from_values

MOST = 256 * 1024 * 1024
"""Bytes of a message from the supervisor: a policy with 100,000 domains and rules has some 20 million."""

LOST = 3
"""Exit code of a worker whose supervisor is gone, or doesn't keep to the protocol."""


def main() -> None:
    """Run a worker; arguments: its channel's descriptor, and its supervisor's process id."""
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(number, False)  # noqa: FBT003 - positional only
    tie_to(parent)
    # The supervisor decides when it ends; a service manager sends its signals to all processes of a service. Not SIG_IGN, which
    # programs that plugins start would inherit.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: None)
    channel = Channel(socket.socket(fileno=number), most=MOST, receives_descriptors=True)
    collect_seldom()
    trio.run(_Worker(channel).run)


def _end(code: int) -> NoReturn:
    """End here and now: no flow goes on for the time that an orderly end would take."""
    os._exit(code)


class _Worker:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._asker = Asker(channel)
        self._reporter = Reporter(channel)
        self._desks: dict[str, _Desk] = {}
        self._noted: dict[str, Callable[[], None]] = {}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            first = await self._receive()
            match first:
                case {"do": "start", "call": int(call), "settings": dict(settings), "plugins": list(plugins), "first": int(flow)}:
                    pass
                case _:
                    _end(LOST)
            try:
                number_from(flow)
                # Observers belong to the supervisor, which sees the events of all workers.
                pipeline = dataclasses.replace(load(plugins), observers=()) if plugins else None
                self._proxy = Proxy(from_values(settings), pipeline=pipeline)
                await nursery.start(self._proxy.run)
            except SbxproxyError as error:
                self._failed(call, error)
                await self._channel.written()
                _end(1)
            nursery.start_soon(self._reporter.run)
            self._done(call)
            await self._serve(nursery)

    async def _write(self) -> None:
        try:
            await self._channel.write()
        except OSError:
            _end(LOST)

    async def _receive(self) -> dict[str, Any]:
        """Return the next message; without a supervisor there is no next moment."""
        try:
            received = await self._channel.receive()
        except SbxproxyError as error:
            print(f"sbxproxy worker: {error}", file=sys.stderr)  # noqa: T201 - whoever runs the supervisor sees it
            received = None
        if received is None:
            _end(LOST)
        message, descriptors = received
        if descriptors:
            message["sockets"] = descriptors
        return message

    async def _serve(self, nursery: trio.Nursery) -> NoReturn:
        """Do what the supervisor says until cancelled."""
        while True:
            message = await self._receive()
            match message:
                case {"do": "ping", "call": int(call)}:
                    self._done(call)
                case {"do": "secret", "ask": int(number), "value": str(value), "keep": float() | None as keep}:
                    self._asker.answer(number, Secret(value), "", math.inf if keep is None else keep)
                case {"do": "secret", "ask": int(number), "error": str(error)}:
                    self._asker.answer(number, None, error)
                case {"do": "note", "call": int(call), "name": str(name), "listeners": list(listeners)} if (
                    name not in self._noted
                ):
                    self._noted[name] = self._proxy.note_listeners(list(map(_endpoint, listeners)))
                    self._done(call)
                case {"do": "forget", "call": int(call), "name": str(name)} if name in self._noted:
                    self._noted.pop(name)()
                    self._done(call)
                case {"do": "create", "name": str(name)} if name not in self._desks:
                    desk = self._desks[name] = _Desk(self)
                    nursery.start_soon(desk.run, message)
                case {"do": "update", "name": str(name)} if name in self._desks:
                    self._desks[name].put(message)
                case {"do": "close", "name": str(name)} if name in self._desks:
                    self._desks.pop(name).put(message)
                case {"do": "drain", "call": int(call), "grace": int() | float() as grace}:
                    nursery.start_soon(self._drain, nursery, call, grace)
                case _:
                    _end(LOST)

    async def _drain(self, nursery: trio.Nursery, call: int, grace: float) -> None:
        sandboxes = self._proxy.sandboxes
        await self._proxy.drain(grace)
        for sandbox in sandboxes:
            await all_finished(sandbox.flows, CUT_PATIENCE)
        self._done(call)
        await self._channel.written()
        nursery.cancel_scope.cancel(reason="drained")

    # -- for its sandboxes

    async def create(self, message: dict[str, Any]) -> Sandbox:
        name = message["name"]
        policy = await trio.to_thread.run_sync(Policy.parse, message["policy"])
        founding = Founding(base64.b64decode(message["key"]), base64.b64decode(message["certificate"]))
        sources = {each: RemoteSource(self._asker, name) for each in message["secrets"]}
        return self._proxy.create_sandbox(
            name,
            policy=policy,
            secrets=Secrets(sources),
            observers=[self._reporter] if message["events"] else [],
            identity=Identity(name, self._proxy.settings, founding=founding),
        )

    def _done(self, call: int, **more: Any) -> None:
        self._reporter.flush()
        self._channel.post({"do": "done", "call": call, **more})

    def _failed(self, call: int, error: BaseException) -> None:
        # Only errors of our own have texts that can't hold a secret.
        text = str(error) if isinstance(error, SbxproxyError) else type(error).__name__
        self._channel.post({"do": "failed", "call": call, "error": text})

    async def answer(self, message: dict[str, Any], done: Callable[[], Awaitable[Mapping[str, Any] | None]]) -> bool:
        """Do what a message asks for by ``await done()``, and tell the supervisor how it went; returns whether it went well."""
        try:
            more = await done()
        except Exception as error:  # noqa: BLE001 - the supervisor decides what becomes of this worker
            self._failed(message["call"], error)
            return False
        self._done(message["call"], **(more or {}))
        return True


class _Desk:
    """What is to be done about one sandbox, one thing after the other."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self._send, self._receive = trio.open_memory_channel[dict[str, Any]](1_000_000)

    def put(self, message: dict[str, Any]) -> None:
        self._send.send_nowait(message)

    async def run(self, message: dict[str, Any]) -> None:
        async with trio.open_nursery() as nursery:
            if not await self._worker.answer(message, partial(self._open, message, nursery)):
                return
            async for later in self._receive:
                if later["do"] == "close":
                    await self._worker.answer(later, self._close)
                    nursery.cancel_scope.cancel(reason="the sandbox was closed")
                    return
                await self._worker.answer(later, partial(self._update, later))

    async def _open(self, message: dict[str, Any], nursery: trio.Nursery) -> None:
        listeners = list(map(_listener, message.get("sockets", ())))
        self._sandbox = await self._worker.create(message)
        auth = message["auth"]

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            await self._sandbox.serve(
                listeners,
                auth=None if auth is None else ListenerAuth(user=auth[0], password=auth[1]),
                trusted_proxies=[text if text == "unix" else parse_network(text) for text in message["trusted"]],
                task_status=task_status,
            )

        await nursery.start(serve)

    async def _close(self) -> None:
        await self._sandbox.aclose()
        await all_finished(self._sandbox.flows, CUT_PATIENCE)

    async def _update(self, message: dict[str, Any]) -> dict[str, Any]:
        changed = await self._sandbox.update_policy(message["policy"])
        return {"cut": list(changed.cut), "kept": changed.kept}


def _endpoint(text: str) -> tuple[IPAddress, int]:
    host, _, port = text.rpartition(":")
    address = parse_address(host.removeprefix("[").removesuffix("]"))
    if address is None:
        _end(LOST)
    return address, int(port)


def _listener(number: int) -> trio.SocketListener:
    sock = socket.socket(fileno=number)
    sock.setblocking(False)  # noqa: FBT003 - positional only
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
