"""``python -m benchmarks postgres [--quick]``: pgbench through sbxproxy against pgbench straight to the server, in one run.

A server of its own with TLS, on loopback. pgbench knows no proxies, so the firewall stands at a loopback port whose connections it takes
as captured ones: the name comes from the handshake, and every session goes through the whole negotiation.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sbxproxy.cli.cluster import find_binaries, lay_out

NAME = "db.bench.example"
USER = "bench"

_FRONT = """
import sys
import trio
from ipaddress import ip_address, ip_network
from sbxproxy import Proxy, Settings
from sbxproxy.hostname import Hostname

async def main(name, port):
    settings = Settings(resolve={Hostname(name): [ip_address("127.0.0.1")]}, private_networks=[ip_network("127.0.0.0/8")])
    proxy = Proxy(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("bench", policy={"allow": [name]})
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        print(listeners[0].socket.getsockname()[1], flush=True)
        async def carry(stream):
            await sandbox.handle(stream, ("203.0.113.9", port))
        await trio.serve_listeners(carry, listeners)

trio.run(main, sys.argv[1], int(sys.argv[2]))
"""


@dataclass(slots=True)
class Row:
    """Figures of one way to the server.

    Attributes:
        connections: sessions a second, each with one query, one figure a round.
        transactions: queries a second over standing sessions, one figure a round.
        cpu: the proxy's processor time per session in microseconds, one figure a round; empty for direct.
    """

    way: str
    port: int
    pid: int | None = None
    connections: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, and save it as JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks postgres", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="see that it works: one round of a second; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    binaries = find_binaries()
    if binaries is None or not (binaries / "pgbench").exists():
        print("no PostgreSQL server with pgbench in /usr/lib/postgresql (Debian: postgresql)", file=sys.stderr)
        return 1
    console = Console(stderr=True)
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sbxproxy-bench-")))
        server = stack.enter_context(_server(binaries, directory))
        front = stack.enter_context(_front(server))
        rows = [Row("direct", server), Row("sbxproxy", *front)]
        task = progress.add_task("postgres", total=rounds * len(rows) * 2)
        for _ in range(rounds):
            for row in rows:
                _measure(binaries, row, seconds, options.clients, lambda: progress.advance(task))
    _show(rows)
    if not options.quick:
        _save(rows, options, options.out)
    return 0


def _measure(binaries: Path, row: Row, seconds: float, clients: int, tick: Any) -> None:
    before = _cpu(row.pid)
    output = _pgbench(binaries, row.port, "-C", "-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds))))
    row.connections.append(_figure(output))
    if row.pid is not None:
        done = int(_match(r"transactions actually processed: (\d+)", output))
        row.cpu.append((_cpu(row.pid) - before) / done * 1e6)
    tick()
    output = _pgbench(binaries, row.port, "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds))))
    row.transactions.append(_figure(output))
    tick()


def _figure(output: str) -> float:
    if int(_match(r"number of failed transactions: (\d+)", output)):
        raise SystemExit(f"pgbench had failures:\n{output}")
    return float(_match(r"tps = ([\d.]+)", output))


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"pgbench said something else than expected:\n{text}")
    return found[1]


def _pgbench(binaries: Path, port: int, *options: str) -> str:
    where = f"host={NAME} hostaddr=127.0.0.1 port={port} user={USER} dbname=postgres sslmode=require gssencmode=disable"
    done = subprocess.run(
        [binaries / "pgbench", "-n", "-S", *options, where], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise SystemExit(f"pgbench ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def _server(binaries: Path, directory: Path) -> Iterator[int]:
    """Run a server that answers as fast as it can; yields its port."""
    chain = trustme.CA().issue_cert(NAME).private_key_and_cert_chain_pem.bytes()
    cluster = lay_out(binaries, directory, chain, user=USER, settings={"max_connections": 200})
    port = cluster.port
    subprocess.run(cluster.initdb, check=True, capture_output=True, **cluster.process)
    with subprocess.Popen(cluster.serve, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **cluster.process) as server:
        try:
            _until_up(port)
            where = f"host=127.0.0.1 port={port} user={USER} dbname=postgres"
            subprocess.run([binaries / "pgbench", "-i", "-q", where], check=True, capture_output=True)
            yield port
        finally:
            server.terminate()


@contextmanager
def _front(server: int) -> Iterator[tuple[int, int]]:
    """Run the firewall before *server*; yields its port and process id."""
    with subprocess.Popen([sys.executable, "-c", _FRONT, NAME, str(server)], stdout=subprocess.PIPE, text=True) as front:
        try:
            assert front.stdout is not None
            yield int(front.stdout.readline()), front.pid
        finally:
            front.terminate()


def _until_up(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _cpu(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ratio(row: Row, direct: Row, what: str) -> float:
    return float(statistics.median(getattr(row, what)) / statistics.median(getattr(direct, what)))


def _cells(row: Row, direct: Row) -> list[str]:
    cells = [row.way]
    for what in ("connections", "transactions"):
        samples = getattr(row, what)
        cells.append(f"{statistics.median(samples):,.0f} ({min(samples):,.0f} to {max(samples):,.0f})")
        cells.append(f"{_ratio(row, direct, what):.2f}")
    cells.append(f"{statistics.median(row.cpu):,.0f}" if row.cpu else "–")  # noqa: RUF001 - a dash is meant
    return cells


_HEADS = ("way", "new sessions/s", "ratio to direct", "queries/s", "ratio to direct", "proxy CPU µs/session")


def _show(rows: list[Row]) -> None:
    table = Table(*_HEADS, title="pgbench, select only, TLS; median (least to most)")
    for row in rows:
        table.add_row(*_cells(row, rows[0]))
    Console().print(table)


def _save(rows: list[Row], options: argparse.Namespace, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    figures = [{name: getattr(row, name) for name in ("way", "connections", "transactions", "cpu")} for row in rows]
    document = {"rounds": options.rounds, "seconds": options.seconds, "clients": options.clients, "rows": figures}
    (directory / "postgres.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        f"| {' | '.join(_HEADS)} |",
        f"|---{'|--:' * (len(_HEADS) - 1)}|",
        *(f"| {' | '.join(_cells(row, rows[0]))} |" for row in rows),
    ]
    (directory / "postgres.md").write_text("\n".join(lines) + "\n")
