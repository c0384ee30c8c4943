"""The load: one process with raw sockets. ``python -m benchmarks.load JSON`` takes the fields of ``Load``, prints ``Measured``."""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass

from sbxproxy.testing import client_hello

NAME = "bench.example"
HELLO = client_hello(NAME, padding=333)
"""517 bytes, about what curl and Python send."""

_PATIENCE = 10.0
_RECEIVE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one process is to do.

    Attributes:
        mode: ``connect`` or ``relay``.
        origin: the origin's port on loopback.
        proxy: the proxy's port, or ``None`` to go straight to the origin.
        seconds: how long to measure.
        concurrency: connections at a time; ``relay`` has one.
    """

    mode: str
    origin: int
    proxy: int | None
    seconds: float
    concurrency: int = 32

    @property
    def port(self) -> int:
        return self.origin if self.proxy is None else self.proxy

    @property
    def opening(self) -> bytes:
        """What is sent first: the request to the proxy, or at once the hello."""
        if self.proxy is None:
            return HELLO
        return f"CONNECT 127.0.0.1:{self.origin} HTTP/1.1\r\nHost: 127.0.0.1:{self.origin}\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it: operations (tunnels, or bytes), seconds, and operations that failed."""

    count: int
    seconds: float
    failures: int


class _Tunnel:
    """One operation of ``connect``: connect, ask the proxy, say hello, get a byte, close."""

    __slots__ = ("established", "received", "sock")

    def __init__(self, load: Load) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)  # noqa: FBT003 - positional only
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", load.port))
        self.established = load.proxy is None
        self.received = b""

    def step(self, load: Load, mask: int) -> bool | None:
        """Go on as far as it goes: ``None`` is not done yet, else whether it went well."""
        try:
            if mask & selectors.EVENT_WRITE:
                self.sock.send(load.opening)
                return None
            data = self.sock.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            return False
        if not data:
            return False
        if self.established:
            return True
        self.received += data
        if b"\r\n\r\n" not in self.received:
            return None
        if b" 200" not in self.received.partition(b"\r\n")[0]:
            return False
        self.established = True
        self.sock.send(HELLO)
        return None


def connect(load: Load) -> Measured:
    """Keep ``concurrency`` operations going, and count those that ended within the time."""
    selector = selectors.DefaultSelector()
    done = failures = 0

    def begin() -> None:
        tunnel = _Tunnel(load)
        selector.register(tunnel.sock, selectors.EVENT_WRITE, tunnel)

    for _ in range(load.concurrency):
        begin()
    started = now = time.perf_counter()
    while now - started < load.seconds:
        for key, mask in selector.select(0.1):
            tunnel: _Tunnel = key.data
            outcome = tunnel.step(load, mask)
            if outcome is None:
                if mask & selectors.EVENT_WRITE:
                    selector.modify(tunnel.sock, selectors.EVENT_READ, tunnel)
                continue
            selector.unregister(tunnel.sock)
            tunnel.sock.close()
            done += outcome
            failures += not outcome
            begin()
        now = time.perf_counter()
    elapsed = now - started
    for key in list(selector.get_map().values()):
        key.data.sock.close()
    selector.close()
    return Measured(done, elapsed, failures)


def relay(load: Load) -> Measured:
    """Receive through one tunnel for the time; the first tenth is not counted, while buffers grow."""
    with socket.create_connection(("127.0.0.1", load.port), timeout=_PATIENCE) as sock:
        sock.sendall(load.opening)
        if load.proxy is not None:
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(65536)
                if not data:
                    return Measured(0, load.seconds, 1)
                head += data
            if b" 200" not in head.partition(b"\r\n")[0]:
                return Measured(0, load.seconds, 1)
            sock.sendall(HELLO)
        buffer = bytearray(_RECEIVE)
        begun = time.perf_counter()
        started = begun + load.seconds / 10
        end = begun + load.seconds * 1.1
        received = 0
        now = begun
        while now < end:
            count = sock.recv_into(buffer)
            if not count:
                return Measured(received, load.seconds, 1)
            now = time.perf_counter()
            if now >= started:
                received += count
        return Measured(received, now - started, 0)


def main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    try:
        measured = connect(load) if load.mode == "connect" else relay(load)
    except OSError:
        measured = Measured(0, load.seconds, 1)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
