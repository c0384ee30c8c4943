"""One port for HTTP and SOCKS5: the first byte tells them apart."""

from __future__ import annotations

__all__ = ["open_explicit"]

from sbxproxy.errors import ClientProtocolError
from sbxproxy.fronts.ask import Ask, ListenerAuth
from sbxproxy.fronts.http import open_http
from sbxproxy.fronts.socks5 import open_socks5
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.decision import Reason
from sbxproxy.settings import Limits

_SOCKS5 = 5


async def open_explicit(client: PeekedStream, limits: Limits, auth: ListenerAuth | None) -> Ask | None:
    """Read what the client asks for; ``None`` if it left without asking anything.

    Raises:
        ClientProtocolError: it speaks neither protocol, or speaks it wrongly; where there is a way to say so, it was told.
    """
    if not client.peeked and not await client.fill():
        return None
    first = client.peeked[0]
    if first == _SOCKS5:
        return await open_socks5(client, auth)
    if chr(first).isascii() and chr(first).isalpha():
        return await open_http(client, limits, auth)
    raise ClientProtocolError(Reason.BAD_REQUEST, "neither HTTP nor SOCKS version 5")
