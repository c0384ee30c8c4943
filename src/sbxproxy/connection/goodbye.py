"""How a connection is ended: said in the client's own protocol where that has words for it, within a second in any case."""

from __future__ import annotations

__all__ = ["GOODBYE", "close", "denial", "failure", "linger"]

from contextlib import suppress

import trio
from trio.abc import Stream

from sbxproxy.fronts.http import refusal_bytes
from sbxproxy.net.peek import PeekedStream
from sbxproxy.net.sockets import abort, close_now
from sbxproxy.policy.decision import Deny, Reason, Wire
from sbxproxy.wire.postgres import error_response
from sbxproxy.wire.tls import Alert, alert_record

GOODBYE = 1.0
"""Seconds that telling a client its denial, or closing, may take; a peer that doesn't read can't hold a flow longer."""


def denial(wire: str | None, deny: Deny, *, promised_tls: bool = False) -> bytes:
    """Say no as the protocol of the first bytes does; empty where there is no way but a reset.

    Args:
        wire: what they are.
        deny: the verdict.
        promised_tls: a PostgreSQL client was told to begin its handshake: it no longer understands plain text.
    """
    match wire:
        case Wire.TLS | Wire.POSTGRES_TLS:
            return alert_record(Alert.ACCESS_DENIED)
        case Wire.HTTP:
            return refusal_bytes(deny)
        case Wire.POSTGRES_REQUEST:
            # Without a promise there is no answer that whoever put bytes behind a request might not misread.
            return alert_record(Alert.ACCESS_DENIED) if promised_tls else b""
        case Wire.POSTGRES:
            code = "08P01" if deny.reason == Reason.BAD_STARTUP else "28000"
            return error_response(
                f"the sandbox's policy denies this: {deny.detail} [{deny.reason}]", code=code, hint=deny.remedy or ""
            )
        case _:
            return b""


def failure(wire: str | None) -> bytes:
    """Say that what was allowed can't be had; empty where there is no way but to close."""
    return alert_record(Alert.INTERNAL_ERROR) if wire in {Wire.TLS, Wire.POSTGRES_TLS} else b""


async def linger(client: PeekedStream) -> None:
    """End our side and read what the client still sends, so that its kernel doesn't throw away what it was told (RFC 9112 9.6)."""
    if isinstance(client, trio.abc.HalfCloseableStream):
        await client.send_eof()
        client.consume(len(client.peeked))
        for _ in range(64):
            if not await client.fill():
                return
            client.consume(len(client.peeked))


async def close(stream: Stream, *, hard: bool) -> None:
    """Close, within a second; *hard* lets the peer see a reset."""
    if hard:
        await abort(stream)
        return
    if close_now(stream):
        return
    with trio.move_on_after(GOODBYE, shield=True), suppress(trio.BrokenResourceError):
        await stream.aclose()
