"""Whole sessions behind a domain rule: much data, waiting, cancelling, replication, and what a change of policy does to them."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from support.database import LITERAL, LOOPBACK, open_database
from support.pg_drivers import TLS_ANSWER, ask
from support.postgres import NAME, Build, Server, Servers, psql

pytestmark = pytest.mark.real

BY_NAME = {"allow": [NAME]}
BY_RANGE = {"subnets": {"allow": ["127.0.0.0/8"]}}
CANCEL = bytes.fromhex("04d2162e")
SIZE = 100 * 2**20


@pytest.fixture
def server(servers: Servers, old: Build) -> Server:
    return servers.get(old)


async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking client beside the proxy; a test that fails doesn't wait for it."""
    with trio.fail_after(90):
        return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True)


def is_asleep(server: Server, pid: int) -> bool:
    """Ask the server itself whether a session is in ``pg_sleep``."""
    with psycopg.connect(server.dsn(server.port), autocommit=True) as connection:
        row = connection.execute("select wait_event from pg_stat_activity where pid = %s", [pid]).fetchone()
    return row == ("PgSleep",)


def wait_until_asleep(server: Server, pid: int) -> None:
    deadline = time.monotonic() + 30
    while not is_asleep(server, pid):
        assert time.monotonic() < deadline, "the query did not begin"
        time.sleep(0.02)


def wake(server: Server, pid: int) -> None:
    with psycopg.connect(server.dsn(server.port), autocommit=True) as connection:
        connection.execute("select pg_cancel_backend(%s)", [pid])


async def test_copy_both_ways_changes_no_byte(server: Server, tmp_path: Path) -> None:
    """100 MiB in and out again."""
    chunks = [random.randbytes(2**20) for _ in range(8)]
    table = f"copied_{os.getpid()}"

    def work(port: int) -> tuple[str, str]:
        sent, received = hashlib.sha256(), hashlib.sha256()
        with psycopg.connect(server.dsn(port, channel_binding="require")) as connection, connection.cursor() as cursor:
            cursor.execute(f"create temporary table {table} (n int, block bytea)")
            with cursor.copy(f"copy {table} from stdin (format binary)") as copy:
                copy.set_types(["int4", "bytea"])
                for number in range(SIZE // 2**20):
                    block = chunks[number % len(chunks)]
                    sent.update(block)
                    copy.write_row((number, block))
            with cursor.copy(f"copy (select block from {table} order by n) to stdout (format binary)") as copy:
                copy.set_types(["bytea"])
                for row in copy.rows():
                    received.update(row[0])
        return sent.hexdigest(), received.hexdigest()

    async with open_database(BY_NAME, server.port, directory=tmp_path) as database:
        sent, received = await in_thread(work, database.port)
        event = await database.firewall.next_closed()
    assert sent == received
    assert event.bytes_up > SIZE
    assert event.bytes_down > SIZE


async def test_queries_in_a_pipeline(server: Server, tmp_path: Path) -> None:
    def work(port: int) -> list[int]:
        with psycopg.connect(server.dsn(port)) as connection, connection.pipeline():
            cursors = [connection.execute("select %s::int", [number]) for number in range(2000)]
            return [row[0] for cursor in cursors if (row := cursor.fetchone()) is not None]

    async with open_database(BY_NAME, server.port, directory=tmp_path) as database:
        assert await in_thread(work, database.port) == list(range(2000))


async def test_a_notification_arrives_unasked(server: Server, tmp_path: Path) -> None:
    """The server speaks first after a while."""

    def work(port: int) -> list[str]:
        with (
            psycopg.connect(server.dsn(port), autocommit=True) as listener,
            psycopg.connect(server.dsn(server.port), autocommit=True) as other,
        ):
            listener.execute("listen news")
            time.sleep(0.5)
            other.execute("notify news, 'it rained'")
            return [notification.payload for notification in listener.notifies(timeout=30, stop_after=1)]

    async with open_database(BY_NAME, server.port, directory=tmp_path) as database:
        assert await in_thread(work, database.port) == ["it rained"]


@pytest.mark.parametrize(("policy", "target"), [(BY_NAME, LITERAL), (BY_RANGE, LOOPBACK)], ids=["by-name", "by-range"])
async def test_p8_a_query_is_cancelled_over_tls(policy: object, target: str, server: Server, tmp_path: Path) -> None:
    """Newer libpqs cancel the way the session is encrypted, which names the server."""

    def work(port: int) -> str:
        def cancel() -> None:
            wait_until_asleep(server, pid)
            connection.cancel_safe(timeout=20)

        with psycopg.connect(server.dsn(port), autocommit=True) as connection:
            pid = connection.info.backend_pid
            helper = threading.Thread(target=cancel)
            helper.start()
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                connection.execute("select pg_sleep(60)")
            helper.join()
        return str(caught.value)

    async with open_database(policy, server.port, directory=tmp_path, target=target) as database:
        assert "user request" in await in_thread(work, database.port)
        await database.firewall.next_closed(2)
        assert database.firewall.reasons == ["domain-allowed" if policy is BY_NAME else "range-allowed"] * 2
        assert database.recorder.plain_text == []


@pytest.mark.parametrize(("policy", "target"), [(BY_NAME, LITERAL), (BY_RANGE, LOOPBACK)], ids=["by-name", "by-range"])
async def test_p8_control_c_in_psql(policy: object, target: str, server: Server, tmp_path: Path) -> None:
    """psql's request is in plain text even where its session is not: refused where a name decides, and the query goes on."""
    script = "select pg_backend_pid();\nselect pg_sleep(60);\n"
    async with open_database(policy, server.port, directory=tmp_path, target=target) as database, trio.open_nursery() as nursery:
        command = [psql(), server.dsn(database.port), "-XAt"]
        process: trio.Process = await nursery.start(_start, command)
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(script.encode())
        await process.stdin.aclose()
        with trio.fail_after(60):
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
            pid = int(line)
            await in_thread(wait_until_asleep, server, pid)
            process.send_signal(signal.SIGINT)
            if policy is BY_NAME:
                assert (await database.firewall.next_closed()).reason == "postgres-plaintext"
                assert await in_thread(is_asleep, server, pid)
                await in_thread(wake, server, pid)
            rest = b"".join([chunk async for chunk in process.stdout])
            code = await process.wait()
    assert (code, rest) == (3, b"")  # psql leaves its script at Ctrl-C, once the query has ended
    assert [text[4:8] for text in database.recorder.plain_text] == ([] if policy is BY_NAME else [CANCEL])


async def _start(argv: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, task_status=task_status
    )


def _replicate(server: Server, port: int, **options: object) -> list[bytes | None]:
    """Begin as a replica does; return the names of what the server says of itself."""
    with psycopg.connect(server.dsn(port, replication="database", **options), autocommit=True) as connection:
        result = connection.pgconn.exec_(b"IDENTIFY_SYSTEM")
        return [result.fname(number) for number in range(result.nfields)]


async def test_replication_goes_where_its_server_is_allowed(server: Server, tmp_path: Path) -> None:
    async with open_database(BY_NAME, server.port, directory=tmp_path, target=LITERAL) as database:
        assert b"systemid" in await in_thread(_replicate, server, database.port)
        with pytest.raises(psycopg.OperationalError, match="PostgreSQL without TLS"):
            await in_thread(lambda: _replicate(server, database.port, sslmode="disable"))
    async with open_database({"allow": ["other.example.com"]}, server.port, directory=tmp_path, target=LITERAL) as database:
        with pytest.raises(psycopg.OperationalError, match="access denied"):
            await in_thread(_replicate, server, database.port)
        assert database.recorder.connections == []


async def test_an_update_cuts_an_open_session(server: Server, tmp_path: Path) -> None:
    """In the middle of a query too; and what remains allowed goes on."""
    async with open_database(BY_NAME, server.port, directory=tmp_path, target=LITERAL) as database:
        port = database.port
        connection: psycopg.Connection[Any] = await in_thread(lambda: psycopg.connect(server.dsn(port), autocommit=True))
        kept = await database.firewall.sandbox.update_policy({"allow": ["*.example.com"]})
        assert (kept.cut, kept.kept) == ((), 1)
        assert (await in_thread(lambda: connection.execute("select 1").fetchone())) == (1,)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_loses_its_session, connection)
            await in_thread(wait_until_asleep, server, connection.info.backend_pid)
            change = await database.firewall.sandbox.update_policy("deny-all")
        assert len(change.cut) == 1
        event = database.firewall.closed()[0]
        assert event.ended == "policy-changed"
        with pytest.raises(psycopg.OperationalError):
            await in_thread(lambda: psycopg.connect(server.dsn(port)))
        assert len(database.recorder.connections) == 1


async def _loses_its_session(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.OperationalError):
        await in_thread(connection.execute, "select pg_sleep(60)")
    connection.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg-direct"])
async def test_c9_a_rule_for_the_domain_changes_nothing(driver: str, servers: Servers, new: Build, tmp_path: Path) -> None:
    """No request is in there that a header could be put into. Were TLS ended here, binding the password to it would fail."""
    server = servers.get(new)
    policy = {"allow": {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:token}"}}]}]}}
    secrets = {"token": "canary-7d1e09"}
    async with open_database(policy, server.port, directory=tmp_path, target=LITERAL, secrets=secrets) as database:
        ran = await ask(driver, server, database.port, tls=True, directory=tmp_path)
        assert (ran.code, ran.output.strip()) == (0, TLS_ANSWER), ran.output
        event = await database.firewall.next_closed()
        assert (event.decision, event.reason) == ("relay", "domain-allowed")
        assert database.recorder.plain_text == []


@pytest.mark.parametrize("driver", ["psql", "psycopg2", "asyncpg"])
async def test_a_pooler_is_a_server_like_any_other(driver: str, server: Server, pgbouncer: int, tmp_path: Path) -> None:
    """It is told by what it speaks, not by its port; and its own certificate is the one that counts."""
    async with open_database(BY_NAME, pgbouncer, directory=tmp_path, target=LITERAL) as database:
        ran = await ask(driver, server, database.port, tls=True, directory=tmp_path, channel_binding=False)
        assert (ran.code, ran.output.strip()) == (0, TLS_ANSWER), ran.output
        assert database.recorder.plain_text == []
