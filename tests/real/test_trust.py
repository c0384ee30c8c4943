"""Real clients under ``sbxproxy run``, told nothing: which of them meet the policy as they should, and which can't be made to.

Each client asks four servers, one after the other. What came of it, as the servers, the events and the client itself tell, must be
what ``ROWS`` says, for better or worse; ``docs/clients.md`` shows the same table.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio
import trustme

from support.clients import CLIENTS, Case, Client, Tools
from support.daemons import world_directory
from support.island import ADDRESS, Island, open_island
from support.origin import Origin
from support.outcomes import CASES, FINE, MODES, ROWS, Outcome, Outcomes, table
from support.postgres import PASSWORD, Servers, debian_build
from support.program import PROGRAM
from support.programs import require, run, unavailable
from support.recorder import copy
from support.site import make_repository, site

pytestmark = pytest.mark.real

CANARY = "canary-7d01c4e2a9"
NAMES = {case: f"{case}.test.example" for case in CASES}

# Runs in the sandbox; a line of JSON for each command.
DRIVER = """
import json, subprocess, sys
for argv, directory in json.loads(sys.argv[1]):
    try:
        done = subprocess.run(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=-1, stderr=subprocess.STDOUT, timeout=45)
        code, output = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired:
        code, output = "too long", ""
    print(json.dumps([code, output]), flush=True)
"""


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    with world_directory("trust") as directory:
        yield Tools(directory)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    with open_island(3) as island:
        yield island


@dataclass(frozen=True)
class Attempt:
    """What a client's run left behind.

    Attributes:
        done: whether the client says that it got what it asked for.
        output: what else it says.
        decisions: on connections to this name.
        reached: whether the server saw a connection.
        headers: the ``Authorization`` of each request that the server read.
    """

    done: bool
    output: str
    decisions: frozenset[str]
    reached: bool
    headers: Sequence[tuple[str, ...]]

    def outcome(self, case: str) -> Outcome:
        if not self.done:
            # A client that doesn't trust whom it meets sends no request; one that can't get there reaches nobody.
            if self.headers:
                return Outcome.BROKEN
            if "NO_APPLICATION_PROTOCOL" in self.output:
                return Outcome.UNSPOKEN
            return Outcome.DISTRUSTED if self.decisions and case != "denied" else Outcome.UNREACHED
        if self.decisions == {"relay"} and set(self.headers) == {()}:
            return Outcome.RELAYED
        if self.decisions == {"inspect"} and set(self.headers) == {(f"Bearer {CANARY}",)}:
            return Outcome.INJECTED
        return Outcome.BROKEN


async def confine(
    island: Island,
    mode: str,
    directory: Path,
    root: Path,
    commands: Sequence[tuple[Sequence[str], Path]],
    options: Sequence[str] = (),
) -> tuple[list[tuple[object, str]], dict[str, frozenset[str]]]:
    """Run *commands* in one sandbox; return how each ended and what it said, and the decisions by server name."""
    events = directory / "events"
    argv = [
        *PROGRAM, "run", f"--capture={mode}", *options, "--quiet", f"--events={events}", f"--private-network={ADDRESS}/32",
        f"--allow={NAMES['allowed']}", f"--allow={NAMES['stranger']}", "--secret=token=env:SBX_TEST_TOKEN",
        f"--inject={NAMES['injected']}:Authorization: Bearer ${{secret:token}}", f"--upstream-ca={root}",
        *(f"--resolve={name}:{ADDRESS}" for name in NAMES.values()),
        "--", sys.executable, "-c", DRIVER, json.dumps([(list(argv), str(where)) for argv, where in commands]),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(("PIP_", "UV_", "NPM_"))}
    if options:
        env["HOME"] = str(directory)  # where such options leave something
    ran = await run(island.inside(argv), {**env, "SBX_TEST_TOKEN": CANARY}, cwd=directory, patience=110)
    assert ran.code == 0, ran.output
    assert CANARY not in ran.output
    found: dict[str, set[str]] = {}
    log = events.read_text() if events.exists() else ""
    assert CANARY not in log
    for event in map(json.loads, log.splitlines()):
        if event["event"] == "flow-closed":
            found.setdefault(event["server_name"] or event["target"].rpartition(":")[0], set()).add(event["decision"])
    return [tuple(json.loads(line)) for line in ran.output.splitlines()], {name: frozenset(each) for name, each in found.items()}


def directories(directory: Path) -> dict[str, Path]:
    found = {case: directory / case for case in CASES}
    for each in found.values():
        each.mkdir()
    return found


async def attempt(client: Client, mode: str, island: Island, tools: Tools, root: Path, directory: Path) -> dict[str, Attempt]:
    """Run *client* in one sandbox against all servers."""
    ours = Origin((NAMES["allowed"], NAMES["injected"]), respond=site(root), listener=island.listener(0))
    other = Origin((NAMES["denied"],), authority=ours.authority, respond=site(root), listener=island.listener(1))
    stranger = Origin((NAMES["stranger"],), respond=site(root), listener=island.listener(2))
    origins = {"allowed": ours, "injected": ours, "denied": other, "stranger": stranger}
    async with trio.open_nursery() as nursery:
        for origin in (ours, other, stranger):
            await nursery.start(origin.serve)
        places = directories(directory)
        cases = {case: Case(f"https://{NAMES[case]}:{origin.port}", places[case], tools) for case, origin in origins.items()}
        commands = [(client.argv(case), case.directory) for case in cases.values()]
        options = client.options if mode == "namespaces" else ()
        ends, decisions = await confine(island, mode, directory, ours.write_root(directory), commands, options)
        nursery.cancel_scope.cancel()
    found = {}
    for (case, origin), (code, output) in zip(origins.items(), ends, strict=True):
        seen = [request for request in origin.requests if (request.one("host") or "").startswith(NAMES[case])]
        found[case] = Attempt(
            done=code == 0 and client.succeeded(cases[case], output),
            output=f"{code}: {output}",
            decisions=decisions.get(NAMES[case], frozenset()),
            reached=origin.connections > 0,
            headers=[tuple(request.all("authorization")) for request in seen],
        )
    return found


def expected(client: str, mode: str) -> Outcomes:
    if client in {"node-fetch", "node-https"} and mode == "env":
        version = subprocess.run([require("node"), "--version"], check=True, capture_output=True, text=True).stdout
        major, minor = (int(part) for part in version.removeprefix("v").split(".")[:2])
        if (major, minor) >= (24, 5) or (major == 22 and minor >= 21):
            return FINE
    return ROWS[client].by_mode[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("client", CLIENTS)
async def test_client(client: str, mode: str, island: Island, tools: Tools, repository: Path, tmp_path: Path) -> None:
    """Whoever skips verification would be taken in by the stranger, whose authority is in no list of roots."""
    found = await attempt(CLIENTS[client], mode, island, tools, repository, tmp_path)
    said = "\n".join(f"{case}: {each}" for case, each in found.items())
    assert {case: each.outcome(case) for case, each in found.items()} == expected(client, mode), said
    assert not found["denied"].reached
    assert "deny" not in found["allowed"].decisions | found["stranger"].decisions


# What it is told comes from the server: the call's own metadata.
GRPC_SERVER = """
import grpc, sys
from concurrent import futures
address, *pairs = sys.argv[1:]
seen = lambda request, context: str(dict(context.invocation_metadata()).get("authorization")).encode()
method = grpc.unary_unary_rpc_method_handler(seen)
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", {"Seen": method})])
for pair in pairs:
    with open(pair, "rb") as file:
        pem = file.read()
    print(server.add_secure_port(f"{address}:0", grpc.ssl_server_credentials([(pem, pem)])))
server.start()
print("up", flush=True)
sys.stdin.read()
server.stop(0)
"""
GRPC_CLIENT = """
import grpc, sys
with grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials()) as channel:
    print(channel.unary_unary("/test.Test/Seen")(b"", timeout=30).decode())
"""


@pytest.mark.parametrize("mode", MODES)
async def test_grpc(mode: str, island: Island, tmp_path: Path) -> None:
    """It speaks nothing but HTTP/2, which a terminated connection does not offer: that must fail at once and be told."""
    if find_spec("grpc") is None:
        unavailable("the Python package grpcio is not installed")
    ours, strange = trustme.CA(), trustme.CA()
    places = directories(tmp_path)
    files = []
    for authority, names in ((ours, ("allowed", "injected")), (ours, ("denied",)), (strange, ("stranger",))):
        files.append(tmp_path / f"{names[0]}.pem")
        authority.issue_cert(*(NAMES[name] for name in names)).private_key_and_cert_chain_pem.write_to_path(files[-1])
    root = tmp_path / "root.pem"
    ours.cert_pem.write_to_path(root)
    server = subprocess.Popen(
        island.inside([sys.executable, "-c", GRPC_SERVER, ADDRESS, *map(str, files)]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        first, second, third, up = (server.stdout.readline().strip() for _ in range(4))
        assert up == "up"
        ports = {"allowed": first, "injected": first, "denied": second, "stranger": third}
        commands = [([sys.executable, "-c", GRPC_CLIENT, f"{NAMES[case]}:{ports[case]}"], places[case]) for case in CASES]
        ends, decisions = await confine(island, mode, tmp_path, root, commands)
    finally:
        server.communicate("")
    found = {}
    for case, (code, output) in zip(CASES, ends, strict=True):
        headers = [(f"Bearer {CANARY}",) if "Bearer" in output else ()] if code == 0 else []
        attempt = Attempt(code == 0, f"{code}: {output}", decisions.get(NAMES[case], frozenset()), False, headers)
        found[case] = attempt
    said = "\n".join(f"{case}: {each}" for case, each in found.items())
    assert {case: each.outcome(case) for case, each in found.items()} == expected("grpc", mode), said
    assert '"no-common-protocol"' in (tmp_path / "events").read_text()


LIBPQ = """
import psycopg, sys
host, port, password = sys.argv[1:]
with psycopg.connect(host=host, port=port, user="app", password=password, dbname="postgres", sslmode="verify-full",
                     sslrootcert="system", connect_timeout=20) as connection:
    print(connection.execute("select 'hello from the origin'").fetchone()[0])
"""


@pytest.mark.parametrize("mode", MODES)
async def test_libpq(mode: str, island: Island, tmp_path: Path) -> None:
    """``sslrootcert=system`` is OpenSSL's own default, which a variable names; the server's TLS goes through untouched.

    The stranger here has a certificate of the right authority for another name.
    """
    ours = Origin(("database",), tls=False, listener=island.listener(0))
    other = Origin(("database",), tls=False, listener=island.listener(1))
    with world_directory("trust-postgres") as directory, contextlib.ExitStack() as stack:
        server = Servers(stack, directory, [NAMES["allowed"], NAMES["denied"]]).get(debian_build())

        async def forward(stream: trio.abc.Stream) -> None:
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as database, trio.open_nursery() as nursery:
                nursery.start_soon(copy, stream, database)
                nursery.start_soon(copy, database, stream)

        ours.handler = other.handler = forward
        async with trio.open_nursery() as nursery:
            for origin in (ours, other):
                await nursery.start(origin.serve)
            cases = {"allowed": ours, "denied": other, "stranger": ours}
            places = directories(tmp_path)
            commands = [
                ([sys.executable, "-c", LIBPQ, NAMES[case], str(origin.port), PASSWORD], places[case])
                for case, origin in cases.items()
            ]
            ends, decisions = await confine(island, mode, tmp_path, server.root, commands)
            nursery.cancel_scope.cancel()
    found = {}
    for case, (code, output) in zip(cases, ends, strict=True):
        headers = [()] if code == 0 else []
        found[case] = Attempt(code == 0, f"{code}: {output}", decisions.get(NAMES[case], frozenset()), False, headers)
    said = "\n".join(f"{case}: {each}" for case, each in found.items())
    assert {case: each.outcome(case) for case, each in found.items()} == expected("libpq", mode), said
    assert other.connections == 0


def test_the_documents_show_the_same_table() -> None:
    assert table() in Path(__file__).parents[2].joinpath("docs", "clients.md").read_text(), f"it should be:\n{table()}"


def test_every_client_is_in_the_table() -> None:
    assert ROWS.keys() == CLIENTS.keys() | {"grpc", "libpq"}
