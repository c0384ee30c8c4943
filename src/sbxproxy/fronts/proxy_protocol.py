"""The PROXY protocol front, version 2: only on listeners set up for it, and only from peers that the operator trusts.

A receiver must never guess whether a header is there: a program in the sandbox could write one, and choose its own original
destination with it.
"""

from __future__ import annotations

__all__ = ["open_proxy_protocol", "peer_is_trusted"]

import trio

from sbxproxy.address import PrefixTable, parse_address
from sbxproxy.errors import ClientProtocolError
from sbxproxy.fronts.ask import StreamAsk
from sbxproxy.net.peek import PeekedStream
from sbxproxy.net.sockets import socket_below
from sbxproxy.policy.decision import Reason
from sbxproxy.wire.proxy_protocol import parse_proxy_header
from sbxproxy.wire.result import Hint


def peer_is_trusted(client: PeekedStream, trusted: PrefixTable, *, unix: bool) -> bool:
    """Tell whether the TCP peer's address is in *trusted*; *unix* is the answer for a Unix socket, whose file's mode says who may."""
    sock = socket_below(client)
    if sock is None:
        return False
    if sock.family == trio.socket.AF_UNIX:
        return unix
    try:
        address = parse_address(sock.getpeername()[0])
    except OSError:
        return False
    return address is not None and trusted.find(address) is not None


async def open_proxy_protocol(client: PeekedStream, trusted: PrefixTable, *, unix: bool = False) -> StreamAsk:
    """Read and consume the header; its destination is the target.

    Args:
        client: the connection.
        trusted: addresses of the peers that may send one.
        unix: whether whoever connects to a Unix socket may.

    Raises:
        ClientProtocolError: the peer isn't trusted, there is no valid header, or it names no destination.
    """
    if not peer_is_trusted(client, trusted, unix=unix):
        raise ClientProtocolError(Reason.BAD_REQUEST, "a PROXY header is not accepted from this peer")
    while (header := parse_proxy_header(client.peeked)) is Hint.NEED_MORE:
        if not await client.fill():
            raise ClientProtocolError(Reason.BAD_REQUEST, "the connection ended inside the PROXY header")
    client.consume(header.size)
    if header.destination is None:
        raise ClientProtocolError(Reason.BAD_REQUEST, "the PROXY header names no destination")
    address, port = header.destination
    if port == 0:
        raise ClientProtocolError(Reason.BAD_REQUEST, "port 0 can't be connected to")
    return StreamAsk(address, port, front="proxy-protocol")
