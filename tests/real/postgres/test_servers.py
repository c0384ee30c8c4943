"""The servers themselves, without a firewall: what the other tests suppose of them."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
import trio

from sbxproxy.wire.postgres import GSSENC_REQUEST, SSL_REQUEST
from support.krb5 import Realm
from support.postgres import Build, Server, Servers, psql
from support.programs import run
from support.recorder import Recorder

pytestmark = pytest.mark.real

ENCRYPTED = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"


@pytest.mark.parametrize("build", ["old", "new"])
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_a_server_encrypts_as_it_was_asked(build: str, tls: bool, servers: Servers, request: pytest.FixtureRequest) -> None:
    chosen: Build = request.getfixturevalue(build)
    server = servers.get(chosen, tls=tls)
    with psycopg.connect(server.dsn(server.port, sslmode="verify-full" if tls else "prefer")) as connection:
        assert connection.execute(ENCRYPTED).fetchone() == ((True, "TLSv1.3") if tls else (False, None))
        assert connection.info.server_version // 10_000 == chosen.version


def test_a_server_without_tls_says_so(servers: Servers, old: Build) -> None:
    server = servers.get(old, tls=False)
    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        psycopg.connect(server.dsn(server.port, sslmode="require"))


async def test_a_ticket_makes_clients_ask_for_kerberos(kerberos_server: Server, realm: Realm, tmp_path: Path) -> None:
    """Both libpqs do; without a ticket neither asks."""
    question = "select encrypted, principal from pg_stat_gssapi where pid = pg_backend_pid()"
    async with trio.open_nursery() as nursery:
        recorder = Recorder(kerberos_server.port)
        await nursery.start(recorder.serve)
        dsn = kerberos_server.dsn(recorder.port, gssencmode="prefer", sslmode="prefer")
        for ticket, answer in ((True, "t|app@TEST.EXAMPLE"), (False, "f|")):
            ran = await run([psql(), dsn, "-XAtc", question], {**os.environ, **realm.environment(ticket=ticket)}, cwd=tmp_path)
            assert ran.output.strip() == answer
            assert recorder.connections[-1].requests == [GSSENC_REQUEST if ticket else SSL_REQUEST]
        nursery.cancel_scope.cancel()


def test_a_pooler_speaks_tls(servers: Servers, old: Build, pgbouncer: int) -> None:
    server = servers.get(old)
    with psycopg.connect(server.dsn(pgbouncer)) as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("select 1").fetchone() == (1,)
