"""``TlsStream``: conformance, interoperation, and every way in which a TLS connection can end."""

from __future__ import annotations

import random
import ssl
import sys
from contextlib import suppress

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from sbxproxy.tls.stream import TlsStream
from support.certs import Leaf, Root
from support.clock import until_stuck
from support.tls_pairs import NAME, Recorder, Shuffler, client_context, handshake_both, tls_pair


@pytest.fixture(scope="module")
def leaf() -> Leaf:
    return Root().leaf(NAME)


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["tls1.2", "tls1.3"])
def tls(request) -> int:
    return request.param


def memory_pair():
    return trio.testing.memory_stream_pair()


def lockstep_pair():
    return trio.testing.lockstep_stream_pair()


async def test_it_conforms_to_trio_over_buffering_transports(leaf, tls):
    """Trio's own suite holds a stream to the contract that all code above relies on."""

    async def make():
        return await tls_pair(leaf.context(tls=tls), pair=memory_pair)

    await trio.testing.check_two_way_stream(make, None)


async def test_it_conforms_to_trio_over_transports_without_any_buffer(leaf, tls):
    """A lockstep transport blocks in every send until the other end reads: the worst case of back-pressure."""

    async def make():
        return await tls_pair(leaf.context(tls=tls), pair=lockstep_pair)

    await trio.testing.check_two_way_stream(make, make)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pair", [memory_pair, lockstep_pair])
async def test_no_order_of_events_mixes_up_bytes(leaf, tls, pair, seed, autojump_clock):
    """Both directions at once, random sizes, random pauses round every step of the transport."""
    dice = random.Random(seed)
    left, right = await tls_pair(leaf.context(tls=tls), pair=pair, wrap=lambda stream: Shuffler(stream, dice.randrange(2**32)))
    up, down = dice.randbytes(150_000), dice.randbytes(90_000)

    async def send(stream, data) -> None:
        while data:
            size = dice.choice((1, 100, 16_384, 70_000))
            await stream.send_all(data[:size])
            data = data[size:]

    async def receive(stream, expected) -> None:
        got = b""
        while len(got) < len(expected):
            got += await stream.receive_some(dice.choice((None, 1000, 40_000)))
        assert got == expected

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, left, up)
        nursery.start_soon(send, right, down)
        nursery.start_soon(receive, right, up)
        nursery.start_soon(receive, left, down)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose)
        nursery.start_soon(right.aclose)


def stdlib_server(leaf: Leaf, tmp_path) -> ssl.SSLContext:
    path = tmp_path / "leaf.pem"
    path.write_bytes(leaf.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.set_alpn_protocols(["http/1.1"])
    return context


def stdlib_client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def echo_until_eof(stream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.aclose()


async def exercise_against_echo(stream) -> None:
    """Send a megabyte, get it back, close with a close_notify."""
    data = random.Random(1).randbytes(1_000_000)

    async def send() -> None:
        await stream.send_all(data)

    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(got) < len(data):
            got += await stream.receive_some()
    assert got == data
    await stream.aclose()


async def test_as_client_it_understands_the_standard_library(leaf, tls, tmp_path):
    """Another OpenSSL, another driver: what both understand is TLS and not our own invention."""
    left, right = memory_pair()
    client = TlsStream(left, client_context(tls=tls), server_side=False, server_name=NAME)
    server = trio.SSLStream(right, stdlib_server(leaf, tmp_path), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_until_eof, server)
        await client.do_handshake()
        assert client.alpn == b"http/1.1"
        assert client.version == {SSL.TLS1_2_VERSION: "TLSv1.2", SSL.TLS1_3_VERSION: "TLSv1.3"}[tls]
        assert client.peer_certificate == leaf.certificate
        await exercise_against_echo(client)


async def test_as_server_it_understands_the_standard_library(leaf, tls):
    """The client waits for our close_notify, and raises without it: ``SSLStream`` is strict by default."""
    left, right = memory_pair()
    client = trio.SSLStream(left, stdlib_client(), server_hostname=NAME.upper() + ".")
    server = TlsStream(right, leaf.context(tls=tls), server_side=True)

    async def serve() -> None:
        await server.do_handshake()
        await echo_until_eof(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.do_handshake()
        assert client.selected_alpn_protocol() == "http/1.1"
        await exercise_against_echo(client)
    assert not server.truncated
    assert server.server_name == NAME


async def test_what_it_says_about_itself(leaf, tls):
    client, server = await tls_pair(leaf.context(tls=tls))
    assert client.server_name == server.server_name == NAME
    assert client.alpn == server.alpn == b"http/1.1"
    assert client.version == {SSL.TLS1_2_VERSION: "TLSv1.2", SSL.TLS1_3_VERSION: "TLSv1.3"}[tls]
    assert server.peer_certificate is None
    assert repr(server) == "<TlsStream server open over StapledStream>"
    assert isinstance(server.transport, trio.abc.Stream)


async def test_a_client_without_sni(leaf):
    left, right = memory_pair()
    client = TlsStream(left, client_context(), server_side=False)
    server = TlsStream(right, leaf.context(), server_side=True)
    await handshake_both(client, server)
    assert client.server_name is None
    assert server.server_name is None


async def test_nothing_works_before_the_handshake(leaf):
    left, _right = memory_pair()
    stream = TlsStream(left, leaf.context(), server_side=True)
    for attempt in (stream.receive_some, stream.wait_send_all_might_not_block):
        with pytest.raises(RuntimeError, match="do_handshake"):
            await attempt()
    with pytest.raises(RuntimeError, match="do_handshake"):
        await stream.send_all(b"x")


async def test_a_second_handshake_is_only_a_checkpoint(leaf):
    client, _server = await tls_pair(leaf.context())
    with trio.testing.assert_checkpoints():
        await client.do_handshake()


async def test_a_handshake_excludes_everything_else(leaf):
    """A second task would read the peer's flight away from under the first."""
    left, _right = memory_pair()
    stream = TlsStream(left, leaf.context(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.do_handshake()
        nursery.cancel_scope.cancel()


async def test_tickets_wait_for_the_first_send(leaf):
    """A TLS 1.3 server that writes tickets at once deadlocks with a peer that writes before it reads."""
    client, server = await tls_pair(leaf.context(tls=SSL.TLS1_3_VERSION), pair=lockstep_pair, wrap=Recorder)
    flights = len(server.transport.sent)
    async with trio.open_nursery() as nursery:  # over lockstep a ticket in the way would hang here
        nursery.start_soon(client.send_all, b"request")
        assert await server.receive_some() == b"request"
    assert len(server.transport.sent) == flights
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, b"response")
        assert await client.receive_some() == b"response"
    assert len(server.transport.sent[-1]) > len(b"response") + 22, "the tickets went in front of it"


async def test_tickets_go_out_before_a_close_notify(leaf):
    """Records are numbered; a dropped ticket would make the close_notify undecipherable."""
    client, server = await tls_pair(leaf.context(tls=SSL.TLS1_3_VERSION))
    await server.aclose()
    assert await client.receive_some() == b""
    assert not client.truncated


@pytest.mark.parametrize("strict", [False, True])
async def test_the_end_without_close_notify_is_told_apart(leaf, tls, strict):
    """It is how half of HTTPS ends, and how a truncation attack looks: the caller must be able to know."""
    client, server = await tls_pair(leaf.context(tls=tls), require_close_notify=strict)
    await server.send_all(b"half of it")
    await server.transport.aclose()
    assert await client.receive_some() == b"half of it"
    for _again in range(2):
        if strict:
            with pytest.raises(trio.BrokenResourceError, match="close_notify"):
                await client.receive_some()
        else:
            assert await client.receive_some() == b""
        assert client.truncated


async def test_a_record_cut_in_half_is_a_truncated_end(leaf):
    client, server = await tls_pair(leaf.context(), wrap=Recorder)
    await server.send_all(b"x" * 5000)
    client.transport.chop = 2000
    with trio.move_on_after(0):
        await client.receive_some()
    client.transport.eof = True
    assert await client.receive_some() == b""
    assert client.truncated


async def test_after_the_peers_close_notify_sending_goes_on(leaf, tls):
    """A peer may be done speaking and still listen (RFC 8446, 6.1)."""
    client, server = await tls_pair(leaf.context(tls=tls))
    server._connection.shutdown()
    await server._send_last_words()
    assert await client.receive_some() == b""
    assert not client.truncated
    await client.send_all(b"late answer")
    assert await server.transport.receive_some()


async def test_a_damaged_record_breaks_the_stream(leaf, tls):
    """What came before it is still delivered; the peer is told by an alert; nothing after it is believed."""
    client, server = await tls_pair(leaf.context(tls=tls), wrap=Recorder)
    await server.send_all(b"good " * 4000)
    await server.send_all(b"bad")
    client.transport.damage = True
    assert await client.receive_some() == b"good " * 4000
    for _again in range(2):
        with pytest.raises(trio.BrokenResourceError, match="damaged") as caught:
            await client.receive_some()
        assert isinstance(caught.value.__cause__, SSL.Error)
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await server.receive_some()
    assert "bad record mac" in repr(caught.value.__cause__)
    await client.aclose()


async def test_u6_renegotiation_is_refused(leaf):
    """A renegotiation could change who is speaking in the middle of a connection; it is also costly for the server."""
    left, right = memory_pair()
    peer = SSL.Connection(client_context(tls=SSL.TLS1_2_VERSION), None)
    peer.set_connect_state()
    server = TlsStream(right, leaf.context(tls=SSL.TLS1_2_VERSION), server_side=True)

    async def drive(step):
        while True:
            try:
                return step()
            except SSL.WantReadError:
                try:
                    await left.send_all(peer.bio_read(65536))
                except SSL.WantReadError:
                    peer.bio_write(await left.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await drive(peer.do_handshake)
    peer.renegotiate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        with pytest.raises(SSL.Error, match="no renegotiation"):
            await drive(peer.do_handshake)
        nursery.cancel_scope.cancel()


async def test_u6_renegotiation_is_refused_to_servers_too(leaf):
    """A server that asks for it gets a warning, and what it sent before and after still arrives."""
    left, right = memory_pair()
    peer = SSL.Connection(leaf.context(tls=SSL.TLS1_2_VERSION), None)
    peer.set_accept_state()
    client = TlsStream(left, client_context(tls=SSL.TLS1_2_VERSION), server_side=False, server_name=NAME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        for _flight in range(2):
            peer.bio_write(await right.receive_some())
            with suppress(SSL.WantReadError):
                peer.do_handshake()
            await right.send_all(peer.bio_read(65536))
    peer.send(b"before")
    peer.renegotiate()
    peer.do_handshake()  # a HelloRequest
    peer.send(b"after")
    await right.send_all(peer.bio_read(65536))
    got = b""
    while len(got) < len("beforeafter"):
        got += await client.receive_some()
    assert got == b"beforeafter"
    await until_stuck(client.receive_some)  # the answer goes out when the reader is about to wait
    peer.bio_write(await right.receive_some())
    with pytest.raises(SSL.Error, match="no renegotiation"):
        peer.recv(100)


async def test_an_answer_that_meets_a_stuck_sender_is_left_to_it(leaf):
    """Reading may make OpenSSL write. A reader that waited for a stuck sender would never read what unsticks it."""
    left, right = lockstep_pair()
    peer = SSL.Connection(client_context(tls=SSL.TLS1_2_VERSION), None)
    peer.set_connect_state()
    server = TlsStream(Recorder(right), leaf.context(tls=SSL.TLS1_2_VERSION), server_side=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        for _flight in range(3):
            try:
                peer.do_handshake()
            except SSL.WantReadError:
                await left.send_all(peer.bio_read(65536))
                peer.bio_write(await left.receive_some())
        peer.do_handshake()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, b"response")  # nobody reads it yet: this holds the wire
        await trio.testing.wait_all_tasks_blocked()
        got: list[bytes] = []

        async def read() -> None:
            got.append(await server.receive_some())

        nursery.start_soon(read)
        peer.renegotiate()
        with pytest.raises(SSL.WantReadError):
            peer.do_handshake()
        await left.send_all(peer.bio_read(65536))  # makes OpenSSL answer with a no_renegotiation alert
        await trio.testing.wait_all_tasks_blocked()
        assert server._note
        received = await left.receive_some()
        received += await left.receive_some()  # the holder looked again
        assert received.count(b"\x15\x03\x03") == 1
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_holds_little_of_ours(leaf, tls):
    """However much is sent at once, only a slice of it is encrypted ahead of the transport."""
    client, server = await tls_pair(leaf.context(tls=tls), pair=lockstep_pair, wrap=Recorder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, bytearray(4_000_000))
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.transport.sent[-1]) < 72 * 1024
        left = 4_000_000
        while left:
            left -= len(await client.receive_some())
    assert max(map(len, server.transport.sent)) < 72 * 1024
    assert len(server.transport.sent) < 70, "slices are as large as they may be"


async def test_a_peer_that_dribbles(leaf, tls):
    """One byte at a time from the first to the last."""
    client, server = await tls_pair(leaf.context(tls=tls), wrap=lambda stream: Recorder(stream, chop=1))
    await client.send_all(b"hello")
    assert await server.receive_some() == b"hello"


async def test_a_cancelled_receive_loses_nothing(leaf, tls):
    client, server = await tls_pair(leaf.context(tls=tls))
    with trio.move_on_after(0) as scope:
        await client.receive_some()
    assert scope.cancelled_caught
    await server.send_all(b"ab")
    assert await client.receive_some(1) == b"a"
    with trio.CancelScope() as scope:  # cancelled while plaintext is already there
        scope.cancel()
        await client.receive_some()
    assert await client.receive_some() == b"b"


async def test_a_cancellation_at_the_last_moment_loses_nothing(leaf, tls):
    """Once plaintext has left OpenSSL it must reach the caller, even one cancelled in the same step of the loop."""
    client, server = await tls_pair(leaf.context(tls=tls))
    await server.send_all(bytes(range(200)))
    got = bytearray(await client.receive_some(1))

    async def receive(scope: trio.CancelScope) -> None:
        with scope:
            got.extend(await client.receive_some(1))

    async def cancel(scope: trio.CancelScope) -> None:
        scope.cancel()

    while len(got) < 200:
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:  # Trio runs the two in random order
            nursery.start_soon(receive, scope)
            nursery.start_soon(cancel, scope)
    assert got == bytes(range(200))


async def test_an_early_answer_survives_a_broken_send(leaf, tls):
    """A server may answer, and close its ears, before it has the whole request."""
    client, server = await tls_pair(leaf.context(tls=tls))
    await server.send_all(b"413")
    await server.transport.receive_stream.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"a large body")
    assert await client.receive_some() == b"413"


async def test_a_cancelled_send_ends_sending_and_leaves_reading(leaf, tls):
    """Nobody knows how much of the record is out, so nothing may follow; what the peer said before is good."""
    client, server = await tls_pair(leaf.context(tls=tls), wrap=Recorder)
    await server.send_all(b"413")
    client.transport.stuck = True
    await until_stuck(client.send_all, b"a large body")
    client.transport.stuck = False
    with pytest.raises(trio.BrokenResourceError, match="failed before"):
        await client.send_all(b"more of it")
    with pytest.raises(trio.BrokenResourceError):
        await client.wait_send_all_might_not_block()
    assert await client.receive_some() == b"413"
    sent = len(client.transport.sent)
    await client.aclose()
    assert len(client.transport.sent) == sent, "no close_notify after a torn record"
    assert await server.receive_some() == b""
    assert server.truncated


async def test_two_senders_or_two_receivers_are_told_so(leaf):
    client, _server = await tls_pair(leaf.context(), pair=lockstep_pair)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"x")
        nursery.start_soon(client.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="sending"):
            await client.send_all(b"y")
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await client.receive_some()
        nursery.cancel_scope.cancel()


async def test_closing_says_goodbye_once(leaf, tls):
    client, server = await tls_pair(leaf.context(tls=tls), wrap=Recorder)
    sent = len(client.transport.sent)
    await client.aclose()
    await client.aclose()
    assert len(client.transport.sent) == sent + 1
    assert client.transport.closes == 2
    assert await server.receive_some() == b""
    assert not server.truncated
    for attempt in (client.receive_some, client.wait_send_all_might_not_block, client.do_handshake):
        with pytest.raises(trio.ClosedResourceError):
            await attempt()


async def test_closing_waits_a_second_for_a_stuck_peer_and_no_longer(leaf, autojump_clock):
    client, _server = await tls_pair(leaf.context(), wrap=Recorder)
    client.transport.stuck = True
    start = trio.current_time()
    await client.aclose()
    assert trio.current_time() - start == 1.0
    assert client.transport.closes == 1


async def test_a_cancelled_close_is_immediate_and_silent(leaf, autojump_clock):
    """A close_notify would say "that was all" of a transfer that was cut."""
    client, server = await tls_pair(leaf.context(), wrap=Recorder)
    sent = len(client.transport.sent)
    start = trio.current_time()
    await trio.aclose_forcefully(client)
    assert trio.current_time() == start
    assert client.transport.closes == 1
    assert len(client.transport.sent) == sent
    assert await server.receive_some() == b""
    assert server.truncated


async def test_a_close_that_is_cancelled_halfway_still_closes(leaf, autojump_clock):
    client, _server = await tls_pair(leaf.context(), wrap=Recorder)
    client.transport.stuck = True
    with trio.move_on_after(0.25) as scope:
        await client.aclose()
    assert scope.cancelled_caught
    assert client.transport.closes == 1


async def test_closing_wakes_a_stuck_sender(leaf):
    client, _server = await tls_pair(leaf.context(), pair=lockstep_pair)

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(bytes(1_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()


async def test_closing_during_the_handshake(leaf):
    left, _right = memory_pair()
    stream = TlsStream(left, leaf.context(), server_side=True)

    async def shake() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.do_handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()


async def test_garbage_instead_of_a_client_hello(leaf, autojump_clock):
    """We answer with an alert and never with the garbage; nothing works afterwards."""
    left, right = memory_pair()
    stream = TlsStream(right, leaf.context(), server_side=True)
    await left.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError, match="handshake failed") as caught:
        await stream.do_handshake()
    assert isinstance(caught.value.__cause__, SSL.Error)
    assert "GET" not in repr(caught.value) + repr(caught.value.__cause__)
    for attempt in (stream.receive_some, stream.do_handshake):
        with pytest.raises(trio.BrokenResourceError):
            await attempt()
    await stream.aclose()


async def test_an_alert_that_nobody_takes_delays_the_error_by_a_second_at_most(leaf, autojump_clock):
    left, right = memory_pair()
    stream = TlsStream(Recorder(right), client_context(), server_side=False)
    await left.send_all(b"\x16\x03\x03\x00\x05hello")

    async def get_stuck() -> None:
        await left.receive_some()
        stream.transport.stuck = True

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(get_stuck)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
    assert trio.current_time() - start <= 1.0


@pytest.mark.parametrize("fraction", [0, 0.01, 0.2, 0.5, 0.8, 0.99])
async def test_a_handshake_cut_anywhere_ends(leaf, tls, fraction):
    """A peer that goes away is an error at once, wherever it went."""
    left, right = memory_pair()
    flight = Recorder(right)
    with trio.move_on_after(0.05):
        async with trio.open_nursery() as nursery:
            client = TlsStream(left, client_context(tls=tls), server_side=False)
            nursery.start_soon(client.do_handshake)
            server = TlsStream(flight, leaf.context(tls=tls), server_side=True)
            nursery.start_soon(server.do_handshake)
    cut = b"".join(flight.sent)
    left, right = memory_pair()
    await right.send_all(cut[: int(len(cut) * fraction)])
    await right.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await TlsStream(left, client_context(tls=tls), server_side=False).do_handshake()


async def test_tls_in_tls(leaf):
    """The transport may be a TLS stream itself: an HTTPS proxy."""
    outer_client, outer_server = await tls_pair(leaf.context())
    client = TlsStream(outer_client, client_context(), server_side=False, server_name=NAME)
    server = TlsStream(outer_server, leaf.context(), server_side=True)
    await handshake_both(client, server)
    await client.send_all(b"inner")
    assert await server.receive_some() == b"inner"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        assert await server.receive_some() == b""
    await server.aclose()


async def test_a_stream_leaves_no_cycle_behind(leaf):
    """Memory of a finished connection is freed at once, not when the collector comes round."""
    client, _server = await tls_pair(leaf.context())
    connection, alone = client._connection, object()
    await client.aclose()
    del client
    assert sys.getrefcount(connection) == sys.getrefcount(alone)
