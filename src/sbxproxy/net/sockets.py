"""The socket below a stream: finding it, tuning it, and closing it so that the peer sees a failure.

The surprising part is ``abort``: an ordinary close looks to the peer like a clean end, so after one side of a
relay failed a truncated answer would pass for a whole one. A reset can't be taken for an end.
"""

from __future__ import annotations

__all__ = [
    "AnySocket",
    "abort",
    "bare_socket",
    "close_now",
    "drop",
    "enable_keepalive",
    "is_tcp",
    "reset_on_close",
    "socket_below",
]

import socket
import struct
from contextlib import suppress
from typing import Protocol

import trio

from sbxproxy.net.bare import BareStream
from sbxproxy.net.peek import HalfCloseablePeekedStream, PeekedStream

_BELOW = ("inner", "transport", "transport_stream")
"""Attributes under which wrappers keep what they wrap: ours, our TLS stream's, Trio's TLS stream's."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""``struct linger``: on, zero seconds. Closing then drops unsent bytes and sends RST (``SO_LINGER``)."""

KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 4
"""A dead peer is noticed after two minutes of silence (seconds, seconds, count). Linux's own default is two
hours, far beyond what address translators remember."""


class _Options(Protocol):
    """A socket of the standard library or of Trio."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


AnySocket = socket.socket | trio.socket.SocketType
"""A stream's socket: ours are the standard library's, an embedder's may be Trio's."""


def bare_socket(stream: trio.abc.AsyncResource) -> AnySocket | None:
    """Return the socket of *stream* if nothing but peeking is in between; subclasses might transform."""
    kind = type(stream)
    if kind is BareStream:
        assert isinstance(stream, BareStream)
        return stream.socket
    while type(stream) in {PeekedStream, HalfCloseablePeekedStream}:
        assert isinstance(stream, PeekedStream)
        stream = stream.inner
    return stream.socket if type(stream) is trio.SocketStream else None


def socket_below(stream: object) -> AnySocket | None:
    """Return the socket that carries *stream*, going down through its wrappers; ``None`` if there is none."""
    seen = 0
    while not isinstance(stream, BareStream | trio.SocketStream):
        stream = next((below for name in _BELOW if (below := getattr(stream, name, None)) is not None), None)
        seen += 1
        if stream is None or seen > 16:  # a wrapper may name itself
            return None
    return stream.socket


_INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})
_family = socket.SocketType.family.__get__  # the number; as an enumeration it takes ten times as long


def is_tcp(sock: AnySocket) -> bool:
    """Tell whether a stream socket is TCP's."""
    family = _family(sock) if isinstance(sock, socket.socket) else sock.family
    return family in _INTERNET


def close_now(stream: trio.abc.AsyncResource) -> bool:
    """Close *stream* in this step if it is a socket, perhaps with bytes read ahead, and tell whether it was one.

    A socket's ``aclose`` does no more but for the turn it gives to others; forced, within scopes that shield and cancel,
    that turn costs more than all the system calls of a connection. Again is harmless.
    """
    if isinstance(stream, BareStream):
        stream.close()
        return True
    sock = bare_socket(stream)
    if sock is None:
        return False
    sock.close()
    return True


async def drop(stream: trio.abc.AsyncResource) -> None:
    """Close *stream* and all below it without a goodbye. It never waits and can't be cancelled; again is harmless."""
    if close_now(stream):
        return
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)


async def abort(stream: trio.abc.AsyncResource) -> None:
    """Close *stream* and all below it so that the peer sees a reset.

    That is with a TCP socket at the bottom: nothing unsent is sent any more, and no goodbye. Other transports
    are closed forcefully. It never waits and can't be cancelled, so it does not replace an exception on its
    way. Again is harmless.
    """
    sock = socket_below(stream)
    if sock is not None:
        reset_on_close(sock)
    await drop(stream)


def reset_on_close(sock: AnySocket) -> None:
    """Let closing *sock* be a reset; one that is closed already, or not TCP, is left as it is."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def enable_keepalive(sock: _Options) -> None:
    """Make the kernel probe a silent TCP peer; sockets accepted from a listening one inherit it.

    Best effort: a socket of another kind, or a kernel without the finer options, is left as it is.
    """
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
