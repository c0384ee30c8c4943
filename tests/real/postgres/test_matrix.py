"""What becomes of a connection, for every way in which libpq negotiates encryption.

The rule behind the table: where a name decides, a session comes about by TLS or not at all, and no plain text reaches the server on
the way there, whatever the client tries next.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest

from support.database import LITERAL, Database, open_database
from support.krb5 import Realm
from support.libpq import Attempt, Client, open_psql, open_psycopg
from support.postgres import NAME, Server, Servers
from support.recorder import Connection

pytestmark = pytest.mark.real

SSLMODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
GSSAPI = [("disable", False), ("prefer", False), ("prefer", True), ("require", False), ("require", True)]  # mode, has a ticket
CLIENTS = ["psql", "psycopg", "psycopg-direct"]
OUR_WORDS = "PostgreSQL without TLS passes to allowed ranges only"


@dataclass(frozen=True)
class Case:
    client: str
    sslmode: str
    gssencmode: str
    ticket: bool
    server_tls: bool
    allowed: bool

    @property
    def direct(self) -> bool:
        """TLS without asking first."""
        return self.client.endswith("direct")

    def __str__(self) -> str:
        kerberos = f"gssencmode={self.gssencmode} {'with' if self.ticket else 'without'} a ticket"
        return f"sslmode={self.sslmode} {kerberos}"


@dataclass(frozen=True)
class Result:
    """What is observable.

    Attributes:
        session: ``tls``, ``plain text`` or ``none``.
        told: whether the user reads our refusal of plain text.
        connections: how many the client opened to the proxy.
        upstream: how many the proxy opened to the server.
    """

    session: str
    told: bool
    connections: int
    upstream: int


def expected(case: Case) -> Result:
    """The table."""
    open_ = case.allowed and case.server_tls
    asked = 1 if case.allowed else 0  # connections on which the server was asked for TLS
    not_tried = Result("none", told=False, connections=0, upstream=0)
    fails = Result("none", told=False, connections=1, upstream=asked)
    by_tls = Result("tls", told=False, connections=1, upstream=1)

    if case.direct and case.sslmode in {"disable", "allow", "prefer"}:
        return not_tried  # such a mode would allow less than direct TLS is, says libpq
    match case.gssencmode, case.ticket:
        case "require", True:
            return Result("none", told=False, connections=1, upstream=0)  # our N ends it
        case "require", False:
            # The newer one knows before it connects that it can't; the older one leaves without a word.
            return Result("none", told=False, connections=1, upstream=0) if case.client == "psql" else not_tried
        case "prefer", True if case.direct:
            # Direct TLS is no answer to our N on the same connection, so there is another one.
            return replace(by_tls if open_ else fails, connections=2)
    match case.sslmode:
        case "disable":
            return Result("none", told=True, connections=1, upstream=0)
        case "allow":  # plain text, refused; then TLS
            return Result("tls" if open_ else "none", told=not open_, connections=2, upstream=asked)
        case "prefer":  # TLS; if it fails, plain text, refused
            return by_tls if open_ else Result("none", told=True, connections=2, upstream=asked)
        case _:
            return by_tls if open_ else fails


def observed(attempt: Attempt, database: Database) -> Result:
    session = {True: "tls", False: "plain text", None: "none"}[attempt.tls]
    return Result(session, OUR_WORDS in attempt.text, database.accepted, len(database.recorder.connections))


def began_with_tls(connection: Connection, *, server_tls: bool) -> bool:
    """Tell whether this is a request for TLS, perhaps with a handshake after it, or a handshake at once."""
    return not connection.plain_text and (server_tls or connection.size == 8 or not connection.requests)


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "denied"])
@pytest.mark.parametrize("server_tls", [True, False], ids=["tls", "no-tls"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_p5_a_session_is_encrypted_or_there_is_none(
    client: str, server_tls: bool, allowed: bool, servers: Servers, realm: Realm, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    build = request.getfixturevalue("old" if client == "psql" else "new")
    server = servers.get(build, tls=server_tls)
    policy = {"allow": [NAME if allowed else "other.example.com"]}
    wrong = []
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(policy, server.port, directory=tmp_path, target=LITERAL))
        start = open_psql if client == "psql" else open_psycopg
        clients: dict[bool, Client] = {
            ticket: await stack.enter_async_context(start(realm.environment(ticket=ticket), tmp_path)) for ticket in (False, True)
        }
        for sslmode, (gssencmode, ticket) in product(SSLMODES, GSSAPI):
            case = Case(client, sslmode, gssencmode, ticket, server_tls, allowed)
            database.forget()
            attempt = await clients[ticket](_dsn(case, server, database.port))
            connections = database.recorder.connections
            if observed(attempt, database) != expected(case):
                wrong.append(f"{case}: {observed(attempt, database)}, not {expected(case)}: {attempt.text}")
            if not all(began_with_tls(connection, server_tls=server_tls) for connection in connections):
                wrong.append(f"{case}: the server was sent {connections}")
    assert not wrong, "\n".join(wrong)


def _dsn(case: Case, server: Server, port: int) -> str:
    return server.dsn(
        port,
        sslmode=case.sslmode,
        gssencmode=case.gssencmode,
        sslnegotiation="direct" if case.direct else None,
        sslrootcert=server.root if case.sslmode.startswith("verify") else None,
    )
