"""How a connection is ended in good order, within a time that a peer can't stretch."""

from __future__ import annotations

__all__ = ["GOODBYE", "close", "linger"]

from contextlib import suppress

import trio
from trio.abc import Stream

from sbxproxy.net.peek import RECEIVE_SIZE
from sbxproxy.net.sockets import abort, close_now

GOODBYE = 1.0
"""Seconds that telling a client its denial, or closing, may take; a peer that doesn't read can't hold a flow longer."""

LINGER_READS = 64
"""Reads after which a client that was refused is not heard out any longer."""


async def linger(stream: Stream, *, reads: int = LINGER_READS) -> None:
    """End our side and read what the client still sends: closing on unread bytes resets, and a reset can overtake what it was told.

    Who calls sets the time (RFC 9112 section 9.6), and closes *stream*; *reads* bounds how much is taken, at 64 KiB each.
    """
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        for _ in range(reads):
            if not await stream.receive_some(RECEIVE_SIZE):
                return


async def close(stream: Stream, *, hard: bool) -> None:
    """Close, within a second; *hard* lets the peer see a reset."""
    if hard:
        await abort(stream)
        return
    if close_now(stream):
        return
    with trio.move_on_after(GOODBYE, shield=True), suppress(trio.BrokenResourceError):
        await stream.aclose()
