"""Finding, tuning and aborting what is below a stream."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from sbxproxy.net.peek import PeekedStream, peekable
from sbxproxy.net.sockets import abort, close_now, enable_keepalive, socket_below
from sbxproxy.tls.stream import TlsStream
from support.tcp import Opaque, tcp_pair, unix_pair


def over_tls(stream):
    return TlsStream(stream, SSL.Context(SSL.TLS_CLIENT_METHOD), server_side=False)


@pytest.mark.parametrize("wrap", [lambda s: s, peekable, lambda s: PeekedStream(peekable(s)), Opaque, over_tls], ids=range(5))
async def test_aborting_shows_the_peer_a_reset_through_any_wrapper(wrap):
    """A clean end after half an answer would pass for a whole one."""
    near, far = tcp_pair()
    stream = wrap(near)
    await abort(stream)
    assert near.socket.fileno() == -1
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()
    await abort(stream)
    await far.aclose()


async def test_aborting_never_waits_and_never_raises_cancelled():
    """It is what one does while something worse is on its way."""
    near, far = tcp_pair()
    with pytest.raises(RuntimeError, match="worse"), trio.CancelScope() as scope:
        scope.cancel()
        try:
            raise RuntimeError("worse")
        finally:
            await abort(near)
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()
    await far.aclose()


async def test_aborting_what_has_no_socket_closes_it():
    near, far = trio.testing.memory_stream_pair()
    await abort(near)
    assert await far.receive_some() == b""


async def test_aborting_a_unix_socket_closes_it():
    near, far = unix_pair()
    await abort(near)
    assert await far.receive_some() == b""
    await far.aclose()


@pytest.mark.parametrize("wrap", [lambda s: s, peekable, lambda s: PeekedStream(peekable(s))], ids=range(3))
async def test_a_bare_socket_closes_in_one_step_and_its_peer_sees_an_end(wrap):
    near, far = tcp_pair()
    stream = wrap(near)
    assert close_now(stream)
    assert close_now(stream)
    assert near.socket.fileno() == -1
    assert await far.receive_some() == b""
    await far.aclose()


@pytest.mark.parametrize("wrap", [Opaque, over_tls])
async def test_what_says_goodbye_itself_is_not_closed_in_one_step(wrap):
    near, far = tcp_pair()
    assert not close_now(wrap(near))
    assert near.socket.fileno() >= 0
    await near.aclose()
    await far.aclose()


async def test_those_who_wait_for_a_socket_are_told_that_it_was_closed(nursery):
    near, far = tcp_pair()
    told = trio.Event()

    async def wait():
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
        told.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    close_now(near)
    await told.wait()
    await far.aclose()


async def test_a_wrapper_of_itself_has_no_socket():
    class Circle(Opaque):
        pass

    circle = Circle(None)
    assert socket_below(circle) is None
    circle.inner = circle
    assert socket_below(circle) is None


async def test_x2_keepalive_is_set_on_tcp_and_nothing_happens_elsewhere():
    near, far = tcp_pair()
    enable_keepalive(near.socket)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    local, other = unix_pair()
    enable_keepalive(local.socket)
    for stream in (near, far, local, other):
        await stream.aclose()
