"""Serves the requests of one client connection, one after another, each on its own merits."""

from __future__ import annotations

__all__ = ["serve"]

import trio
from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError
from sbxproxy.http.exchange import Exchange, Relay
from sbxproxy.http.handler import Ended, Origin, RequestHandler
from sbxproxy.http.incoming import ClientGone
from sbxproxy.http.pool import Pool
from sbxproxy.http.sides import ClientSide
from sbxproxy.net.relay import relay as net_relay
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
    first = True
    while True:
        raw = await _next_head(side, limits, first=first)
        if isinstance(raw, Ended):
            return raw
        exchange = Exchange(side, handler, origin=origin, proxying=proxying, pool=pool, limits=limits, relay=relay)
        ended = await exchange.run(raw)
        if ended is not None:
            return ended
        first = False
        if side.incoming.data:
            await trio.lowlevel.checkpoint()  # a client that asks ahead does not take the turns of others


async def _next_head(side: ClientSide, limits: Limits, *, first: bool) -> RequestHead | bytes | ClientProtocolError | Ended:
    """Wait for the next head; the time for it is a total, which a byte now and then does not extend."""
    incoming = side.incoming
    idle = not first and not incoming.data
    with trio.move_on_after(limits.keep_alive if idle else limits.first_bytes) as scope:
        try:
            if idle:
                if not await incoming.fill():
                    return Ended("eof")
                scope.deadline = trio.current_time() + limits.first_bytes
            return await incoming.head(limits) or Ended("eof")
        except ClientGone:
            return Ended("client-gone")
        except ClientProtocolError as error:
            return error
    if incoming.data:
        return ClientProtocolError(Reason.FIRST_BYTES_TIMEOUT, "the request took too long", status=408)
    return Ended(Reason.FIRST_BYTES_TIMEOUT if first else "idle")
