"""A firewall between a client and a real database. Drivers know no proxy variables, so they come in as redirected connections do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from support.firewall import Firewall, open_firewall
from support.postgres import NAME
from support.recorder import LOOPBACK, Recorder

LITERAL = "203.0.113.9"  # an address that the proxy never dials: a name leads elsewhere


@dataclass(eq=False)
class Database:
    """Where a client connects to, and what came out at the other end.

    Attributes:
        port: of this machine.
        accepted: how many connections came in there.
    """

    firewall: Firewall
    recorder: Recorder
    port: int = 0
    accepted: int = 0

    def forget(self) -> None:
        """Begin to count again."""
        self.accepted = 0
        self.recorder.connections.clear()


@asynccontextmanager
async def open_database(
    policy: object, server: int, *, directory: Path, target: str = NAME, **options: Any
) -> AsyncIterator[Database]:
    """Run a firewall before the database at port *server*.

    Args:
        policy: the sandbox's.
        server: a port of this machine.
        directory: for the firewall's files.
        target: whom the client wants, as the capture sees it: ``NAME``, ``LITERAL`` or the true address, ``LOOPBACK``.
        options: for ``open_firewall``.
    """
    recorder = Recorder(server)
    async with open_firewall(policy, directory=directory, resolve={NAME: [LOOPBACK]}, **options) as firewall:
        await firewall.nursery.start(recorder.serve)

        database = Database(firewall, recorder)

        async def handle(stream: trio.SocketStream) -> None:
            database.accepted += 1
            await firewall.sandbox.handle(stream, (target, recorder.port))

        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        database.port = listeners[0].socket.getsockname()[1]
        await firewall.nursery.start(trio.serve_listeners, handle, listeners)
        yield database
