"""The body of one message: counted if its length was told in a plain head, else decoded by h11 piece by piece.

What h11 did not use goes back to the buffer it came from: it is the next message. Framing ends here: of chunk
sizes, chunk extensions and trailers nothing is handed on. A trailer could carry a header past whatever decided
on the headers, so all are dropped, in both directions.
"""

from __future__ import annotations

__all__ = ["INCOMPLETE", "Body", "LengthBody"]

from typing import Any

import h11
import trio

from sbxproxy.http.incoming import Incoming

INCOMPLETE = 16 * 1024
"""Most of an unfinished chunk line or trailer section that h11 may hold."""

_EVENTS_AT_ONCE = 256
"""Chunks decoded before other tasks get a turn: one of a single byte costs as much time as one of 64 KiB."""

_OVERHEAD = 16 * 1024
_OVERHEAD_PER_CHUNK = 16
"""Framing bytes allowed beyond 16 for each chunk; a plain chunk needs 12 with 8 digits. Chunk extensions would
else cost us much and their sender little (CVE-2023-39326)."""


class LengthBody:
    """A body of *length* bytes, 0 if the message has none; otherwise as ``Body``."""

    __slots__ = ("_incoming", "_left", "complete", "size")

    def __init__(self, incoming: Incoming[Any], length: int) -> None:
        """Take over *incoming* from behind the head until the body is complete."""
        self.complete = not length
        self.size = 0
        self._incoming = incoming
        self._left = length

    @property
    def is_at_hand(self) -> bool:
        """All of it has come."""
        return self._left <= len(self._incoming.data)

    def ready(self) -> bytes:
        """Return what can be had without receiving."""
        if self.complete or not self._incoming.data:
            return b""
        return self._take(self._incoming.take(self._left))

    async def read(self) -> bytes:
        """Return the next bytes, receiving as needed; never empty before the body is complete.

        Raises:
            ClientProtocolError, UpstreamProtocolError: the stream ended first.
            ClientGone, UpstreamError: the stream broke.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        incoming = self._incoming
        if self.complete or incoming.data:
            return self.ready()
        chunk = await incoming.receive()
        if not chunk:
            raise incoming.invalid("the body is cut short")
        if len(chunk) > self._left:
            incoming.data += chunk[self._left :]
            chunk = chunk[: self._left]
        return self._take(chunk)

    def _take(self, piece: bytes) -> bytes:
        self.size += len(piece)
        self._left -= len(piece)
        self.complete = not self._left
        return piece


class Body:
    """The body of the message whose head was just given to *connection*.

    Attributes:
        complete: its end was seen. True already when the last piece is returned, so that whoever passes that
            on can say so at once.
        size: payload bytes returned so far.
    """

    def __init__(self, connection: h11.Connection, incoming: Incoming[Any]) -> None:
        """Take over *incoming* from behind the head until the body is complete.

        Raises:
            ClientProtocolError, UpstreamProtocolError: the framing is broken.
        """
        self.complete = False
        self.size = 0
        self._connection = connection
        self._incoming = incoming
        self._fed = 0
        self._chunks = 0
        # A message without a body is complete here, before h11 is given bytes of the next one.
        self._next([])

    def ready(self) -> bytes:
        """Return what can be had without receiving, at most 256 chunks of it.

        Raises:
            ClientProtocolError, UpstreamProtocolError: the framing is broken.
        """
        pieces: list[bytes | bytearray] = []
        for _ in range(_EVENTS_AT_ONCE):
            if self.complete:
                break
            if not self._next(pieces):
                if not self._incoming.data:
                    self._check_overhead()
                    break
                self._feed(bytes(self._incoming.data))
                self._incoming.data.clear()
        return b"".join(pieces)

    async def read(self) -> bytes:
        """Return the next bytes, receiving as needed; empty at most once, when the end came by itself.

        Raises:
            ClientProtocolError, UpstreamProtocolError: the framing is broken, or the stream ended first.
            ClientGone, UpstreamError: the stream broke.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            data = self.ready()
            if data or self.complete:
                return data
            self._feed(await self._incoming.receive())

    def _next(self, pieces: list[bytes | bytearray]) -> bool:
        """Take one event; false if h11 needs more first."""
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError:
            # Its text quotes the bytes.
            raise self._incoming.invalid("the body breaks its framing or is cut short") from None
        if type(event) is h11.Data:
            pieces.append(event.data)
            self.size += len(event.data)
            self._chunks += event.chunk_start
        elif type(event) is h11.EndOfMessage:
            self.complete = True
            self._incoming.data[:0] = self._connection.trailing_data[0]
        else:
            assert event is h11.NEED_DATA
            return False
        return True

    def _feed(self, chunk: bytes) -> None:
        self._connection.receive_data(chunk)
        self._fed += len(chunk)

    def _check_overhead(self) -> None:
        # What h11 still holds is less than a chunk line or a trailer section; that counts as overhead too.
        if self._fed - self.size > _OVERHEAD + _OVERHEAD_PER_CHUNK * self._chunks:
            raise self._incoming.invalid("the body has far more framing than content")
