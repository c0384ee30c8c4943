"""Received bytes on their way to becoming messages.

Heads are collected here whole, before anything parses them, so that a limit on a head is a limit on memory
and the strict reader and h11 are given the very same bytes. Plain heads, which need no second reader, are read here.
"""

from __future__ import annotations

__all__ = ["RECEIVE", "ClientGone", "FromClient", "FromUpstream", "Incoming", "below"]

from abc import ABC, abstractmethod
from typing import Generic, Literal, TypeVar

import trio
from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError, UpstreamError, UpstreamProtocolError
from sbxproxy.http.patience import Patience
from sbxproxy.net.peek import HalfCloseablePeekedStream, PeekedStream
from sbxproxy.policy.decision import Reason
from sbxproxy.settings import Limits
from sbxproxy.wire.http1 import RequestHead, ResponseHead, cut_request_head, cut_response_head
from sbxproxy.wire.plain_head import Memory, plain_request_head, plain_response_head
from sbxproxy.wire.result import Hint

_Head = TypeVar("_Head")

RECEIVE = 64 * 1024
"""Most that is asked of a stream at once, and so most that is held of a streamed body in each direction."""


_END_OF_HEAD = b"\r\n\r\n"


class ClientGone(Exception):  # noqa: N818 - news, not an error: what it interrupts is simply over
    """The client's stream broke; there is nobody left to answer."""


def below(stream: Stream) -> Stream:
    """Go down through wrappers that have nothing left of what they peeked at."""
    while type(stream) in {PeekedStream, HalfCloseablePeekedStream}:
        assert isinstance(stream, PeekedStream)
        if stream.peeked:
            break
        stream = stream.inner
    return stream


class Incoming(ABC, Generic[_Head]):
    """What was received from one stream and is not used yet. It reads the stream and never closes it.

    Attributes:
        stream: where more comes from.
        data: the bytes not used yet.
        patience: pushed with each receive, if there is one.
    """

    def __init__(self, stream: Stream, initial: bytes = b"") -> None:
        """Begin with *initial*, which somebody received before."""
        self.stream = stream
        self._receive = below(stream).receive_some
        self.data = bytearray(initial)
        self.patience: Patience | None = None

    @abstractmethod
    def broken(self) -> Exception:
        """Make the exception for a stream that broke."""

    @abstractmethod
    def invalid(self, message: str) -> Exception:
        """Make the exception for bytes that are no proper HTTP."""

    @abstractmethod
    def _plain(self, limits: Limits) -> tuple[_Head, int] | None:
        """Read a plain head that the data begin with."""

    @abstractmethod
    def _cut(self, limit: int) -> int | Literal[Hint.NEED_MORE]:
        """Find the end of the head that the data begin with."""

    async def receive(self) -> bytes:
        """Receive once; ``b""`` is the end of the stream.

        Raises:
            ClientGone, UpstreamError: the stream broke.
        """
        try:
            chunk = await self._receive(RECEIVE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.broken() from None
        if self.patience is not None:
            self.patience.push()
        return chunk if type(chunk) is bytes else bytes(chunk)

    async def fill(self) -> bool:
        """Receive once into the buffer; false at the end of the stream. Raises what ``receive`` raises."""
        chunk = await self.receive()
        self.data += chunk
        return bool(chunk)

    def take(self, most: int) -> bytes:
        """Take up to *most* bytes off the buffer."""
        data = self.data
        if len(data) <= most:
            taken = bytes(data)
            data.clear()
        else:
            taken = bytes(data[:most])
            del data[:most]
        return taken

    async def head(self, limits: Limits) -> _Head | bytes | None:
        """Take one head, final empty line included, off the buffer; ``None`` if the stream ends before it.

        Returns:
            A plain head as it was read, any other as it was sent.

        Raises:
            ClientProtocolError, UpstreamProtocolError: it can't become a head, is longer than it may be, or the stream ends
                inside it.
            ClientGone, UpstreamError: the stream broke.
        """
        while (head := self.head_at_hand(limits)) is None:
            if not await self.fill():
                if self.data:
                    raise self.invalid("the connection ended inside a message head")
                return None
        return head

    def head_at_hand(self, limits: Limits) -> _Head | bytes | None:
        """Take one head as ``head`` does, if it has come already; ``None`` if it has not."""
        data = self.data
        if _END_OF_HEAD in data and (plain := self._plain(limits)) is not None:
            head, end = plain
            if end == len(data):
                data.clear()
            else:
                del data[:end]
            return head
        cut = self._cut(limits.head)
        return None if cut is Hint.NEED_MORE else self.take(cut)


class FromClient(Incoming[RequestHead]):
    """What the client sends.

    Attributes:
        memory: its last plain head.
    """

    async def fill(self) -> bool:
        """Receive once into the buffer; false at the end of the stream. Raises what ``receive`` raises."""
        try:
            chunk = await self._receive(RECEIVE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None
        if self.patience is not None:
            self.patience.push()
        self.data += chunk
        return bool(chunk)

    def __init__(self, stream: Stream, limits: Limits, initial: bytes = b"") -> None:
        """Begin with *initial*, which somebody received before."""
        super().__init__(stream, initial)
        self.memory = Memory(limits.header_fields)

    def broken(self) -> Exception:
        """The client is gone."""
        return ClientGone()

    def invalid(self, message: str) -> Exception:
        """The client is to blame."""
        return ClientProtocolError(Reason.BAD_REQUEST, message)

    def _plain(self, limits: Limits) -> tuple[RequestHead, int] | None:
        return plain_request_head(
            self.data, limit=limits.head, max_fields=limits.header_fields, max_target=limits.target, memory=self.memory
        )

    def _cut(self, limit: int) -> int | Literal[Hint.NEED_MORE]:
        return cut_request_head(self.data, limit=limit)


class FromUpstream(Incoming[ResponseHead]):
    """What the upstream sends.

    Attributes:
        heard: at least one byte came. Until then a reused connection may have been dead all along.
    """

    def __init__(self, stream: Stream) -> None:
        """Begin with nothing: whatever an idle connection said was said to nobody."""
        super().__init__(stream)
        self.heard = False

    async def receive(self) -> bytes:
        """Receive once; an end without TLS's close_notify counts as a cut, whatever the framing says of it."""
        chunk = await super().receive()
        if chunk:
            self.heard = True
        elif getattr(self.stream, "truncated", False):
            raise self.broken()
        return chunk

    def broken(self) -> Exception:
        """The upstream is gone."""
        return UpstreamError("the upstream broke the connection", reason="upstream-cut")

    def invalid(self, message: str) -> Exception:
        """The upstream is to blame."""
        return UpstreamProtocolError(message)

    def _plain(self, limits: Limits) -> tuple[ResponseHead, int] | None:
        return plain_response_head(self.data, limit=limits.head, max_fields=limits.header_fields)

    def _cut(self, limit: int) -> int | Literal[Hint.NEED_MORE]:
        return cut_response_head(self.data, limit=limit)
