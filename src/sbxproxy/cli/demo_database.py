"""The demo's database: a throw-away PostgreSQL server with TLS, where one is installed, and psql asked to reach it."""

from __future__ import annotations

__all__ = ["Database", "find_programs"]

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from sbxproxy.cli.cluster import find_binaries, lay_out
from sbxproxy.cli.origin import DATABASE
from sbxproxy.sandbox import Sandbox

_USER = "demo"
_PATIENCE = 30.0
"""Seconds that the server may take to come up."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What it takes."""

    psql: str
    bin: Path


def find_programs() -> Programs | None:
    """Find psql and a server; ``None`` if either isn't installed."""
    psql, binaries = shutil.which("psql"), find_binaries()
    return Programs(psql, binaries) if psql is not None and binaries is not None else None


@dataclass(frozen=True, slots=True)
class Database:
    """A running server, and the port through the sandbox's policy to it.

    Attributes:
        psql: the client.
        root: whom the client believes.
        front: the loopback port whose connections are the sandbox's, on their way to the server.
    """

    psql: str
    root: Path
    front: int

    @classmethod
    @asynccontextmanager
    async def open(
        cls, programs: Programs, *, root: Path, chain: bytes, directory: Path, sandbox: Sandbox
    ) -> AsyncIterator[Database]:
        """Start a server with the key and certificate in *chain*, and a front before it; both end with the block."""
        cluster = lay_out(programs.bin, directory, chain, user=_USER)
        run = partial(trio.run_process, stdin=b"", check=False, **cluster.process)
        made = await run(cluster.initdb, capture_stdout=True, stderr=subprocess.STDOUT)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stdout.decode(errors='replace')}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run, cluster.serve, stderr=subprocess.DEVNULL))
            await _until_up(cluster.port)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def carry(stream: trio.SocketStream) -> None:
                await sandbox.handle(stream, (DATABASE, cluster.port))

            await nursery.start(partial(trio.serve_listeners, carry, listeners))
            yield cls(programs.psql, root, listeners[0].socket.getsockname()[1])
            nursery.cancel_scope.cancel(reason="the database is no longer needed")

    async def ask(self, environment: Mapping[str, str], sslmode: str) -> tuple[int, str]:
        """Ask it with psql what it sees of the connection; returns psql's exit code and what it printed."""
        where = f"host={DATABASE} hostaddr=127.0.0.1 port={self.front} user={_USER} dbname=postgres connect_timeout=10"
        trust = f"sslmode={sslmode} sslrootcert={self.root} gssencmode=disable"
        question = "select 'reached, with ' || version from pg_stat_ssl where pid = pg_backend_pid()"
        done = await trio.run_process(
            [self.psql, "-XAtc", question, f"{where} {trust}"],
            env=environment, capture_stdout=True, stderr=subprocess.STDOUT, check=False, stdin=b"",
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")


async def _until_up(port: int) -> None:
    with trio.fail_after(_PATIENCE):
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            await trio.sleep(0.05)
