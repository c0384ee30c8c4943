"""``python -m benchmarks capture [--quick]``: what a captured connection costs beside one that asks the proxy by CONNECT.

The same program makes the same connections to the same origin, once in a sandbox of ``run``'s kind and once outside with a proxy to ask,
in turns. The proxy's processor time is that of this very process, which does nothing else meanwhile.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

from sbxproxy import Proxy, Sandbox
from sbxproxy.capture import Plan, launch

_ORIGIN = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(server.getsockname()[1], flush=True)
def serve():
    while True:
        stream, _ = server.accept()
        with stream:
            try:
                if stream.recv(64): stream.sendall(b"y"); stream.recv(1)
            except OSError: pass
for _ in range(16): threading.Thread(target=serve).start()
"""

_CLIENT = """
import socket, sys, threading, time
host, port, seconds, ask = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
end, counts = time.monotonic() + seconds, []
def load():
    count = 0
    while time.monotonic() < end:
        with socket.create_connection((host, port), 10) as stream:
            if ask:
                stream.sendall(b"CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (ask[0].encode(), ask[0].encode()))
                answer = b""
                while not answer.endswith(b"\\r\\n\\r\\n"):
                    more = stream.recv(4096)
                    if not more: raise SystemExit("refused")
                    answer += more
            stream.sendall(b"\\xff" * 32)
            if stream.recv(1) != b"y": raise SystemExit("no answer")
        count += 1
    counts.append(count)
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(counts) if len(counts) == len(threads) else 0)
"""

_TARGET = ("203.0.113.9", 4000)  # a documentation address (RFC 5737), which nobody has


@dataclass(slots=True)
class Row:
    """Figures of one way, one a round.

    Attributes:
        way: how connections come to the proxy.
        rate: connections a second.
        cpu: microseconds of the proxy's processor time per connection.
    """

    way: str
    rate: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, and save it as JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks capture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="see that it works: one round of 0.4 s, nothing is saved")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    rounds, seconds = (1, 0.4) if options.quick else (options.rounds, options.seconds)
    with subprocess.Popen([sys.executable, "-c", _ORIGIN], stdout=subprocess.PIPE, text=True) as origin:
        try:
            assert origin.stdout is not None
            rows = trio.run(_measure, int(origin.stdout.readline()), rounds, seconds)
        finally:
            origin.kill()
    table = Table(*_HEADS, title="connections of eight threads; median (least to most)")
    for row in rows:
        table.add_row(*_cells(row, rows[0]))
    Console().print(table)
    if not options.quick:
        _save(rows, options.out)
    return 0


async def _measure(port: int, rounds: int, seconds: float) -> list[Row]:
    async def dial(_addresses: Any, _port: int) -> tuple[trio.SocketStream, IPv4Address]:
        return await trio.open_tcp_stream("127.0.0.1", port), IPv4Address(_TARGET[0])

    proxy = Proxy(dialer=dial)
    explicit, captured = Row("CONNECT"), Row("captured")
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("bench", policy={"subnets": {"allow": [str(ip_network(f"{_TARGET[0]}/32"))]}})
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(sandbox.serve, listeners)
        ask = ["127.0.0.1", str(listeners[0].socket.getsockname()[1]), str(seconds), f"{_TARGET[0]}:{_TARGET[1]}"]
        for turn in range(rounds + 1):
            for row, run in ((explicit, partial(_outside, ask)), (captured, partial(_inside, sandbox, seconds))):
                count, cpu = await run()
                if turn:  # the first one loads what connections need
                    row.rate.append(count / seconds)
                    row.cpu.append(cpu / count * 1e6)
        nursery.cancel_scope.cancel()
    return [explicit, captured]


async def _outside(arguments: Sequence[str]) -> tuple[int, float]:
    begun = time.process_time()
    done = await trio.run_process([sys.executable, "-S", "-c", _CLIENT, *arguments], capture_stdout=True)
    return _count(done.stdout), time.process_time() - begun


async def _inside(sandbox: Sandbox, seconds: float) -> tuple[int, float]:
    read, write = os.pipe()
    argv = [sys.executable, "-S", "-c", _CLIENT, _TARGET[0], str(_TARGET[1]), str(seconds)]
    try:
        async with await launch(Plan(argv=argv, environment={}, stdout=write)) as confined, trio.open_nursery() as nursery:
            await nursery.start(sandbox.serve_captured, confined)
            begun = time.process_time()
            await confined.go()
            await confined.wait()
            spent = time.process_time() - begun
            nursery.cancel_scope.cancel()
        os.close(write)
        write = -1
        return _count(os.read(read, 100)), spent
    finally:
        for descriptor in (read, write):
            if descriptor >= 0:
                os.close(descriptor)


def _count(output: bytes) -> int:
    count = int(output or 0)
    if not count:
        raise SystemExit("a connection failed")
    return count


_HEADS = ("way", "connections/s", "ratio to CONNECT", "proxy CPU µs/connection")


def _cells(row: Row, first: Row) -> list[str]:
    rate = f"{statistics.median(row.rate):,.0f} ({min(row.rate):,.0f} to {max(row.rate):,.0f})"
    cpu = f"{statistics.median(row.cpu):,.0f} ({min(row.cpu):,.0f} to {max(row.cpu):,.0f})"
    return [row.way, rate, f"{statistics.median(row.rate) / statistics.median(first.rate):.2f}", cpu]


def _save(rows: list[Row], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    document = {"rows": [{"way": row.way, "rate": row.rate, "cpu": row.cpu} for row in rows]}
    (directory / "capture.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [f"| {' | '.join(_HEADS)} |", "|---|--:|--:|--:|", *(f"| {' | '.join(_cells(row, rows[0]))} |" for row in rows)]
    (directory / "capture.md").write_text("\n".join(lines) + "\n")
