"""PostgreSQL's way into TLS: a request in plain text, one byte for an answer, and only then the handshake.

Told to the client and asked of the server separately, since the server is known only by the name in the ClientHello, which comes
after the client was promised TLS. What makes that safe is that nothing may stand behind a request or behind its answer: whoever sends
more has put plain text where the other end will look for what TLS protects (CVE-2021-23214, CVE-2021-23222).

    client                       sbxproxy                      server
      │ GSSENCRequest (maybe) ─────▶│                             │
      │◀──────────────────────── N  │                             │
      │ SSLRequest ────────────────▶│                             │
      │◀──────────────────────── S  │                             │
      │ ClientHello ───────────────▶│ judge by its server name    │
      │                             │ SSLRequest ────────────────▶│
      │                             │◀──────────────────────── S  │
      │                             │ ClientHello, verbatim ─────▶│
      │◀════════════════ TLS, relayed untouched ═════════════════▶│
"""

from __future__ import annotations

__all__ = ["offer_tls", "prove_postgres", "request_tls"]

import trio

from sbxproxy.errors import ClientProtocolError, UpstreamError
from sbxproxy.net.peek import PeekedStream
from sbxproxy.net.sockets import drop
from sbxproxy.policy.decision import Reason
from sbxproxy.wire.postgres import SSL_REQUEST, PostgresStart, parse_start
from sbxproxy.wire.result import Hint

_REQUEST_LENGTH = len(SSL_REQUEST)


async def offer_tls(client: PeekedStream) -> bool:
    """Answer the client's requests for encryption: GSSAPI's with no, once, and TLS's with yes.

    Returns:
        True once it was told to begin its handshake, which ``client`` then starts with. False if it goes on in plain text after the
        no to GSSAPI: its start-up packet is left in ``client.peeked``.

    Raises:
        ClientProtocolError: it sent something else, or more than a request before the answer.
    """
    gssapi_refused = False
    while True:
        while (start := parse_start(client.peeked)) is Hint.NEED_MORE:
            if not await client.fill():
                raise _bad("the client left after a request for encryption")
        match start:
            case PostgresStart.GSSENC_REQUEST if not gssapi_refused:
                gssapi_refused = True
                await _answer(client, b"N")
            case PostgresStart.SSL_REQUEST:
                await _answer(client, b"S")
                return True
            case PostgresStart.STARTUP | PostgresStart.CANCEL_REQUEST:
                return False
            case _:
                raise _bad("not what follows a request for encryption")


async def _answer(client: PeekedStream, answer: bytes) -> None:
    if len(client.peeked) > _REQUEST_LENGTH:
        raise _bad("the client sent more before its request for encryption was answered")
    client.consume(_REQUEST_LENGTH)
    await client.send_all(answer)


async def request_tls(upstream: PeekedStream, patience: float) -> None:
    """Ask the server for TLS, which it must agree to with exactly one byte, within *patience* seconds.

    Raises:
        UpstreamError: it didn't; ``reason`` is ``upstream-no-tls``, or ``upstream-postgres`` for an answer that is none.
    """
    with trio.move_on_after(patience) as scope:
        try:
            await upstream.send_all(SSL_REQUEST)
            if not upstream.peeked:
                await upstream.fill(2)  # one more than there may be
        except trio.BrokenResourceError:
            upstream.peeked = b""
    if scope.cancelled_caught:
        raise UpstreamError("the server did not answer the request for TLS in time", reason="upstream-postgres", status=504)
    answer, upstream.peeked = upstream.peeked, b""
    match answer:
        case b"S":
            return
        case b"N":
            raise UpstreamError("the PostgreSQL server has no TLS, and nothing is sent to it without", reason="upstream-no-tls")
        case b"":
            raise UpstreamError("the server closed instead of answering the request for TLS", reason="upstream-postgres")
        case _:
            raise UpstreamError("the server did not answer the request for TLS as PostgreSQL does", reason="upstream-postgres")


async def prove_postgres(connection: PeekedStream, patience: float) -> None:
    """Make a server show, on a connection made for it, that it is PostgreSQL; closes *connection*.

    Raises:
        UpstreamError: as ``request_tls``.
    """
    try:
        await request_tls(connection, patience)
    finally:
        await drop(connection)


def _bad(detail: str) -> ClientProtocolError:
    return ClientProtocolError(Reason.BAD_STARTUP, detail)
