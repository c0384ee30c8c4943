"""The transparent front: the kernel knows where a redirected connection was going, and the client knows nothing of us."""

from __future__ import annotations

__all__ = ["open_transparent"]

from trio.abc import Stream

from sbxproxy.capture.original import original_destination
from sbxproxy.errors import ClientProtocolError
from sbxproxy.fronts.ask import StreamAsk
from sbxproxy.net.sockets import socket_below
from sbxproxy.policy.decision import Reason


def open_transparent(client: Stream) -> StreamAsk:
    """Ask the kernel for the target.

    Raises:
        ClientProtocolError: *client* is no redirected connection.
    """
    sock = socket_below(client)
    if sock is None:
        raise ClientProtocolError(Reason.BAD_REQUEST, "not a socket, so it has no original destination")
    address, port = original_destination(sock)
    return StreamAsk(address, port, front="transparent")
