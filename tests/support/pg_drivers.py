"""PostgreSQL drivers as programs: connect, say whether TLS is in use, ask for a line of text.

Each is told the server's true name and finds it at a port of this machine, by ``hostaddr`` where a driver has that, else by a
name look-up of its own. What they send as server name is thus what they send in a sandbox.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from support.postgres import DATABASE, NAME, PASSWORD, USER, Server, psql
from support.programs import Ran, require, run, unavailable

HELLO = "hello from the database"
QUESTION = f"select ssl, '{HELLO}' from pg_stat_ssl where pid = pg_backend_pid()"
TLS_ANSWER, PLAIN_ANSWER = f"true {HELLO}", f"false {HELLO}"


@dataclass(frozen=True)
class Told:
    """What a script gets, as JSON in its only argument."""

    dsn: str
    port: int
    root: str | None
    host: str = NAME
    user: str = USER
    password: str = PASSWORD
    database: str = DATABASE
    question: str = QUESTION


_START = "import json, sys, types; told = types.SimpleNamespace(**json.loads(sys.argv[1]))\n"
_END = "\nprint(str(answer[0]).lower(), answer[1])"

_PSYCOPG = """
import psycopg
with psycopg.connect(told.dsn) as connection:
    answer = connection.execute(told.question).fetchone()
"""

_PSYCOPG2 = """
import psycopg2
connection = psycopg2.connect(told.dsn)
cursor = connection.cursor()
cursor.execute(told.question)
answer = cursor.fetchone()
"""

_ASYNCPG = """
import asyncio, asyncpg, socket, ssl

class Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(self, host, port, **_options):
        assert host == told.host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

async def main():
    tls = ssl.create_default_context(cafile=told.root) if told.root else False
    connection = await asyncpg.connect(
        host=told.host, port=told.port, user=told.user, password=told.password, database=told.database, ssl=tls, timeout=20
    )
    answer = await connection.fetchrow(told.question)
    await connection.close()
    return answer

loop = Loop()
answer = loop.run_until_complete(main())
loop.close()
"""

_PG8000 = """
import pg8000.dbapi, socket, ssl
tls = ssl.create_default_context(cafile=told.root) if told.root else False
connection = pg8000.dbapi.connect(
    told.user, host=told.host, sock=socket.create_connection(("127.0.0.1", told.port)), password=told.password,
    database=told.database, ssl_context=tls,
)
cursor = connection.cursor()
cursor.execute(told.question)
answer = cursor.fetchone()
connection.close()
"""

_NODE = """
const dns = require("node:dns"), fs = require("node:fs"), pg = require(process.argv[2]), told = JSON.parse(process.argv[3]);
dns.lookup = (host, options, callback) => {
  if (host !== told.host) throw new Error(`looked up ${host}`);
  if (options.all) callback(null, [{ address: "127.0.0.1", family: 4 }]); else callback(null, "127.0.0.1", 4);
};
const client = new pg.Client({
  host: told.host, port: told.port, user: told.user, password: told.password, database: told.database,
  ssl: told.root ? { ca: fs.readFileSync(told.root) } : false, enableChannelBinding: true, connectionTimeoutMillis: 20000,
});
client.connect()
  .then(() => client.query({ text: told.question, rowMode: "array" }))
  .then((result) => { console.log(result.rows[0].join(" ")); return client.end(); })
  .catch((error) => { console.error(error.message); process.exit(1); });
"""

_PYTHON = {
    "psycopg": ("psycopg", _PSYCOPG),
    "psycopg-direct": ("psycopg", _PSYCOPG),
    "psycopg2": ("psycopg2", _PSYCOPG2),
    "asyncpg": ("asyncpg", _ASYNCPG),
    "pg8000": ("pg8000", _PG8000),
}
DRIVERS = ["psql", *_PYTHON, "node-pg"]


def dsn(driver: str, server: Server, port: int, *, tls: bool, channel_binding: bool) -> str:
    """Return the parameters for the drivers that are libpq; the strictest that each knows."""
    strict = {"channel_binding": "require" if channel_binding else "prefer"}
    if driver == "psycopg-direct":
        strict["sslnegotiation"] = "direct"
    if tls:
        return server.dsn(port, sslmode="verify-full", **strict)
    return server.dsn(port, sslmode="disable", sslrootcert=None)


async def ask(
    driver: str,
    server: Server,
    port: int,
    *,
    tls: bool,
    directory: Path,
    npm_packages: Path | None = None,
    channel_binding: bool = True,
) -> Ran:
    """Let *driver* ask a server that it finds at *port*; its output is ``TLS_ANSWER`` or ``PLAIN_ANSWER`` if all goes well."""
    parameters = dsn(driver, server, port, tls=tls, channel_binding=channel_binding)
    told = Told(parameters, port, str(server.root) if tls else None)
    return await run(_argv(driver, told, directory, npm_packages), os.environ, cwd=directory)


def _argv(driver: str, told: Told, directory: Path, npm_packages: Path | None) -> Sequence[str]:
    if driver == "psql":
        question = told.question.replace("select ssl,", "select ssl::text,")
        return [psql(), told.dsn, "-XAtF", " ", "-c", question]
    if driver == "node-pg":
        assert npm_packages is not None
        script = directory / "ask.cjs"
        script.write_text(_NODE)
        return [require("node"), str(script), str(npm_packages / "pg"), json.dumps(asdict(told))]
    module, script_text = _PYTHON[driver]
    if find_spec(module) is None:
        unavailable(f"the Python package {module} is not installed")
    return [sys.executable, "-c", _START + script_text + _END, json.dumps(asdict(told))]
