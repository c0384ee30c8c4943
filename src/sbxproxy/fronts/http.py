"""The HTTP front: CONNECT tunnels (RFC 9110 section 9.3.6) and plain-text requests in absolute-form (RFC 9112 section 3.2.2)."""

from __future__ import annotations

__all__ = ["ESTABLISHED", "ConnectAsk", "PlainAsk", "open_connect", "open_http", "refusal_bytes", "send_error", "serialize"]

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

import trio

from sbxproxy.address import IPAddress
from sbxproxy.errors import ClientProtocolError, UpstreamError
from sbxproxy.fronts.ask import ListenerAuth, Refusal, ToldAsk
from sbxproxy.hostname import Hostname
from sbxproxy.http.message import Response
from sbxproxy.http.reply import deny_reply, error_reply
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.settings import Limits
from sbxproxy.wire.authority import parse_absolute_target, parse_authority
from sbxproxy.wire.http1 import RequestHead, TargetForm, cut_request_head, parse_request_head
from sbxproxy.wire.result import Hint

_MOST_KEPT = 512
"""Bytes of the longest head of a CONNECT whose meaning is kept."""

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
"""The answer to a CONNECT that is accepted; what follows belongs to the tunnel."""


async def open_http(client: PeekedStream, limits: Limits, auth: ListenerAuth | None) -> ConnectAsk | PlainAsk:
    """Read a request to a proxy; a CONNECT's head is consumed, a plain request stays to be read again.

    Raises:
        ClientProtocolError: it is no request to a proxy, or not allowed to use this port; the client has been told.
    """
    try:
        while (end := cut_request_head(client.peeked, limit=limits.head)) is Hint.NEED_MORE:
            if not await client.fill():
                raise ClientProtocolError(Reason.BAD_REQUEST, "the connection ended inside a request head")
        if auth is None and (plain := _plain_connect(client, end, limits)) is not None:
            return plain
        head = parse_request_head(client.peeked[:end], max_fields=limits.header_fields, max_target=limits.target)
        if auth is not None and not auth.allows_basic(_one(head, b"proxy-authorization")):
            raise ClientProtocolError(Reason.PROXY_AUTH, "this proxy asks for a user name and password", status=407)
        ask: ConnectAsk | PlainAsk
        if head.form is TargetForm.AUTHORITY:
            host, port = _authority(head)
            client.consume(end)
            ask = ConnectAsk(host, port, client)
        elif head.form is TargetForm.ABSOLUTE:
            target = parse_absolute_target(head.target)
            if target.scheme != "http":
                raise ClientProtocolError(Reason.BAD_REQUEST, "https goes through a proxy by CONNECT")
            ask = PlainAsk(target.host, target.port, client)
        else:
            raise ClientProtocolError(Reason.BAD_REQUEST, "this is a proxy: it takes CONNECT and absolute targets only")
    except ClientProtocolError as error:
        await send_error(client, error)
        raise
    return ask


def open_connect(client: PeekedStream, limits: Limits) -> ConnectAsk | None:
    """Take a plain CONNECT whose head is there, at a port without a password; ``None``, with nothing consumed, for all else.

    Raises:
        ClientProtocolError: as ``open_http``, but the client has not been told.
    """
    end = cut_request_head(client.peeked, limit=limits.head)
    return None if end is Hint.NEED_MORE else _plain_connect(client, end, limits)


def _plain_connect(client: PeekedStream, end: int, limits: Limits) -> ConnectAsk | None:
    head = client.peeked[:end]
    if end > _MOST_KEPT or b"authorization" in head.lower():
        return None
    wish = _connect_wish(head, limits.header_fields, limits.target)
    if wish is None:
        return None
    client.consume(end)
    return ConnectAsk(wish[0], wish[1], client)


@lru_cache(maxsize=256)
def _connect_wish(head: bytes, max_fields: int, max_target: int) -> tuple[Hostname | IPAddress, int] | None:
    """Read whom a CONNECT is for; ``None`` for another request.

    A program that connects again sends the same head again: reading it once saves more than all else that a front does.
    Heads with credentials don't come here, since what does is kept.

    Raises:
        ClientProtocolError: as ``open_http``.
    """
    if not head.startswith(b"CONNECT "):
        return None
    parsed = parse_request_head(head, max_fields=max_fields, max_target=max_target)
    return _authority(parsed) if parsed.form is TargetForm.AUTHORITY else None


def _authority(head: RequestHead) -> tuple[Hostname | IPAddress, int]:
    host, port = parse_authority(head.target)
    if head.host is not None and parse_authority(head.host, port) != (host, port):
        # RFC 9112 section 3.2: two targets in one request are how one is smuggled past whoever reads the other.
        raise ClientProtocolError(Reason.BAD_REQUEST, "Host is not the target of CONNECT")
    return host, port


def _one(head: RequestHead, name: bytes) -> str | None:
    values = [value for field, value in head.fields if field.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else None


async def send_error(client: PeekedStream, error: ClientProtocolError) -> None:
    """Answer a request that is none; nothing of it is quoted."""
    response = error_reply(error.status, error.reason, str(error))
    if error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        response = response.with_header("proxy-authenticate", 'Basic realm="sbxproxy"')
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await client.send_all(serialize(response))


def serialize(response: Response) -> bytes:
    """Write a whole response, after which the connection closes."""
    body = response.body or b""
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in response.headers)
    phrase = HTTPStatus(response.status).phrase.encode()
    return b"HTTP/1.1 %d %s\r\n%scontent-length: %d\r\nconnection: close\r\n\r\n%s" % (
        response.status,
        phrase,
        fields,
        len(body),
        body,
    )


def refusal_bytes(refusal: Refusal) -> bytes:
    """Write the whole response that tells a refusal, after which the connection closes."""
    return serialize(_reply(refusal))


def _reply(refusal: Refusal) -> Response:
    match refusal:
        case Deny():
            message = refusal.detail if refusal.remedy is None else f"{refusal.detail}; to allow it: {refusal.remedy}"
            return deny_reply(403, refusal.reason, message)
        case UpstreamError():
            return error_reply(refusal.status, refusal.reason, str(refusal))


@dataclass(slots=True)
class _HttpAsk(ToldAsk):
    async def refuse(self, refusal: Refusal) -> None:
        """Answer 403, 502 or 504 with the reason."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.client.send_all(refusal_bytes(refusal))


@dataclass(slots=True)
class ConnectAsk(_HttpAsk):
    """A CONNECT request."""

    front: str = "connect"

    async def accept(self) -> None:
        """Answer 200; what follows belongs to the tunnel."""
        await self.client.send_at_once(ESTABLISHED)


@dataclass(slots=True)
class PlainAsk(_HttpAsk):
    """A plain-text request; its bytes are still in the stream."""

    front: str = "http"
    wire: str | None = "http"

    async def accept(self) -> None:
        """Nothing to say before the response."""
        await trio.lowlevel.checkpoint()
