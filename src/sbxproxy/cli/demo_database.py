"""The demo's database: a throw-away PostgreSQL server with TLS, where one is installed, and psql asked to reach it."""

from __future__ import annotations

__all__ = ["Database", "find_programs"]

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from sbxproxy.cli.origin import DATABASE
from sbxproxy.sandbox import Sandbox

_USER = "demo"
_NOBODY = 65534
_PATIENCE = 30.0
"""Seconds that the server may take to come up."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What it takes."""

    psql: str
    bin: Path


def find_programs() -> Programs | None:
    """Find psql and a server; ``None`` if either isn't installed."""
    psql = shutil.which("psql")
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[4].zfill(4))
    found = servers[-1] if servers else Path(shutil.which("postgres") or "/nonexistent")
    return Programs(psql, found.resolve().parent) if psql is not None and (found.resolve().parent / "initdb").exists() else None


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
        cls, programs: Programs, *, root: Path, chain: Path, directory: Path, sandbox: Sandbox
    ) -> AsyncIterator[Database]:
        """Start a server with the key and certificate in *chain*, and a front before it; both end with the block."""
        data, private, who = _prepare(directory, chain)
        port = _free_port()
        run = partial(trio.run_process, stdin=b"", cwd=directory, check=False, **who)
        made = await run(
            [programs.bin / "initdb", "-D", data, "-U", _USER, "--auth=trust", "--no-sync", "--locale=C", "--no-instructions"],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stdout.decode(errors='replace')}")
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on", "ssl_cert_file": private,
            "ssl_key_file": private, "fsync": "off",
        }  # fmt: skip
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run, [programs.bin / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL))
            await _until_up(port)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def carry(stream: trio.SocketStream) -> None:
                await sandbox.handle(stream, (DATABASE, port))

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


def _prepare(directory: Path, chain: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Lay out data and key, and say as whom to run: a server refuses to be root, and keys that others may read."""
    data, private = directory / "data", directory / "server.pem"
    data.mkdir()
    private.touch(mode=0o600)
    private.write_bytes(chain.read_bytes())
    if os.geteuid() != 0:
        return data, private, {}
    for path in (directory, data, private):
        os.chown(path, _NOBODY, _NOBODY)
    return data, private, {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


async def _until_up(port: int) -> None:
    with trio.fail_after(_PATIENCE):
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            await trio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
