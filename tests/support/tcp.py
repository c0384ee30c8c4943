"""Real sockets on loopback, closed descriptors counted, and streams that hide what they are."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from support.clock import until_stuck


@dataclass
class Counts:
    bytes_up: int = 0
    bytes_down: int = 0


class Opaque(trio.abc.HalfCloseableStream):
    """Hides a socket, so that a relay has to take the way that any stream takes."""

    def __init__(self, inner: trio.abc.HalfCloseableStream) -> None:
        self.inner = inner

    async def send_all(self, data):
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self):
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None):
        return await self.inner.receive_some(max_bytes)

    async def send_eof(self):
        await self.inner.send_eof()

    async def aclose(self):
        await self.inner.aclose()


def tcp_pair(*, buffers: int | None = None) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a TCP connection over loopback, perhaps with small kernel buffers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if buffers is not None:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        near = socket.socket()
        if buffers is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        near.connect(server.getsockname())
        far, _ = server.accept()
        if buffers is not None:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    return tuple(trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (near, far))


def unix_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    return tuple(trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())


def clogged_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a Unix connection that take not one byte more; those of TCP find room again a while later, by timers of their own."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                end.send(bytes(64 * 1024))
    return ends


def reset(stream: trio.SocketStream) -> None:
    """Close so that the other end gets RST."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_for_news(*socks: socket.socket) -> None:
    """Wait, outside of any event loop, until there is something to read from each."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    deadline = time.monotonic() + 30
    while len(poll.poll(1000)) < len(socks):
        assert time.monotonic() < deadline


@contextmanager
def black_hole(host: str, port: int):
    """Let connections to *host*:*port* go unanswered: a listener whose queue is full drops each SYN."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        with socket.create_connection((host, port)):
            yield


async def fill_up(stream: trio.SocketStream) -> int:
    """Send until nothing is taken any more; returns how much was.

    That is so when no task has anything to do: a send may also take long because this process had no processor.
    """
    accepted = 0

    async def send() -> None:
        nonlocal accepted
        while True:
            accepted += await stream.socket.send(bytes(64 * 1024))

    await until_stuck(send, cushion=0.25)
    return accepted


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int, max_bytes: int | None = None) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(min(max_bytes or size, size - len(data)))
        assert chunk, f"ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)
