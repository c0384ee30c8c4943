"""The SOCKS5 front (RFC 1928, 1929): CONNECT, with names or addresses."""

from __future__ import annotations

__all__ = ["SocksAsk", "open_socks5"]

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import trio

from sbxproxy.errors import ClientProtocolError, UpstreamError
from sbxproxy.fronts.ask import ListenerAuth, Refusal, ToldAsk
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.wire import socks5
from sbxproxy.wire.result import Hint

_T = TypeVar("_T", socks5.Greeting, socks5.UserPass, socks5.SocksRequest)

_REPLIES = {
    "connection-refused": socks5.Reply.CONNECTION_REFUSED,
    "host-unreachable": socks5.Reply.HOST_UNREACHABLE,
    "name-not-resolved": socks5.Reply.HOST_UNREACHABLE,
    "connect-timeout": socks5.Reply.TTL_EXPIRED,
}


async def open_socks5(client: PeekedStream, auth: ListenerAuth | None) -> SocksAsk:
    """Carry out the negotiation up to the request, and consume it.

    Raises:
        ClientProtocolError: it is malformed, asks for something else than CONNECT, or isn't allowed to use this port; the
            client has been told.
    """
    greeting = await _read(client, socks5.parse_greeting)
    method = socks5.METHOD_NONE if auth is None else socks5.METHOD_PASSWORD
    if method not in greeting.methods:
        await client.send_all(socks5.method_reply(socks5.METHOD_REFUSED))
        raise ClientProtocolError(Reason.PROXY_AUTH, "the client offers no acceptable SOCKS authentication", status=407)
    await client.send_all(socks5.method_reply(method))
    if auth is not None:
        given = await _read(client, socks5.parse_userpass)
        allowed = auth.allows(given.username, given.password)
        await client.send_all(socks5.auth_reply(ok=allowed))
        if not allowed:
            raise ClientProtocolError(Reason.PROXY_AUTH, "wrong SOCKS user name or password", status=407)
    try:
        request = await _read(client, socks5.parse_request)
        if request.command != socks5.COMMAND_CONNECT:
            raise socks5.Socks5Error(
                Reason.BAD_REQUEST, "only SOCKS CONNECT is offered", reply=socks5.Reply.COMMAND_NOT_SUPPORTED
            )
    except socks5.Socks5Error as error:
        await client.send_all(socks5.reply(error.reply))
        raise
    return SocksAsk(request.host, request.port, client)


async def _read(client: PeekedStream, parse: Callable[[bytes], _T | Literal[Hint.NEED_MORE]]) -> _T:
    while True:
        message = parse(client.peeked)
        if message is not Hint.NEED_MORE:
            client.consume(message.size)
            return message
        if not await client.fill():
            raise ClientProtocolError(Reason.BAD_REQUEST, "the connection ended inside the SOCKS negotiation")


@dataclass(slots=True)
class SocksAsk(ToldAsk):
    """A SOCKS CONNECT."""

    front: str = "socks5"

    async def accept(self) -> None:
        """Answer that the connection stands: the ClientHello comes only after that."""
        await self.client.send_all(socks5.reply(socks5.Reply.SUCCEEDED))

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with the reply code that comes nearest to the reason."""
        match refusal:
            case Deny():
                code = socks5.Reply.NOT_ALLOWED
            case UpstreamError():
                code = _REPLIES.get(refusal.reason, socks5.Reply.GENERAL_FAILURE)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.client.send_all(socks5.reply(code))
