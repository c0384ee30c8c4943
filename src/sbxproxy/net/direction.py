"""One direction of a relay between two sockets, on the bare descriptors.

Theory of operation. A system call is tried first and waited for only if it would block, so a chunk costs two
calls and one pass through the scheduler. All directions of an event loop read into one scratch buffer:
between reading and writing there is no ``await``, and only what the sink did not take is copied out, so an
idle connection holds no buffer. After 256 KiB the bytes stay in the kernel: ``splice`` moves them through a
borrowed pipe (see ``pipes``), which is held only while something is in it or the source has more.

Descriptors are asked from their socket objects for each call. A socket that another task closes has -1 from
then on, and that fails; a number kept in a variable could by then belong to somebody else's connection.

What is counted is what the sink's kernel took, at once, so the figures are right whenever and however this
ends.
"""

from __future__ import annotations

__all__ = ["Broken", "Direction"]

import errno
import os
import socket
import sys
from collections.abc import Callable
from enum import Enum, auto
from typing import NoReturn

import trio

from sbxproxy.net.pipes import Pipe, PipePool, pipe_pool
from sbxproxy.net.sockets import AnySocket

CHUNK = 64 * 1024
"""Bytes read at once, and so the most that one direction holds in memory."""

CHUNKS_PER_TURN = 4
"""Chunks moved before others get the processor."""

SPLICE_AFTER = 256 * 1024
"""Bytes after which a direction is worth a pipe; most connections of package managers and APIs stay below."""

SPLICE_PER_TURN = 256 * 1024
"""Bytes spliced before others get the processor; about 100 microseconds."""

CAN_SPLICE = sys.platform == "linux" and hasattr(os, "splice")

SPLICE_FLAGS = (os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK) if CAN_SPLICE else 0

_scratch: trio.lowlevel.RunVar[bytearray] = trio.lowlevel.RunVar("sbxproxy relay buffer")


def _scratch_buffer() -> bytearray:
    try:
        return _scratch.get()
    except LookupError:
        buffer = bytearray(CHUNK)
        _scratch.set(buffer)
        return buffer


class Broken(Exception):  # noqa: N818 - an outcome, translated by the relay
    """A socket failed: the source's or the sink's; ``closed`` if it was closed on this side."""

    def __init__(self, *, at_source: bool, closed: bool) -> None:
        """Say which."""
        super().__init__("source" if at_source else "sink")
        self.at_source = at_source
        self.closed = closed


class _Burst(Enum):
    """Why a run of splices stopped."""

    END = auto()  # the source has ended
    DRY = auto()  # the source has nothing at the moment
    TURN = auto()  # others' turn
    UNFIT = auto()  # these sockets can't be spliced


class Direction:
    """Copies *source* to *sink*, then shuts the sink's sending side down; ``run`` it once."""

    __slots__ = ("_moved", "_pending", "_pipes", "_sink", "_source", "_splice_at", "_took")

    def __init__(
        self,
        source: AnySocket,
        sink: AnySocket,
        *,
        pending: bytes,
        moved: Callable[[int], None],
    ) -> None:
        """Take two connected sockets; neither is closed here.

        Args:
            source: where bytes come from.
            sink: where they go.
            pending: bytes that were read from the source before and go first.
            moved: told the number of bytes each time the sink took some.
        """
        self._source = source
        self._sink = sink
        self._pending = pending
        self._moved = moved
        self._took = 0
        self._splice_at = SPLICE_AFTER
        self._pipes: PipePool | None = None

    async def run(self) -> None:
        """Copy to the end.

        Raises:
            Broken: one of the sockets failed.
        """
        try:
            if self._pending:
                pending, self._pending = self._pending, b""
                await self._send(pending)
            while not await self._copy() and not await self._splice():
                pass
        finally:
            if self._pipes is not None:
                self._pipes.leave()
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error, at_source=False)

    async def _copy(self) -> bool:
        """Copy through memory; True at the end, False when it is time to splice."""
        buffer = _scratch_buffer()
        view = memoryview(buffer)
        full = 0
        while not CAN_SPLICE or self._took < self._splice_at:
            try:
                size = os.readv(self._source.fileno(), (buffer,))
            except BlockingIOError:
                full = 0
                await self._readable()
                continue
            except OSError as error:
                self._fail(error, at_source=True)
            if not size:
                return True
            try:
                sent = os.write(self._sink.fileno(), view[:size])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._fail(error, at_source=False)
            if sent:
                self._count(sent)
            if sent < size:
                # The scratch buffer is anybody's from the next await on.
                await self._send(bytes(view[sent:size]))
            elif size < CHUNK:  # that was all there was: trying again would be a call for nothing
                full = 0
                await self._readable()
                continue
            full += 1
            if full >= CHUNKS_PER_TURN:
                full = 0
                await trio.lowlevel.checkpoint()
        return False

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                sent = os.write(self._sink.fileno(), view)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                self._fail(error, at_source=False)
            self._count(sent)
            view = view[sent:]

    async def _splice(self) -> bool:
        """Move bytes within the kernel; True at the end, False when it is better to copy for a while."""
        if self._pipes is None:
            self._pipes = pipe_pool()
            self._pipes.join()
        pipes = self._pipes
        while (pipe := pipes.take()) is not None:
            try:
                stopped = await self._burst(pipe)
            finally:
                pipes.give(pipe)
            if stopped is _Burst.END:
                return True
            if stopped is _Burst.UNFIT:
                self._splice_at = sys.maxsize
                return False
            if stopped is _Burst.DRY:
                await self._readable()
            else:
                await trio.lowlevel.checkpoint()
        self._splice_at = self._took + SPLICE_AFTER
        # The source may never make the copying wait.
        await trio.lowlevel.checkpoint()
        return False

    async def _burst(self, pipe: Pipe) -> _Burst:
        """Fill and empty *pipe* until the source runs dry or the turn is over.

        Cancelled, it leaves bytes in the pipe.
        """
        left = SPLICE_PER_TURN
        while left > 0:
            try:
                size = os.splice(self._source.fileno(), pipe.write, pipe.size, flags=SPLICE_FLAGS)
            except BlockingIOError:
                return _Burst.DRY
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return _Burst.UNFIT
                self._fail(error, at_source=True)
            if not size:
                return _Burst.END
            pipe.held = size
            left -= size
            while pipe.held:
                try:
                    sent = os.splice(pipe.read, self._sink.fileno(), pipe.held, flags=SPLICE_FLAGS)
                except BlockingIOError:
                    await self._writable()
                    continue
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        self._fail(error, at_source=False)
                    await self._empty(pipe)
                    return _Burst.UNFIT
                if not sent:  # can't be, and would spin
                    raise Broken(at_source=False, closed=False)
                pipe.held -= sent
                self._count(sent)
        return _Burst.TURN

    async def _empty(self, pipe: Pipe) -> None:
        """Send what is in *pipe* by way of memory, since the sink does not take it from a pipe."""
        while pipe.held:
            data = os.read(pipe.read, min(pipe.held, CHUNK))
            await self._send(data)
            pipe.held -= len(data)

    def _count(self, size: int) -> None:
        self._took += size
        self._moved(size)

    async def _readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._source)
        except (OSError, ValueError, trio.ClosedResourceError):
            raise Broken(at_source=True, closed=True) from None

    async def _writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._sink)
        except (OSError, ValueError, trio.ClosedResourceError):
            raise Broken(at_source=False, closed=True) from None

    def _fail(self, error: OSError, *, at_source: bool) -> NoReturn:
        raise Broken(at_source=at_source, closed=error.errno == errno.EBADF) from None
