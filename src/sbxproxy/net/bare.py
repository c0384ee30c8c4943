"""A stream that is nothing but a connected socket and what was read ahead from it.

Trio's own socket stream gives a turn to others with every call, sets two options with every socket and goes through
two objects to the descriptor; of a short connection's time that is a third. This one tries first and waits only when
the kernel says so, and has the peeked bytes in itself. What is surprising is the pair of sending methods: ``send_all``
gives others a turn as every stream must, ``send_at_once`` does so only if it has to wait, for callers on their way
somewhere else.
"""

from __future__ import annotations

__all__ = ["BareStream", "Until", "Waiter"]

import errno
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NoReturn, Protocol

import trio

from sbxproxy.net.peek import RECEIVE_SIZE, PeekedStream


class Waiter(Protocol):
    """What an engine does for a stream."""

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        ...

    async def readable(self, sock: socket.socket, until: float) -> bool:
        """Wait for bytes, an end or an error; false once *until* has come."""
        ...

    def forget(self, sock: socket.socket) -> None:
        """Wake whoever waits for *sock* with ``trio.ClosedResourceError``."""
        ...


class BareStream(PeekedStream, trio.abc.HalfCloseableStream):
    """A peeked stream over a connected, non-blocking stream socket, which it owns.

    Attributes:
        socket: the standard library's socket.
        peeked: bytes read ahead and not consumed.
        until: by Trio's clock, when any waiting for this stream ends with ``trio.TooSlowError``; see ``Until``.
        engine: waits for bytes, while it is running; ``None`` to leave that to Trio.
    """

    __slots__ = ("_answered", "_receiving", "_sending", "_sent_eof", "engine", "socket", "until")

    def __init__(self, sock: socket.socket) -> None:
        """Take *sock* over; no I/O.

        Raises:
            ValueError: it is not non-blocking; it would hold up everything.
        """
        if sock.gettimeout() != 0:
            raise ValueError("a BareStream needs a non-blocking socket")
        self.socket = sock
        self.peeked = b""
        self._ended = False
        self._answered = False
        self._receiving = False
        self._sending = False
        self._sent_eof = False
        self.until = math.inf
        self.engine: Waiter | None = None

    def __repr__(self) -> str:
        return f"<BareStream {len(self.peeked)} bytes over descriptor {self.socket.fileno()}>"

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option of the socket, as Trio's socket stream has it."""
        self.socket.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:
        """Read an option of the socket."""
        return self.socket.getsockopt(level, option, size) if size else self.socket.getsockopt(level, option)

    # -- receiving

    async def fill(self, max_bytes: int = RECEIVE_SIZE) -> bool:
        """Read once behind what is there already, as any peeked stream.

        Bytes that are there are taken without giving others a turn, unless they are as many as asked for and the peer
        might well go on like that.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._ended:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return False
        chunk = await self._receive(max_bytes)
        if len(chunk) == max_bytes:
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._ended = not chunk
        self.peeked = self.peeked + chunk if self.peeked else chunk
        return not self._ended

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Give buffered bytes first, then what the socket has; ``b""`` is the end.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: this stream is closed.
            trio.BusyResourceError: another task receives.
        """
        if max_bytes is None:
            max_bytes = RECEIVE_SIZE
        elif max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        await trio.lowlevel.checkpoint()
        if self.peeked:
            return self.consume(min(max_bytes, len(self.peeked)))
        return await self._receive(max_bytes)

    async def _receive(self, max_bytes: int) -> bytes:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            if self._answered:
                # What answers to what was just sent isn't there yet: to try would be a call for nothing.
                self._answered = False
                await self._readable()
            while True:
                try:
                    return self.socket.recv(max_bytes)
                except BlockingIOError:
                    await self._readable()
                except OSError as error:
                    _fail(error)
        finally:
            self._receiving = False

    async def _readable(self) -> None:
        engine = self.engine
        if engine is None or not engine.running:
            await self._wait(trio.lowlevel.wait_readable)
        elif not await engine.readable(self.socket, self.until):
            raise trio.TooSlowError

    # -- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*.

        Raises:
            trio.BrokenResourceError: the connection broke; an unknown part was sent.
            trio.ClosedResourceError: this stream is closed, or ``send_eof`` was called.
            trio.BusyResourceError: another task sends.
        """
        await trio.lowlevel.checkpoint()
        await self.send_at_once(data)

    async def send_at_once(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data* as ``send_all`` does, but give others a turn only if the kernel does not take it all."""
        self._may_send()
        self._sending = True
        try:
            view = data
            while True:
                try:
                    sent = self.socket.send(view)
                except BlockingIOError:
                    await self._wait(trio.lowlevel.wait_writable)
                    continue
                except OSError as error:
                    _fail(error)
                if sent == len(view):
                    self._answered = True
                    return
                view = memoryview(view)[sent:]
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room."""
        self._may_send()
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._wait(trio.lowlevel.wait_writable)
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """End the sending side; again is harmless."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending to this stream")
        await trio.lowlevel.checkpoint()
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream is closed")
        if self._sent_eof:
            return
        self._sent_eof = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            _fail(error)

    def _may_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending to this stream")
        if self._sent_eof or self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream is closed for sending")

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self.until == math.inf:
            await wait(self.socket)
            return
        with trio.fail_at(self.until):
            await wait(self.socket)

    # -- closing

    def close(self) -> None:
        """Close at once; whoever waits for it is told. Again is harmless."""
        self.peeked = b""
        if self.socket.fileno() < 0:
            return
        if self._receiving or self._sending:
            trio.lowlevel.notify_closing(self.socket)
            if self.engine is not None:
                self.engine.forget(self.socket)
        self.socket.close()

    async def aclose(self) -> None:
        """Close, and give others a turn."""
        self.close()
        await trio.lowlevel.checkpoint()


class Until:
    """A bound on the waiting for one stream: within it, ``trio.TooSlowError`` is raised once *at* has come.

    For a ``BareStream`` that costs nothing while nothing has to be waited for; a cancel scope costs as much as five system
    calls, and most first messages are there when they are asked for.
    """

    __slots__ = ("_at", "_before", "_scope", "_stream")

    def __init__(self, stream: trio.abc.Stream, at: float) -> None:
        """Bound what is awaited of *stream*, by Trio's clock."""
        self._stream = stream
        self._at = at
        self._before = math.inf
        self._scope: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        if isinstance(self._stream, BareStream):
            self._before = self._stream.until
            self._stream.until = min(self._at, self._before)
        else:
            self._scope = trio.fail_at(self._at)
            self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._scope is not None:
            return self._scope.__exit__(kind, error, traceback)
        assert isinstance(self._stream, BareStream)
        self._stream.until = self._before
        return None


def _fail(error: OSError) -> NoReturn:
    if error.errno == errno.EBADF:
        raise trio.ClosedResourceError("this stream is closed") from None
    raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error
