"""OpenSSL on the socket itself: the same contract as over memory, and never another connection's descriptor."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from sbxproxy.net.bare import BareStream
from sbxproxy.net.sockets import abort
from sbxproxy.tls.descriptor import Descriptor
from sbxproxy.tls.stream import TlsStream
from support.certs import Leaf, Root
from support.clock import until_stuck
from support.tls_pairs import NAME, client_context, handshake_both


@pytest.fixture(scope="module")
def leaf() -> Leaf:
    return Root().leaf(NAME)


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["tls1.2", "tls1.3"])
def tls(request) -> int:
    return request.param


Ends = tuple[BareStream, BareStream]


def bare_pair(*, buffers: int | None = None) -> Ends:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        near = socket.socket()
        if buffers:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    if buffers:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return BareStream(near), BareStream(far)


def unix_ends() -> Ends:
    """Two ends of a connection that is full when it says so; TCP finds room again a while later, by timers of its own."""
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
    return BareStream(near), BareStream(far)


async def new_pair(
    leaf: Leaf, *, tls: int | None = None, buffers: int | None = None, ends: Ends | None = None
) -> tuple[TlsStream, TlsStream]:
    """Return (client, server), both through their handshake, over *ends* or a new connection."""
    left, right = ends or bare_pair(buffers=buffers)
    client = TlsStream(left, client_context(tls=tls), server_side=False, server_name=NAME, sock=left.socket)
    server = TlsStream(right, leaf.context(tls=tls), server_side=True, sock=right.socket)
    await handshake_both(client, server)
    return client, server


async def direct_pair(
    leaf: Leaf, *, tls: int | None = None, buffers: int | None = None, ends: Ends | None = None
) -> tuple[TlsStream, TlsStream]:
    """Return (client, server), both with OpenSSL on their sockets."""
    client, server = await new_pair(leaf, tls=tls, buffers=buffers, ends=ends)
    for _ in range(2):  # the server's tickets go out with its first bytes; only then is there nothing held back
        for one, other in ((client, server), (server, client)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                await one.send_all(b"x")
    assert isinstance(client._direct, Descriptor)
    assert isinstance(server._direct, Descriptor)
    return client, server


async def stay_in_memory(client: TlsStream, server: TlsStream, ask, answer) -> None:
    """Talk for a while, and see that neither went to its socket."""
    for _ in range(3):
        await ask(b"x")
        assert await server.receive_some() == b"x"
        await answer(b"y")
        assert await client.receive_some() == b"y"
    assert client._direct is server._direct is None
    await close_both(client, server)


async def close_both(*streams: TlsStream) -> None:
    for stream in streams:
        await trio.aclose_forcefully(stream)


async def test_it_conforms_to_trio(leaf, tls):
    async def make():
        return await direct_pair(leaf, tls=tls)

    async def make_clogged():
        client, server = await direct_pair(leaf, tls=tls, ends=unix_ends())
        for stream in (client, server):
            with suppress(SSL.WantWriteError):
                while True:
                    stream._connection.send(b"x")
        return client, server

    await trio.testing.check_two_way_stream(make, make_clogged)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("buffers", [None, 4096])
@pytest.mark.parametrize("direct", [True, False])
async def test_no_order_of_events_mixes_up_bytes(leaf, tls, seed, buffers, direct):
    """On the socket, or from the handshake on, so that the change to the socket falls anywhere or nowhere."""
    dice = random.Random(seed)
    client, server = await (direct_pair if direct else new_pair)(leaf, tls=tls, buffers=buffers)
    up, down = dice.randbytes(400_000), dice.randbytes(300_000)

    async def send(stream, data) -> None:
        while data:
            size = dice.choice((1, 100, 5000, 16_384, 70_000))
            send = dice.choice((stream.send_all, stream.send_at_once))
            await send(data[:size])
            data = data[size:]
            if dice.random() < 0.2:
                await trio.sleep(0)

    async def receive(stream, expected) -> None:
        got = b""
        while len(got) < len(expected):
            got += await stream.receive_some(dice.choice((None, 1, 1000, 16_384, 40_000)))
            if dice.random() < 0.2:
                await trio.sleep(0)
        assert got == expected

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, client, up)
        nursery.start_soon(send, server, down)
        nursery.start_soon(receive, server, up)
        nursery.start_soon(receive, client, down)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        nursery.start_soon(server.aclose)


async def test_what_was_read_ahead_comes_first(leaf, tls):
    """The ClientHello was looked at; what came along with the end of the handshake is OpenSSL's already."""
    left, right = bare_pair()
    client = TlsStream(left, client_context(tls=tls), server_side=False, server_name=NAME, sock=left.socket)
    server = TlsStream(right, leaf.context(tls=tls), server_side=True, sock=right.socket)

    async def connect() -> None:
        await client.do_handshake()
        await client.send_all(b"request")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await right.fill()
        assert right.peeked
        await server.do_handshake()
    assert await server.receive_some() == b"request"
    await server.send_all(b"response")
    assert await client.receive_some() == b"response"
    await close_both(client, server)


async def test_a_stream_that_is_not_just_a_socket_stays_in_memory(leaf):
    left, right = bare_pair()
    client = TlsStream(left, client_context(), server_side=False, server_name=NAME)
    server = TlsStream(right, leaf.context(), server_side=True)
    await handshake_both(client, server)
    await stay_in_memory(client, server, client.send_at_once, server.send_at_once)


async def test_another_pyopenssl_stays_in_memory(leaf, monkeypatch):
    """What the change to the socket is made of is no promise of pyOpenSSL's."""
    monkeypatch.setattr("sbxproxy.tls.descriptor._INTERNALS", {"_ssl", "_gone"})
    left, right = bare_pair()
    client = TlsStream(left, client_context(), server_side=False, server_name=NAME, sock=left.socket)
    server = TlsStream(right, leaf.context(), server_side=True, sock=right.socket)
    await handshake_both(client, server)
    await stay_in_memory(client, server, client.send_all, server.send_all)


async def test_a_goodbye_is_told_from_a_cut(leaf, tls):
    client, server = await direct_pair(leaf, tls=tls)
    await client.aclose()
    assert await server.receive_some() == b""
    assert await server.receive_some() == b""
    assert not server.truncated
    await server.aclose()

    client, server = await direct_pair(leaf, tls=tls)
    client.transport.close()
    assert await server.receive_some() == b""
    assert await server.receive_some() == b""
    assert server.truncated
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
    await server.aclose()


async def test_an_end_right_behind_data_is_not_lost(leaf, tls):
    """The kernel tells no second time of what OpenSSL has read already."""
    client, server = await direct_pair(leaf, tls=tls)
    await client.send_all(bytes(5000))
    client._connection.shutdown()
    await trio.sleep(0.05)
    with trio.fail_after(30):
        assert len(await server.receive_some()) == 5000
        assert await server.receive_some() == b""
    assert not server.truncated
    await close_both(client, server)


async def test_a_cut_right_behind_data_is_not_lost(leaf, tls):
    client, server = await direct_pair(leaf, tls=tls)
    await client.send_all(bytes(5000))
    client.transport.close()
    await trio.sleep(0.05)
    with trio.fail_after(30):
        assert len(await server.receive_some()) == 5000
        assert await server.receive_some() == b""
    assert server.truncated
    await server.aclose()


async def test_an_end_without_goodbye_is_an_error_where_one_is_required(leaf):
    left, right = bare_pair()
    client = TlsStream(left, client_context(), server_side=False, server_name=NAME, sock=left.socket)
    server = TlsStream(right, leaf.context(), server_side=True, sock=right.socket, require_close_notify=True)
    await handshake_both(client, server)
    await client.send_all(b"x")
    await server.receive_some()
    await server.send_all(b"x")
    await client.receive_some()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError, match="close_notify"):
                await server.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert server._direct is not None
        left.close()
    await server.aclose()


async def test_a_reset_breaks_both_directions(leaf, tls):
    client, server = await direct_pair(leaf, tls=tls)
    await abort(client)
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
    await server.aclose()


async def test_damage_is_an_error_and_the_peer_is_told(leaf, tls):
    client, server = await direct_pair(leaf, tls=tls)
    client.transport.socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(trio.BrokenResourceError, match="damaged"):
        await server.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()  # the alert
    await close_both(client, server)


@pytest.mark.parametrize("good", [5000, 16_384])
async def test_data_before_damage_is_delivered(leaf, tls, good):
    client, server = await direct_pair(leaf, tls=tls)
    await client.send_all(bytes(good))
    client.transport.socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    await trio.sleep(0.05)
    assert len(await server.receive_some()) == good
    with pytest.raises(trio.BrokenResourceError, match="damaged"):
        await server.receive_some()
    await close_both(client, server)


async def test_a_cancelled_send_leaves_a_stream_that_can_only_be_read(leaf, tls):
    client, server = await direct_pair(leaf, tls=tls, buffers=4096)
    await until_stuck(client.send_all, bytes(1_000_000))
    for send in (client.send_all, client.send_at_once):
        with pytest.raises(trio.BrokenResourceError, match="failed before"):
            await send(b"x")
    await server.send_all(b"413")
    assert await client.receive_some() == b"413"
    await client.aclose()
    got = b""
    while chunk := await server.receive_some():
        got += chunk
    assert server.truncated, "no close_notify after a torn record"
    assert not got.strip(b"\0")
    await server.aclose()


async def test_closing_wakes_whoever_waits(leaf):
    client, server = await direct_pair(leaf, buffers=4096)

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(bytes(1_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
    await server.aclose()


async def test_closing_waits_a_second_for_a_stuck_peer_and_no_longer(leaf, autojump_clock):
    client, server = await direct_pair(leaf, buffers=4096)
    sock = client.transport.socket
    try:  # fill the kernel's buffers behind TLS's back, so that not even a close_notify fits
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass
    start = trio.current_time()
    with trio.fail_after(10):
        await client.aclose()
    assert trio.current_time() - start <= 1.0
    assert sock.fileno() < 0
    await close_both(server)


async def test_a_cancelled_close_is_immediate_and_silent(leaf):
    client, server = await direct_pair(leaf)
    await trio.aclose_forcefully(client)
    assert await server.receive_some() == b""
    assert server.truncated
    await server.aclose()


async def test_the_descriptor_of_another_connection_is_never_touched(leaf):
    """A closed descriptor's number is given out again at once; whoever still holds the stream must not read there."""
    client, server = await direct_pair(leaf)
    mine, others = socket.socketpair()
    number = client.transport.socket.fileno()
    client.transport.close()  # from below
    taken = os.dup2(mine.fileno(), number)
    try:
        others.send(b"another connection's bytes")
        for attempt in (client.receive_some, client.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await attempt()
        for send in (client.send_all, client.send_at_once):
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await send(b"x")
        await client.aclose()
        assert mine.recv(100) == b"another connection's bytes"
        others.setblocking(False)
        with pytest.raises(BlockingIOError):
            others.recv(100)
    finally:
        os.close(taken)
        mine.close()
        others.close()
    await close_both(server)


async def test_sending_at_once_gives_no_turn_to_others(leaf):
    client, server = await direct_pair(leaf)
    with trio.testing.assert_no_checkpoints():
        await client.send_at_once(b"x")
    assert await server.receive_some() == b"x"
    with trio.testing.assert_checkpoints():
        await client.send_at_once(b"")
    await close_both(client, server)


async def test_two_senders_are_told_so(leaf):
    client, server = await direct_pair(leaf, buffers=4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked()
        for send in (client.send_all, client.send_at_once):
            with pytest.raises(trio.BusyResourceError):
                await send(b"x")
        nursery.cancel_scope.cancel()
    await close_both(client, server)
