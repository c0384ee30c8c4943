"""The one connection between the supervisor and a worker: a Unix socket pair that carries messages and open sockets.

Descriptors go with the first byte of their message (SCM_RIGHTS, unix(7)), so they are there when the message is. Posting never waits:
a worker that hangs must not hold up whoever has something to tell to all of them.
"""

from __future__ import annotations

__all__ = ["MAX_DESCRIPTORS", "Channel"]

import array
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import trio

from sbxproxy.workers.framing import ProtocolError, Unframer, frame

MAX_DESCRIPTORS = 64
"""Descriptors in one message; the kernel takes 253 (SCM_MAX_FD)."""

_CHUNK = 64 * 1024

_INT = array.array("i").itemsize


class Channel:
    """One end. ``write`` must be running for what is posted to get out; whoever made the channel closes it."""

    __slots__ = ("_closed", "_descriptors", "_outgoing", "_quiet", "_receives", "_socket", "_unframer", "_wake")

    def __init__(self, sock: socket.socket, *, most: int, receives_descriptors: bool = False) -> None:
        """Take over *sock*.

        Args:
            sock: a connected Unix stream socket.
            most: bytes in a message from the other end.
            receives_descriptors: whether the other end may send any.
        """
        sock.setblocking(False)  # noqa: FBT003 - positional only
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._unframer = Unframer(most)
        self._receives = receives_descriptors
        self._descriptors: deque[int] = deque()
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._wake = trio.Event()
        self._quiet = trio.Event()
        self._quiet.set()
        self._closed = False

    def post(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send *message*, with copies of *descriptors*, as soon as ``write`` gets to it; in the order of posting.

        On a closed channel nothing happens.

        Raises:
            OSError: there are no more descriptors for the copies.
        """
        if self._closed:
            return
        data = frame(message if not descriptors else {**message, "descriptors": len(descriptors)})
        copies: list[int] = []
        try:
            copies.extend(map(os.dup, descriptors))
        except OSError:
            _close(copies)
            raise
        self._outgoing.append((data, copies))
        if self._quiet.is_set():
            self._quiet = trio.Event()
        self._wake.set()

    async def written(self) -> None:
        """Wait until all that was posted has left."""
        await self._quiet.wait()

    async def write(self) -> None:
        """Send what is posted, until cancelled.

        Raises:
            OSError: the other end is gone.
        """
        while True:
            while self._outgoing:
                data, descriptors = self._outgoing[0]
                await self._send(memoryview(data), descriptors)
                self._outgoing.popleft()
            self._quiet.set()
            await self._wake.wait()
            self._wake = trio.Event()

    async def _send(self, data: memoryview, descriptors: list[int]) -> None:
        if descriptors:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            sent = await self._socket.sendmsg([data], rights)
            _close(descriptors)
            descriptors.clear()
        else:
            sent = await self._socket.send(data)
        while sent < len(data):
            sent += await self._socket.send(data[sent:])

    async def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next message and its descriptors, which are the caller's to close; ``None`` when the other end is gone.

        Raises:
            ProtocolError: the other end doesn't keep to the protocol.
        """
        while (message := self._unframer.next()) is None:
            try:
                data, ancillary, flags, _ = await self._socket.recvmsg(
                    _CHUNK, socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT), socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                return None
            self._take(ancillary, cut_short=bool(flags & socket.MSG_CTRUNC))
            if not data:
                return None
            self._unframer.feed(data)
        count = message.pop("descriptors", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._descriptors):
            raise ProtocolError("a message lacks its descriptors")
        return message, [self._descriptors.popleft() for _ in range(count)]

    def _take(self, ancillary: list[tuple[int, int, bytes]], *, cut_short: bool) -> None:
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % _INT])
                self._descriptors.extend(received)
        if cut_short or len(self._descriptors) > MAX_DESCRIPTORS or (self._descriptors and not self._receives):
            raise ProtocolError("descriptors that nobody asked for, or too many")

    def close(self) -> None:
        """Close it, and all descriptors that nobody has taken; again is harmless."""
        self._closed = True
        self._socket.close()
        _close(self._descriptors)
        self._descriptors.clear()
        for _, descriptors in self._outgoing:
            _close(descriptors)
        self._outgoing.clear()
        self._quiet.set()


def _close(descriptors: Sequence[int] | deque[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
