"""``python -m benchmarks micro``: what the parts of a connection cost, one by one, in this process; about five seconds.

Both ends run on one event loop, so figures of rows with sockets are higher than a proxy's share; rows of one pair compare.
"""

from __future__ import annotations

__all__ = ["Row", "main", "measure"]

import argparse
import json
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import trio

from benchmarks.policy import document
from benchmarks.rig import HELLO, HELLO_NAME
from sbxproxy.address import parse_address
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.net import dial, relay
from sbxproxy.net.engine import Engine
from sbxproxy.net.sockets import close_now
from sbxproxy.policy import Boundary, Facts, Policy, Wire, judge
from sbxproxy.tls.authority import Authority
from sbxproxy.wire.http1 import cut_request_head, parse_request_head
from sbxproxy.wire.sniff import sniff

_HOME = IPv4Address("127.0.0.1")
_HEAD = f"CONNECT {HELLO_NAME}:443 HTTP/1.1\r\nHost: {HELLO_NAME}:443\r\n\r\n".encode()

_REQUEST = (
    b"POST /v1/chat?n=1 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: program/1.0\r\nAccept: application/json\r\n"
    b"Accept-Encoding: gzip, br\r\nContent-Type: application/json\r\nContent-Length: 512\r\nAuthorization: Bearer none\r\n"
    b"Connection: keep-alive\r\n\r\n"
)
_POSTGRES = bytes.fromhex("0000000804d2162f")
"""SSLRequest."""

_API = "api.example.com"
_MATCH = {
    "method": ["POST"],
    "path": {"startsWith": "/v1/"},
    "headers": [{"key": {"exact": "content-type"}, "value": {"regex": "json"}}],
}

Part = Callable[[int], Awaitable[None]]
"""Does the operation that many times."""


@dataclass(slots=True)
class Row:
    """One part's figures: microseconds per operation, one per round."""

    part: str
    samples: list[float] = field(default_factory=list)


@dataclass
class _Counts:
    bytes_up: int = 0
    bytes_down: int = 0


async def measure(rounds: int, seconds: float) -> list[Row]:
    """Measure every part once a round, in turn, for about *seconds* each."""
    async with _parts() as parts:
        rows = [Row(name) for name in parts]
        sizes: dict[str, int] = {}
        for _ in range(rounds):
            for row in rows:
                part = parts[row.part]
                if row.part not in sizes:
                    await part(3)
                    sizes[row.part] = max(3, int(seconds / await _time(part, 10)))
                row.samples.append(await _time(part, sizes[row.part]) * 1e6)
        return rows


async def _time(part: Part, times: int) -> float:
    started = time.perf_counter()
    await part(times)
    return (time.perf_counter() - started) / times


@asynccontextmanager
async def _parts() -> AsyncIterator[dict[str, Part]]:
    engine = Engine()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        server.setblocking(False)  # noqa: FBT003 - positional only
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            yield {
                "look into a hello": _each(lambda: sniff(HELLO)),
                "look into a request": _each(lambda: sniff(_REQUEST)),
                "look into a PostgreSQL start": _each(lambda: sniff(_POSTGRES)),
                "cut and parse a CONNECT head": _each(lambda: _parse(_HEAD)),
                "cut and parse a request head of 8 fields": _each(lambda: _parse(_REQUEST)),
                "judge by 1,000 domains": _each(_judge()),
                "fit a rule's path, method and header": _each(_fit()),
                "mint a leaf and its context": _each(_mint()),
                "take a leaf that is kept": _each(_keep()),
                "dial": _dialling(server, ours=True),
                "dial by Trio": _dialling(server, ours=False),
                "open and close a pair": _closing(ours=True),
                "open and close a pair by force": _closing(ours=False),
                "relay 1 byte each way and end: engine": _relaying(engine, 1),
                "relay 1 byte each way and end: two tasks": _relaying(None, 1),
                "relay 1 MiB and end: engine": _relaying(engine, 1 << 20),
                "relay 1 MiB and end: two tasks": _relaying(None, 1 << 20),
            }
            nursery.cancel_scope.cancel(reason="measured")


def _each(call: Callable[[], object]) -> Part:
    async def part(times: int) -> None:
        for _ in range(times):
            call()
        await trio.lowlevel.checkpoint()

    return part


def _parse(head: bytes) -> None:
    end = cut_request_head(head, limit=65536)
    assert isinstance(end, int)
    parse_request_head(head[:end], max_fields=100, max_target=8192)


def _fit() -> Callable[[], object]:
    policy = Policy.from_json(json.dumps({"allow": {_API: [{"match": _MATCH, "response": {"statusCode": 403}}]}}))
    headers = [(b"accept", b"*/*"), (b"content-type", b"application/json")]
    found = policy.match_domain(_name(_API))
    assert found is not None
    assert found.rules is not None
    rules = found.rules
    assert rules.select(method="POST", target="/v1/chat?n=1", headers=headers) is not None
    return lambda: rules.select(method="POST", target="/v1/chat?n=1", headers=headers)


def _mint() -> Callable[[], object]:
    authority = Authority(leaves=64)
    names = (_name(f"n{index}.example.com") for index in count())
    return lambda: authority.server_context(next(names))


def _keep() -> Callable[[], object]:
    authority = Authority()
    return lambda: authority.server_context(_name(_API))


@cache
def _name(text: str) -> Hostname:
    name = canonical_hostname(text)
    assert name is not None
    return name


def _judge() -> Callable[[], object]:
    policy = Policy.from_json(document(1000))
    name, public = canonical_hostname("d501.example.com"), parse_address("1.2.3.4")
    assert name is not None
    assert public is not None
    facts = Facts(host=name, port=443, wire=Wire.TLS, server_name=name, addresses=(public,))
    boundary = Boundary()
    return lambda: judge(policy, facts, boundary)


def _dialling(server: socket.socket, *, ours: bool) -> Part:
    port = server.getsockname()[1]

    async def part(times: int) -> None:
        for _ in range(times):
            if ours:
                dialled, _ = await dial([_HOME], port, connect=10, total=30)
                dialled.socket.close()
            else:
                (await trio.open_tcp_stream("127.0.0.1", port)).socket.close()
            server.accept()[0].close()

    return part


def _stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    one, other = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    return one, other


def _closing(*, ours: bool) -> Part:
    async def part(times: int) -> None:
        for _ in range(times):
            for stream in _stream_pair():
                if not ours or not close_now(stream):
                    await trio.aclose_forcefully(stream)

    return part


def _relaying(engine: Engine | None, size: int) -> Part:
    """Relay *size* bytes up and one back, eight connections at a time, and end both ways."""
    block = bytes(size)

    async def one() -> None:
        client, near = _stream_pair()
        upstream, far = _stream_pair()

        async def answer() -> None:
            left = size
            while left:
                left -= len(await upstream.receive_some(1 << 20))
            await upstream.send_all(b"x")
            await upstream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: relay(near, far, idle=600, linger=5, count=_Counts(), engine=engine))
            nursery.start_soon(answer)
            await client.send_all(block)
            await client.receive_some(1)
            await client.send_eof()
        for end in (client, near, upstream, far):
            close_now(end)

    async def part(times: int) -> None:
        async def some(count: int) -> None:
            for _ in range(count):
                await one()

        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(some, times // 8 + (index < times % 8))

    return part


def main(arguments: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks micro", description="Measure the parts of a connection.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too, in microseconds")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be positive")
    rows = trio.run(measure, 1 if options.quick else options.rounds, 0.002 if options.quick else 0.08)
    print("| part | median, µs | least | most |\n|---|--:|--:|--:|")
    for row in rows:
        print(f"| {row.part} | {statistics.median(row.samples):,.1f} | {min(row.samples):,.1f} | {max(row.samples):,.1f} |")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({row.part: row.samples for row in rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
