"""Dialling: to the judged addresses, to nothing else, and without leaks."""

from __future__ import annotations

import errno
import random
import socket
import sys
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio

from sbxproxy.errors import LimitError, UpstreamConnectError
from sbxproxy.net.dial import _interleaved, begin, check, dial
from support.tcp import black_hole, open_descriptors, reset

V4 = [IPv4Address(f"127.0.0.{last}") for last in range(1, 9)]
V6 = IPv6Address("::1")


def listening(host="127.0.0.1", port=0):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def free_port() -> int:
    """A port that nobody listens on."""
    with listening() as server:
        return server.getsockname()[1]


async def call(addresses, port, *, connect=10.0, total=30.0, **options):
    return await dial(addresses, port, connect=connect, total=total, **options)


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", V4[0]), ("::1", V6)])
async def test_it_connects_and_hands_over_a_tuned_stream(host, address):
    with listening(host) as server:
        stream, chosen = await call([address], server.getsockname()[1])
        peer, name = server.accept()
        with peer:
            assert chosen == address
            assert stream.socket.getsockname()[:2] == name[:2]
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not stream.socket.get_inheritable()
            await stream.send_all(b"hello")
            assert peer.recv(5) == b"hello"
        await stream.aclose()


async def test_d9_only_the_judged_address_is_dialled_and_nothing_is_resolved(monkeypatch):
    """The name could resolve to the other listener by now."""

    def resolve(*args, **options):
        raise AssertionError("resolved")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with listening("127.0.0.2") as judged, listening("127.0.0.1", judged.getsockname()[1]) as other:
        stream, chosen = await call([V4[1]], judged.getsockname()[1])
        assert chosen == V4[1]
        judged.accept()[0].close()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
        await stream.aclose()


async def test_d9_a_refused_address_does_not_lead_to_another():
    with listening("127.0.0.1") as other:
        with pytest.raises(UpstreamConnectError) as caught:
            await call([V4[1]], other.getsockname()[1])
        assert (caught.value.reason, caught.value.status) == ("connection-refused", 502)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


async def test_d9_a_peer_that_is_not_the_judged_one_is_refused():
    """Whatever sits in between and rewrites addresses where the kernel can see it."""
    with listening() as server, socket.create_connection(server.getsockname()) as sock:
        port = server.getsockname()[1]
        check(sock, V4[0], port, peer=sock.getpeername())
        with pytest.raises(OSError, match="another address"):
            check(sock, V4[1], port, peer=sock.getpeername())
        with pytest.raises(OSError, match="another address"):
            check(sock, V4[0], port + 1, peer=sock.getpeername())


async def test_d4_a_connection_to_itself_is_refused():
    """TCP lets a socket connect to its own port; the bytes would come back like an upstream's."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError):
            check(sock, V4[0], sock.getsockname()[1], peer=sock.getpeername())


async def test_x12_a_black_hole_ends_with_the_time_for_one_address(patient_clock):
    with black_hole("127.0.0.1", free := free_port()):
        with pytest.raises(UpstreamConnectError) as caught:
            await call([V4[0]], free)
    assert (caught.value.reason, caught.value.status) == ("connect-timeout", 504)
    assert trio.current_time() == 10


async def test_x12_one_address_never_takes_more_than_all_may(patient_clock):
    with black_hole("127.0.0.1", free := free_port()):
        with pytest.raises(UpstreamConnectError):
            await call([V4[0]], free, total=3)
    assert trio.current_time() == 3


async def test_x12_a_black_hole_first_costs_a_moment_only(patient_clock):
    before = open_descriptors()
    with black_hole("127.0.0.1", free := free_port()), listening("127.0.0.2", free) as server:
        stream, chosen = await call(V4[:2], free)
        assert chosen == V4[1]
        assert trio.current_time() == 0.25
        server.accept()[0].close()
        await stream.aclose()
    assert open_descriptors() == before


async def test_x12_all_addresses_together_have_a_bound_and_few_are_tried_at_once(patient_clock, monkeypatch):
    """A name with a thousand black holes must not take a thousand descriptors."""
    port = free_port()
    most = 0
    before = open_descriptors()
    make = socket.socket

    def counted(*args, **options):
        nonlocal most
        sock = make(*args, **options)
        most = max(most, open_descriptors() - before)
        return sock

    with ExitStack() as stack:
        for address in V4:
            stack.enter_context(black_hole(str(address), port))
        before = open_descriptors()
        monkeypatch.setattr(socket, "socket", counted)
        with pytest.raises(UpstreamConnectError) as caught:
            await call(V4, port, total=15)
        assert open_descriptors() == before
    assert (caught.value.reason, caught.value.status) == ("connect-timeout", 504)
    assert trio.current_time() == 15
    assert most == 4


async def test_x13_a_failing_family_falls_back_to_the_other(patient_clock):
    with listening("127.0.0.1") as server:
        stream, chosen = await call([V6, V4[0]], server.getsockname()[1])
        assert chosen == V4[0]
        assert trio.current_time() < 0.25, "a refusal is news enough to go on at once"
        await stream.aclose()


async def test_x13_the_race_is_among_the_given_addresses_only():
    """``::1`` and ``127.0.0.1`` listen too, and are nobody's choice."""
    with listening("127.0.0.1") as first:
        port = first.getsockname()[1]
        with listening("::1", port) as second:
            with pytest.raises(UpstreamConnectError) as caught:
                await call(V4[1:4], port)
            assert caught.value.reason == "connection-refused"
            for server in (first, second):
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.accept()


def test_families_alternate_beginning_with_the_first():
    a, b, c = V4[:3]
    x, y = V6, IPv6Address("::2")
    assert _interleaved([a, b, c, x, y, a]) == [a, x, b, y, c]
    assert _interleaved([x, a, b]) == [x, a, b]


async def test_the_most_telling_of_several_failures_is_reported(patient_clock):
    with black_hole("127.0.0.1", free := free_port()):
        with pytest.raises(UpstreamConnectError) as caught:
            await call(V4[:2], free)
    assert caught.value.reason == "connection-refused"


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        (errno.ECONNREFUSED, "connection-refused", 502),
        (errno.ENETUNREACH, "host-unreachable", 502),
        (errno.EHOSTUNREACH, "host-unreachable", 502),
        (errno.ETIMEDOUT, "connect-timeout", 504),
        (errno.EPERM, "connect-failed", 502),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
async def test_each_failure_has_its_reason(monkeypatch, code, reason, status, number):
    before = open_descriptors()
    monkeypatch.setattr(socket.socket, "connect_ex", lambda sock, name: code)
    with pytest.raises(UpstreamConnectError) as caught:
        await call(V4[:number], 80)
    assert (caught.value.reason, caught.value.status) == (reason, status)
    assert open_descriptors() == before


@pytest.mark.parametrize("number", [1, 2])
async def test_x1_no_descriptors_left_is_a_limit_of_ours(monkeypatch, number):
    def none_left(*args, **options):
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(LimitError) as caught:
        await call(V4[:number], 80)
    assert caught.value.limit == "flows"


@pytest.mark.parametrize(
    ("addresses", "port"),
    [
        ([], 80),
        (V4[:1], 0),
        (V4[:1], 65536),
        ([IPv6Address("::ffff:127.0.0.1")], 80),
        ([IPv6Address("fe80::1%lo")], 80),
    ],
)
async def test_what_is_no_judged_address_is_not_dialled(addresses, port):
    """IPv4 in IPv6 clothing and scope ids are never judged as such, so they never get here."""
    with pytest.raises(ValueError):
        await call(addresses, port)


async def test_x9_cancelled_dials_leave_no_descriptor():
    await trio.sleep(0)
    before = open_descriptors()
    chance = random.Random(4)
    port = free_port()
    with black_hole("127.0.0.1", port), listening("127.0.0.2", port) as server:

        async def attempt(addresses, patience):
            with trio.move_on_after(patience), suppress(UpstreamConnectError):
                stream, _ = await call(addresses, port, stagger=0.01)
                await stream.aclose()

        for _ in range(5):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    addresses = chance.sample(V4[:4], chance.randint(1, 4))
                    nursery.start_soon(attempt, addresses, chance.uniform(0, 0.03))
        server.setblocking(False)
        while True:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                break
    assert open_descriptors() == before


async def test_a_dial_in_a_cancelled_scope_opens_nothing_that_stays():
    before = open_descriptors()
    with listening() as server, trio.CancelScope() as scope:
        scope.cancel()
        await call([V4[0]], server.getsockname()[1])
    assert scope.cancelled_caught
    assert open_descriptors() == before


async def test_both_may_connect_and_one_is_kept(monkeypatch):
    """The loser may be connected by the time that it is told to stop."""
    before = open_descriptors()
    both = trio.Event()
    waiting = 0

    async def wait_writable(sock):
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        await both.wait()

    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
    monkeypatch.setattr(sys.modules[dial.__module__], "_peer", lambda _sock: None)  # as if they were far away
    with listening("127.0.0.1") as first:
        port = first.getsockname()[1]
        with listening("127.0.0.2", port):
            stream, chosen = await call(V4[:2], port, stagger=0)
            assert waiting == 2
            assert stream.socket.getpeername()[0] == str(chosen)
            reset(stream)
    assert open_descriptors() == before


@pytest.mark.parametrize("there", [True, False])
async def test_an_answer_is_waited_for_only_while_there_is_none(monkeypatch, there):
    """Asking for the peer at once may find it there, as it does within one host, or not yet."""
    real = socket.socket.getpeername
    asked = []
    waited = []

    def getpeername(sock):
        asked.append(sock)
        if not there and len(asked) == 1:
            raise OSError(errno.ENOTCONN, "not connected")
        return real(sock)

    async def wait_writable(sock):
        waited.append(sock)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(socket.socket, "getpeername", getpeername)
    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
    with listening() as server:
        stream, _ = await call(V4[:1], server.getsockname()[1])
        reset(stream)
    assert len(waited) == (not there)


async def test_an_address_written_in_two_ways_is_one_address():
    """The C library writes ``::1.2.3.4`` where Python writes ``::102:304``."""

    class Socket:
        def getpeername(self):
            return ("::1.2.3.4", 443, 0, 0)

        def getsockname(self):
            return ("::1", 5, 0, 0)

        def setsockopt(self, *option):
            pass

    check(Socket(), IPv6Address("::102:304"), 443, peer=Socket().getpeername())
    with pytest.raises(OSError):
        check(Socket(), IPv6Address("::102:305"), 443, peer=Socket().getpeername())
    with pytest.raises(OSError):
        check(Socket(), IPv6Address("::102:304"), 444, peer=Socket().getpeername())


# What was begun elsewhere.


def begun_at(address, port):
    """Begin to connect, and know nothing of whether that is done."""
    return begin(address, port)[0]


@pytest.mark.parametrize("others", [0, 1])
async def test_what_was_begun_is_gone_on_with(others):
    """Not begun anew: one connection comes in, and the other address sees none."""
    with listening() as server, ExitStack() as stack:
        port = server.getsockname()[1]
        idle = [stack.enter_context(listening(str(V4[1 + index]), port)) for index in range(others)]
        sock = begun_at(V4[0], port)
        stream, chosen = await call([V4[0], *V4[1 : 1 + others]], port, begun=sock)
        assert (stream.socket, chosen) == (sock, V4[0])
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()
        for other in idle:
            other.setblocking(False)
            with suppress(BlockingIOError):
                other.accept()[0].close()
        await stream.aclose()


async def test_x12_what_was_begun_and_hangs_ends_with_the_time_for_one(patient_clock):
    before = open_descriptors()
    port = free_port()
    with black_hole("127.0.0.1", port):
        sock = begun_at(V4[0], port)
        with pytest.raises(UpstreamConnectError) as caught:
            await call([V4[0]], port, connect=3, begun=sock)
        assert (caught.value.reason, sock.fileno()) == ("connect-timeout", -1)
    assert trio.current_time() == 3
    assert open_descriptors() == before


async def test_what_was_begun_and_is_refused_leaves_the_others():
    with listening(str(V4[1])) as server:
        port = server.getsockname()[1]
        sock = begun_at(V4[0], port)
        stream, chosen = await call(V4[:2], port, begun=sock)
        assert (chosen, sock.fileno()) == (V4[1], -1)
        await stream.aclose()


async def test_what_was_begun_and_alone_is_refused_is_told():
    port = free_port()
    sock = begun_at(V4[0], port)
    with pytest.raises(UpstreamConnectError) as caught:
        await call([V4[0]], port, begun=sock)
    assert (caught.value.reason, sock.fileno()) == ("connection-refused", -1)


async def test_x12_what_was_begun_has_had_its_time_alone(patient_clock):
    """The next address is tried at once, beside it, and wins."""
    port = free_port()
    with black_hole("127.0.0.1", port), listening(str(V4[1]), port):
        sock = begun_at(V4[0], port)
        stream, chosen = await call(V4[:2], port, begun=sock, stagger=100)
        assert (chosen, sock.fileno()) == (V4[1], -1)
        assert trio.current_time() == 0
        await stream.aclose()


@pytest.mark.parametrize("addresses", [1, 2])
@pytest.mark.parametrize("early", [False, True])
async def test_x9_cancelled_or_refused_nothing_of_what_was_begun_stays_open(addresses, early):
    port = free_port()
    with ExitStack() as stack:
        for address in V4[:addresses]:
            stack.enter_context(black_hole(str(address), port))
        before = open_descriptors()
        sock = begun_at(V4[0], port)
        with trio.move_on_after(0 if early else 0.05) as scope:
            await call(V4[:addresses], port, begun=sock)
        assert scope.cancelled_caught
        assert sock.fileno() == -1
        assert open_descriptors() == before


async def test_begin_tells_whom_it_is_connected_to_and_check_believes_only_that():
    with listening() as server:
        port = server.getsockname()[1]
        sock, peer = begin(V4[0], port)
        with sock:
            assert peer == ("127.0.0.1", port)
            assert sock.gettimeout() == 0
            check(sock, V4[0], port, "127.0.0.1", peer)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for address, number in ((V4[1], port), (V4[0], port + 1)):
                with pytest.raises(OSError, match="another address"):
                    check(sock, address, number, str(address), peer)
                with pytest.raises(OSError, match="another address"):
                    check(sock, address, number)


def test_begin_that_fails_leaves_nothing(monkeypatch):
    before = open_descriptors()
    for code in (errno.ENETUNREACH, errno.ECONNREFUSED, errno.EADDRNOTAVAIL):
        monkeypatch.setattr(socket.socket, "connect_ex", lambda *_args, code=code: code)
        with pytest.raises(OSError) as caught:
            begin(V4[0], 443)
        assert caught.value.errno == code
    assert open_descriptors() == before
