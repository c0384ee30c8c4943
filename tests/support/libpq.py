"""Two libpqs to connect with: psql's, one process per connection, and psycopg's, one process for all.

They are processes because Kerberos reads its variables from the environment, and because a blocked client must not block the proxy.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from support.postgres import psql
from support.programs import run

QUESTION = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"


@dataclass(frozen=True)
class Attempt:
    """How connecting went.

    Attributes:
        tls: whether the session is encrypted by TLS; ``None`` if there is no session.
        text: what the user is told.
    """

    tls: bool | None
    text: str


class Client(Protocol):
    async def __call__(self, dsn: str) -> Attempt: ...


@asynccontextmanager
async def open_psql(environment: Mapping[str, str], directory: Path) -> AsyncIterator[Client]:
    """Debian's psql."""

    async def connect(dsn: str) -> Attempt:
        ran = await run([psql(), dsn, "-XAtc", QUESTION], {**os.environ, **environment}, cwd=directory)
        return Attempt(ran.output.strip() == "t", "") if ran.code == 0 else Attempt(None, ran.output)

    yield connect


_WORKER = f"""
import json, psycopg, sys
for line in sys.stdin:
    try:
        with psycopg.connect(json.loads(line)) as connection:
            answer = connection.execute({QUESTION!r}).fetchone()[0], ""
    except psycopg.Error as error:
        answer = None, str(error)
    print(json.dumps(answer), flush=True)
"""


@asynccontextmanager
async def open_psycopg(environment: Mapping[str, str], directory: Path) -> AsyncIterator[Client]:
    """The libpq in psycopg's wheel."""
    async with trio.open_nursery() as nursery:
        streams = {"stdin": -1, "stdout": -1}
        process = await nursery.start(_start, [sys.executable, "-c", _WORKER], {**os.environ, **environment}, directory, streams)

        async def connect(dsn: str) -> Attempt:
            await process.stdin.send_all(json.dumps(dsn).encode() + b"\n")
            line = b""
            with trio.fail_after(60):
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive_some()
            return Attempt(*json.loads(line))

        yield connect
        nursery.cancel_scope.cancel()


async def _start(
    argv: list[str],
    environment: Mapping[str, str],
    directory: Path,
    streams: Mapping[str, int],
    *,
    task_status: trio.TaskStatus[trio.Process],
) -> None:
    await trio.run_process(argv, env=environment, cwd=directory, task_status=task_status, **streams)
