"""Drivers, one row each: allowed by name, refused and told so, and let through untouched where an address range allows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from support.database import LITERAL, LOOPBACK, Database, open_database
from support.pg_drivers import DRIVERS, PLAIN_ANSWER, TLS_ANSWER, ask
from support.postgres import NAME, Server, Servers
from support.recorder import copy
from support.talk import connect, socks5

pytestmark = pytest.mark.real

BY_NAME = {"allow": [NAME]}
BY_RANGE = {"subnets": {"allow": ["127.0.0.0/8"]}}
OTHERS = {"allow": ["other.example.com"]}
WITHOUT_DIRECT = [driver for driver in DRIVERS if driver != "psycopg-direct"]


@pytest.fixture
def packages(driver: str, request: pytest.FixtureRequest) -> Path | None:
    return request.getfixturevalue("npm_packages") if driver == "node-pg" else None


def server_for(driver: str, servers: Servers, request: pytest.FixtureRequest, *, tls: bool = True) -> Server:
    """The older server, but for who needs the newer one."""
    return servers.get(request.getfixturevalue("new" if driver == "psycopg-direct" else "old"), tls=tls)


@pytest.mark.parametrize("target", [LITERAL, NAME])
@pytest.mark.parametrize("driver", DRIVERS)
async def test_allowed_by_name(
    driver: str, target: str, servers: Servers, packages: Path | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every driver names the server in its handshake, verifies the server's own certificate, and binds its password to it."""
    server = server_for(driver, servers, request)
    async with open_database(BY_NAME, server.port, directory=tmp_path, target=target) as database:
        ran = await ask(driver, server, database.port, tls=True, directory=tmp_path, npm_packages=packages)
        assert (ran.code, ran.output.strip()) == (0, TLS_ANSWER), ran.output
        event = await database.firewall.next_closed()
        assert (event.decision, event.reason, event.rule, event.server_name) == ("relay", "domain-allowed", NAME, NAME)
        assert database.accepted == 1
        assert database.recorder.plain_text == []


@pytest.mark.parametrize("target", [LITERAL, NAME])
@pytest.mark.parametrize("driver", DRIVERS)
async def test_denied_by_name(
    driver: str, target: str, servers: Servers, packages: Path | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In TLS there is one word for it, an alert; drivers show it where they show alerts at all."""
    server = server_for(driver, servers, request)
    async with open_database(OTHERS, server.port, directory=tmp_path, target=target) as database:
        ran = await ask(driver, server, database.port, tls=True, directory=tmp_path, npm_packages=packages)
        assert ran.code != 0
        assert re.search(r"(?i)access.denied", ran.output), ran.output
        event = await database.firewall.next_closed()
        assert (event.decision, event.reason) == ("deny", "domain-not-allowed")
        assert database.recorder.connections == []


@pytest.mark.parametrize("driver", WITHOUT_DIRECT)
async def test_p4_plain_text_is_refused_in_words_that_the_user_reads(
    driver: str, servers: Servers, packages: Path | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Its server name is allowed, but plain text has none; the user is told what to do instead."""
    server = server_for(driver, servers, request, tls=False)
    async with open_database(BY_NAME, server.port, directory=tmp_path, target=LITERAL) as database:
        ran = await ask(driver, server, database.port, tls=False, directory=tmp_path, npm_packages=packages)
        assert ran.code != 0
        assert "the sandbox's policy denies this: PostgreSQL without TLS" in ran, ran.output
        if driver != "node-pg":  # it has the hint, but not in its message
            assert "sslmode=require" in ran, ran.output
        event = await database.firewall.next_closed()
        assert (event.decision, event.reason) == ("deny", "postgres-plaintext")
        assert database.recorder.connections == []


@pytest.mark.parametrize(("policy", "target"), [(BY_RANGE, LOOPBACK), ("allow-all", NAME), ("allow-all", LOOPBACK)])
@pytest.mark.parametrize(
    ("driver", "tls"), [(driver, tls) for tls in (True, False) for driver in (DRIVERS if tls else WITHOUT_DIRECT)]
)
async def test_a_range_lets_everything_through_untouched(
    driver: str, policy: object, target: str, tls: bool, servers: Servers, packages: Path | None, request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Nothing of it is answered or asked by the proxy: what the client says first arrives first."""
    server = server_for(driver, servers, request, tls=tls)
    async with open_database(policy, server.port, directory=tmp_path, target=target) as database:
        ran = await ask(driver, server, database.port, tls=tls, directory=tmp_path, npm_packages=packages)
        assert (ran.code, ran.output.strip()) == (0, TLS_ANSWER if tls else PLAIN_ANSWER), ran.output
        [connection] = database.recorder.connections
        assert bool(connection.plain_text) is not tls
        assert len(connection.requests) == (1 if tls and driver != "psycopg-direct" else 0)
        await database.firewall.next_closed()


async def _tunnel(database: Database, how: str) -> int:
    """Listen on a port that leads to the database by way of the proxy's own front."""

    async def forward(client: trio.SocketStream) -> None:
        proxy = await database.firewall.open()
        if how == "CONNECT":
            status, _ = await connect(proxy, f"{NAME}:{database.recorder.port}")
            assert status == 200
        else:
            assert await socks5(proxy, NAME, database.recorder.port) == 0
        async with client, proxy, trio.open_nursery() as nursery:
            nursery.start_soon(copy, client, proxy)
            nursery.start_soon(copy, proxy, client)

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    await database.firewall.nursery.start(trio.serve_listeners, forward, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


@pytest.mark.parametrize("driver", ["psql", "psycopg-direct", "asyncpg"])
@pytest.mark.parametrize("how", ["CONNECT", "SOCKS5"])
async def test_through_a_proxy_that_is_asked(
    driver: str, how: str, servers: Servers, packages: Path | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """For programs that bring a tunnel of their own: the same negotiation goes on inside it."""
    server = server_for(driver, servers, request)
    async with open_database(BY_NAME, server.port, directory=tmp_path) as database:
        port = await _tunnel(database, how)
        ran = await ask(driver, server, port, tls=True, directory=tmp_path, npm_packages=packages)
        assert (ran.code, ran.output.strip()) == (0, TLS_ANSWER), ran.output
        event = await database.firewall.next_closed()
        assert (event.decision, event.reason, event.rule) == ("relay", "domain-allowed", NAME)
        assert database.recorder.plain_text == []
