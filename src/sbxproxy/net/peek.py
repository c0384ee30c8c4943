"""Streams that give bytes again which somebody has looked at already.

What is surprising: there are two classes. A stream either can say "I have sent everything" and still receive,
or it can't (TLS), and a relay must know which. So ``isinstance(stream, trio.abc.HalfCloseableStream)`` tells
the truth for a peeked stream as for any other; ``peekable`` picks the right class.
"""

from __future__ import annotations

__all__ = ["RECEIVE_SIZE", "HalfCloseablePeekedStream", "PeekedStream", "peekable"]

import errno
import os

import trio

RECEIVE_SIZE = 64 * 1024
"""Bytes asked for at once where the caller doesn't say; what Trio's own socket streams ask for."""


class PeekedStream(trio.abc.Stream):
    """*inner* with a buffer in front of its receiving side.

    ``fill`` reads ahead, ``peeked`` shows what was read, ``consume`` drops what has been dealt with, and
    ``receive_some`` gives what is left before it reads on. There is no bound here: whoever calls ``fill``
    looks at the length of ``peeked`` first. One task at a time may fill or receive. This object owns *inner*
    and closes it.

    Attributes:
        inner: the stream below; reading from it directly passes by the buffer.
        peeked: the bytes read ahead and not consumed; no copy is made.
    """

    __slots__ = ("_ended", "inner", "peeked")

    def __init__(self, inner: trio.abc.Stream) -> None:
        """Wrap *inner*; no I/O."""
        self.inner = inner
        self.peeked = b""
        self._ended = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self.peeked)} bytes over {type(self.inner).__name__}>"

    async def fill(self, max_bytes: int = RECEIVE_SIZE) -> bool:
        """Read once, at most *max_bytes*, behind what is there already.

        Returns:
            False if the stream has ended and nothing was added; ``peeked`` stays to be received.

        Raises:
            trio.BrokenResourceError: from the inner stream.
            trio.ClosedResourceError: likewise.
        """
        if self._ended:
            await trio.lowlevel.checkpoint()
            return False
        if type(self.inner) is trio.SocketStream and max_bytes > 0:
            chunk = await _read(self.inner.socket, max_bytes)
        else:
            chunk = bytes(await self.inner.receive_some(max_bytes))
        self._ended = not chunk
        self.peeked = self.peeked + chunk if self.peeked else chunk
        return not self._ended

    def consume(self, count: int) -> bytes:
        """Take the first *count* bytes out of the buffer.

        Raises:
            ValueError: there are fewer, or *count* is negative.
        """
        if not 0 <= count <= len(self.peeked):
            raise ValueError(f"can't consume {count} bytes of {len(self.peeked)}")
        taken, self.peeked = self.peeked[:count], self.peeked[count:]
        return taken

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Give buffered bytes first, then what the inner stream gives; ``b""`` is the end."""
        if not self.peeked:
            return await self.inner.receive_some(max_bytes)
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        await trio.lowlevel.checkpoint()
        return self.consume(len(self.peeked) if max_bytes is None else min(max_bytes, len(self.peeked)))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send through the inner stream."""
        await self.inner.send_all(data)

    async def send_at_once(self, data: bytes | bytearray | memoryview) -> None:
        """Send as ``send_all`` does; a stream that needn't give others a turn for it doesn't."""
        await self.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for the inner stream."""
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the inner stream and forget what was read ahead."""
        self.peeked = b""
        await self.inner.aclose()


class HalfCloseablePeekedStream(PeekedStream, trio.abc.HalfCloseableStream):
    """A peeked stream over one that can end its sending side alone."""

    __slots__ = ()

    inner: trio.abc.HalfCloseableStream

    def __init__(self, inner: trio.abc.HalfCloseableStream) -> None:
        """Wrap *inner*; no I/O."""
        super().__init__(inner)

    async def send_eof(self) -> None:
        """End the sending side of the inner stream."""
        await self.inner.send_eof()


async def _read(sock: trio.socket.SocketType, max_bytes: int) -> bytes:
    """Read once from the descriptor: a third of what the stream's own way costs.

    The same is promised but for one thing: bytes that are there already are returned without giving others a turn,
    unless they are as many as asked for and the peer might well go on like that.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    while True:
        try:
            chunk = os.read(sock.fileno(), max_bytes)
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_readable(sock)
            except (OSError, ValueError) as error:  # closed just before
                raise trio.ClosedResourceError("this socket was closed") from error
        except OSError as error:
            if error.errno == errno.EBADF:
                raise trio.ClosedResourceError("this socket was closed") from None
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
        else:
            if len(chunk) == max_bytes:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return chunk


def peekable(stream: trio.abc.Stream) -> PeekedStream:
    """Wrap *stream* so that it can be peeked at; one that can be already comes back as it is."""
    if isinstance(stream, PeekedStream):
        return stream
    if isinstance(stream, trio.abc.HalfCloseableStream):
        return HalfCloseablePeekedStream(stream)
    return PeekedStream(stream)
