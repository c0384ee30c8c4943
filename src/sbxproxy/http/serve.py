"""Serves the requests of one client connection, one after another, each on its own merits."""

from __future__ import annotations

__all__ = ["serve"]

import trio
from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError
from sbxproxy.http.exchange import Exchange, Relay
from sbxproxy.http.handler import Ended, Origin, RequestHandler
from sbxproxy.http.incoming import ClientGone
from sbxproxy.http.patience import Patience
from sbxproxy.http.pool import Pool
from sbxproxy.http.sides import ClientSide
from sbxproxy.net.relay import relay as net_relay
from sbxproxy.net.sockets import abort
from sbxproxy.policy.decision import Reason
from sbxproxy.settings import Limits
from sbxproxy.wire.http1 import RequestHead


async def serve(
    client: Stream,
    handler: RequestHandler,
    *,
    limits: Limits,
    origin: Origin,
    proxying: bool = False,
    pool: Pool | None = None,
    initial: bytes = b"",
    relay: Relay = net_relay,
) -> Ended:
    """Serve HTTP/1.1 on *client* until the connection ends, and say why it did.

    Args:
        client: the connection, in plain text. The caller closes it; where its end must not look regular, it is
            already reset when this returns.
        handler: decides on each request.
        limits: bounds; ``first_bytes`` is the total for a head, ``keep_alive`` the wait for the next one,
            ``request_idle`` the bound on an exchange in which nothing moves.
        origin: whom every request must be for. Another authority is answered with 421.
        proxying: the client takes us for its proxy: targets are absolute, and a request for another authority
            (or CONNECT) ends this with ``elsewhere`` and that request in ``Ended.leftover``.
        pool: connections to reuse; without one every request gets a connection of its own.
        initial: what was received from *client* before.
        relay: carries the bytes of an accepted WebSocket upgrade.
    """
    side = ClientSide(client, limits, initial)
    patience = side.incoming.patience = Patience()
    exchange = Exchange(side, handler, patience, origin=origin, proxying=proxying, pool=pool, limits=limits, relay=relay)
    try:
        with patience.scope:
            return await _serve_all(side, exchange, patience, limits)
        if exchange.under_way:
            return await exchange.time_out()
        if not side.incoming.data:
            return Ended("idle" if exchange.served else Reason.FIRST_BYTES_TIMEOUT)
        late = ClientProtocolError(Reason.FIRST_BYTES_TIMEOUT, "the request took too long", status=408)
        with trio.move_on_after(limits.linger):
            return await exchange.run(late) or Ended("closed")
        await abort(client)
        return Ended(late.reason)
    finally:
        patience.close()
        await exchange.close()


async def _serve_all(side: ClientSide, exchange: Exchange, patience: Patience, limits: Limits) -> Ended:
    incoming = side.incoming
    while True:
        head: RequestHead | bytes | ClientProtocolError | Ended | None = None
        if exchange.served and not incoming.data:  # as _next_head, which the usual request need not go through
            incoming.patience = None
            patience.begin(limits.keep_alive, patience.last)  # the end of the response
            try:
                if not await incoming.fill():
                    return Ended("eof")
                head = incoming.head_at_hand(limits)
            except ClientGone:
                return Ended("client-gone")
            except ClientProtocolError as error:
                head = error
        if head is None:
            head = await _next_head(side, patience, limits)
        if isinstance(head, Ended):
            return head
        ended = await exchange.run(head)
        if ended is not None:
            return ended
        if incoming.data:
            await trio.lowlevel.checkpoint()  # a client that asks ahead does not take the turns of others


async def _next_head(side: ClientSide, patience: Patience, limits: Limits) -> RequestHead | bytes | ClientProtocolError | Ended:
    """Wait for the next head, of which bytes have come or must soon; a byte now and then does not extend the time for it."""
    incoming = side.incoming
    incoming.patience = None
    patience.begin(limits.first_bytes)
    try:
        return await incoming.head(limits) or Ended("eof")
    except ClientGone:
        return Ended("client-gone")
    except ClientProtocolError as error:
        return error
