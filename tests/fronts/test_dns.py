"""DNS over real sockets: datagrams, TCP in pieces, and the resolvers that programs use."""

import errno
import shutil
import socket
import struct
import subprocess
from contextlib import asynccontextmanager
from functools import partial

import dns.asyncresolver
import dns.flags
import dns.message
import dns.nameserver
import dns.rcode
import dns.resolver
import pytest
import trio
import trio.testing

from sbxproxy.dns import Forwarder
from sbxproxy.events import Problem
from sbxproxy.fronts.dns import MOST_QUERY, PIPELINE, serve_dns, serve_tcp, serve_udp
from sbxproxy.policy import Policy
from sbxproxy.settings import Limits
from support.dns import PUBLIC, PUBLIC_V6, make_desk, open_nameserver, reply, texts, why

NAME = "api.example.com"
LISTED = {"allow": [NAME, "*.wild.example.org"]}
HANG = 60


def wire(name=NAME, rdtype="A", **options) -> bytes:
    return dns.message.make_query(name, rdtype, **{"use_edns": 0, **options}).to_wire()


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2) + message for message in messages)


def bound(kind=socket.SOCK_DGRAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def serving(desk):
    """Serve *desk* on one port, over UDP and TCP; yields the port."""
    for _ in range(20):
        udp = bound()
        port = udp.getsockname()[1]
        try:
            (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
            break
        except OSError:  # somebody has it for TCP
            udp.close()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_dns, desk.answerer, udp=[udp], tcp=[listener]))
        yield port
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(port):
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", port))
        with trio.fail_after(HANG):
            yield sock


# -- UDP


async def test_datagrams_are_answered_to_whom_they_came_from():
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    async with serving(desk) as port, client_of(port) as one, client_of(port) as other:
        await one.send(wire())
        await other.send(wire("evil.example"))
        assert texts(dns.message.from_wire(await one.recv(999))) == [f"{NAME}. A {PUBLIC}"]
        assert dns.message.from_wire(await other.recv(999)).rcode() == dns.rcode.NXDOMAIN


async def test_r8_malformed_datagrams_end_nothing():
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    async with serving(desk) as port, client_of(port) as sock:
        for data in (b"", b"\0", b"\xff" * 999, bytes(60_000), wire()[:-1], wire() + b"x", b"\xc0\x0c" * 50):
            await sock.send(data)
        query = wire()
        await sock.send(query)
        while (await sock.recv(999))[:2] != query[:2]:
            pass


async def test_r8_a_datagram_longer_than_any_query_is_cut_and_so_an_error():
    desk = make_desk(LISTED)
    async with serving(desk) as port, client_of(port) as sock:
        await sock.send(wire() + bytes(MOST_QUERY))
        assert dns.message.from_wire(await sock.recv(999)).rcode() == dns.rcode.FORMERR


async def test_r12_a_stuck_lookup_holds_up_no_other_datagram():
    desk = make_desk(LISTED, {"stuck.wild.example.org": ..., NAME: [PUBLIC]})
    async with serving(desk) as port, client_of(port) as sock:
        await sock.send(wire("stuck.wild.example.org"))
        await sock.send(wire())
        assert texts(dns.message.from_wire(await sock.recv(999))) == [f"{NAME}. A {PUBLIC}"]


async def test_a_trio_socket_will_do_and_is_closed_in_the_end():
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    sock = trio.socket.from_stdlib_socket(bound())
    port = sock.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_udp, sock, desk.answerer)
        async with client_of(port) as client:
            await client.send(wire())
            await client.recv(999)
        nursery.cancel_scope.cancel()
    assert sock.fileno() == -1


class Flaky(socket.socket):
    """Fails in ways that a real socket may."""

    failures: list[OSError]

    def recvfrom(self, *args):
        if self.failures:
            raise self.failures.pop()
        return super().recvfrom(*args)


async def test_x1_a_passing_error_of_the_socket_ends_nothing_and_a_closed_one_is_told(monkeypatch):
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    Flaky.failures = [OSError(errno.ENOMEM, "no memory"), OSError(errno.ENETDOWN, "down")]
    monkeypatch.setattr("sbxproxy.fronts.dns.socket.socket", Flaky)
    sock = bound()
    async with client_of(sock.getsockname()[1]) as client:
        with pytest.RaisesGroup(OSError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_udp, sock, desk.answerer)
                await client.send(wire())
                assert await client.recv(999)
                assert Flaky.failures == []
                Flaky.failures = [OSError(errno.EBADF, "closed")]
                await client.send(wire())


# -- TCP


def memory(desk, nursery):
    near, far = trio.testing.memory_stream_pair()
    nursery.start_soon(serve_tcp, far, desk.answerer)
    return near


async def receive(stream, count):
    """Return *count* answers, in the order in which they came."""
    data, found = b"", []
    with trio.fail_after(HANG):
        while len(found) < count:
            more = await stream.receive_some()
            assert more, "the connection ended early"
            data += more
            while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2]):
                end = 2 + int.from_bytes(data[:2])
                found.append(dns.message.from_wire(data[2:end]))
                data = data[end:]
    assert data == b""
    return found


async def test_r8_tcp_messages_may_come_in_any_pieces():
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    data = framed(wire(), wire("evil.example"))
    for cut in range(1, len(data)):
        async with trio.open_nursery() as nursery:
            stream = memory(desk, nursery)
            await stream.send_all(data[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(data[cut:])
            codes = {answer.rcode() for answer in await receive(stream, 2)}
            assert codes == {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}
            await stream.aclose()


async def test_queries_may_be_sent_ahead_and_a_stuck_one_holds_up_none():
    desk = make_desk(LISTED, {NAME: [PUBLIC], "stuck.wild.example.org": ...})
    queries = [dns.message.make_query(NAME, "A") for _ in range(50)]
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)
        await stream.send_all(framed(wire("stuck.wild.example.org"), *(query.to_wire() for query in queries)))
        answers = await receive(stream, 50)
        assert sorted(answer.id for answer in answers) == sorted(query.id for query in queries)
        nursery.cancel_scope.cancel()


async def test_x5_of_one_connection_no_more_than_some_are_answered_at_once(autojump_clock):
    names = [f"n{n}.wild.example.org" for n in range(PIPELINE + 5)]
    desk = make_desk(LISTED, dict.fromkeys(names, ...), dns_lookups=1000, dns_lookup_rate=1000)
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)
        await stream.send_all(framed(*map(wire, names)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(desk.names.asked) == PIPELINE
        start = trio.current_time()
        answers = await receive(stream, len(names))
        assert trio.current_time() - start == pytest.approx(9.0)
        assert {answer.rcode() for answer in answers} == {dns.rcode.SERVFAIL}
        await stream.aclose()


async def test_answers_come_after_the_client_has_said_its_last_word():
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)
        await stream.send_all(framed(wire()))
        await stream.send_stream.aclose()
        assert texts((await receive(stream, 1))[0]) == [f"{NAME}. A {PUBLIC}"]
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("data", [b"", b"\0", framed(wire(id=1))[:-1]], ids=["nothing", "a byte", "all but a byte"])
async def test_x4_a_connection_without_a_whole_query_ends_in_time(autojump_clock, data):
    """One time for a whole message: a byte now and then is not enough."""
    desk = make_desk(LISTED)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)

        async def dribble():
            for byte in data:
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)

        nursery.start_soon(dribble) if len(data) < 5 else await stream.send_all(data)
        assert await stream.receive_some() == b""
        assert trio.current_time() - start == pytest.approx(10.0)


async def test_x4_time_runs_anew_after_each_query(autojump_clock):
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)
        for _ in range(3):
            await trio.sleep(9)
            await stream.send_all(framed(wire()))
            await receive(stream, 1)
        start = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - start == pytest.approx(10.0)


async def test_r8_a_length_that_no_query_has_ends_the_connection():
    desk = make_desk(LISTED)
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)
        await stream.send_all(struct.pack("!H", MOST_QUERY + 1))
        with trio.fail_after(HANG):
            assert await stream.receive_some() == b""


async def test_r8_nonsense_over_tcp_is_answered_or_passed_over():
    desk = make_desk(LISTED, {NAME: [PUBLIC]})
    async with trio.open_nursery() as nursery:
        stream = memory(desk, nursery)
        await stream.send_all(framed(b"", b"\0" * 5, wire()[:-1], b"\0\0\x81\x80" + bytes(8), wire()))
        assert {answer.rcode() for answer in await receive(stream, 2)} == {dns.rcode.FORMERR, dns.rcode.NOERROR}
        await stream.aclose()


async def test_x5_a_client_that_takes_no_answers_loses_its_connection(autojump_clock):
    desk = make_desk("deny-all")
    start = trio.current_time()
    near, far = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_tcp, far, desk.answerer)
        await near.send_all(framed(wire()))
        await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() - start == pytest.approx(10.0)
    assert not [event for event in desk.events if isinstance(event, Problem)]


async def test_x9_a_client_that_resets_is_no_problem_of_anybody():
    desk = make_desk(LISTED, {NAME: [PUBLIC], "stuck.wild.example.org": ...}, dns_answer=0.5)
    async with serving(desk) as port:
        for data in (framed(wire("stuck.wild.example.org"), wire("x.wild.example.org")), b"\0"):
            with socket.create_connection(("127.0.0.1", port)) as rude:
                rude.sendall(data)
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(framed(wire()))
            assert texts((await receive(stream, 1))[0])
        await trio.sleep(0.7)
    assert not [event for event in desk.events if isinstance(event, Problem)]


async def test_l9_a_stream_that_raises_what_no_stream_may_ends_one_connection():
    class Odd(trio.abc.Stream):
        async def receive_some(self, max_bytes=None):
            raise RuntimeError("secret")

        async def send_all(self, data):
            raise RuntimeError

        async def wait_send_all_might_not_block(self):
            raise RuntimeError

        async def aclose(self):
            pass

    desk = make_desk(LISTED)
    await serve_tcp(Odd(), desk.answerer)
    assert [event.detail for event in desk.events] == ["a DNS connection failed with RuntimeError"]


async def test_x1_connections_have_a_bound():
    desk = make_desk(LISTED, {NAME: [PUBLIC]}, dns_connections=2)
    async with serving(desk) as port:
        first = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        for stream in first:
            await stream.send_all(framed(wire()))
            await receive(stream, 1)
        async with await trio.open_tcp_stream("127.0.0.1", port) as third:
            await third.send_all(framed(wire()))
            with trio.move_on_after(0.2) as scope:
                await third.receive_some()
            assert scope.cancelled_caught
            await first[0].aclose()
            assert texts((await receive(third, 1))[0])
        await first[1].aclose()


# -- real resolvers


@asynccontextmanager
async def world(policy, behave=None, **options):
    """A sandbox's DNS with a name server behind it that counts."""

    def zone(query, over_tcp):
        name = query.question[0].name.to_text()
        match query.question[0].rdtype.name:
            case "TXT":
                return reply(query, *(f'{name} 60 TXT "{n:0100}"' for n in range(20))) if over_tcp else truncate(query)
            case "HTTPS":
                return reply(query, f'{name} 60 HTTPS 1 . alpn="h3,h2"')
            case "CNAME":
                return reply(query, f"{name} 60 CNAME a.wild.example.org.")
        return reply(query)

    def truncate(query):
        message = reply(query)
        message.flags |= dns.flags.TC
        return message

    async with open_nameserver(behave or zone) as server:
        known = {NAME: [PUBLIC, PUBLIC_V6], "many.wild.example.org": [f"93.184.{n}.1" for n in range(100)]}
        desk = make_desk(policy, known, forwarder=Forwarder([server.address], limits=Limits(dns_answer=10)), **options)
        async with serving(desk) as port:
            yield desk, port, server


def dig(port, *words) -> str:
    command = ["dig", "@127.0.0.1", "-p", str(port), "+tries=1", "+time=20", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True).stdout


needs_dig = pytest.mark.skipif(shutil.which("dig") is None, reason="dig (bind9-dnsutils) is not installed")


@needs_dig
@pytest.mark.real
async def test_r1_r3_r6_dig_sees_what_is_allowed():
    async with world(LISTED) as (_desk, port, server):

        async def ask(*words):
            return await trio.to_thread.run_sync(dig, port, *words)

        assert (await ask("+short", NAME)).split() == [PUBLIC]
        assert (await ask("+short", "AAAA", NAME)).split() == [PUBLIC_V6]
        assert (await ask("+short", "+tcp", NAME)).split() == [PUBLIC]
        assert await ask("+short", "HTTPS", NAME) == '1 . alpn="h2"\n'
        assert len((await ask("+short", "TXT", NAME)).splitlines()) == 20
        assert len((await ask("+short", "+noedns", "many.wild.example.org")).splitlines()) == 100
        denied = await ask("evil.example")
        assert "status: NXDOMAIN" in denied
        assert "EDE: 15 (Blocked): (domain-not-allowed)" in denied
        assert "AUTHORITY: 0" in denied
        assert "WARNING" not in denied.replace("WARNING: recursion", "")
        ancestor = await ask("example.com")
        assert "status: NOERROR" in ancestor
        assert "ANSWER: 0" in ancestor
        assert "status: REFUSED" in await ask("ANY", "+notcp", NAME)
        assert "status: REFUSED" in await ask("version.bind", "CH", "TXT")
        assert "status: NOTIMP" in await ask("+opcode=status", NAME)
        assert "status: BADVERS" in await ask("+edns=5", "+noednsneg", NAME)
        assert "Transfer failed" in await ask("AXFR", NAME)
        assert {name for name, _ in server.asked} == {f"{NAME}."}


@needs_dig
@pytest.mark.real
async def test_r1_dig_gets_nothing_out_under_deny_all():
    async with world("deny-all") as (desk, port, server):
        for words in (
            (NAME,),
            ("TXT", "secret.evil.example"),
            ("+tcp", "NULL", "x.evil.example"),
            ("-x", "10.0.0.1"),
            ("NS", "."),
        ):
            assert "status: NXDOMAIN" in await trio.to_thread.run_sync(dig, port, *words)
        assert (server.asked, desk.names.asked) == ([], [])


async def test_a_stub_resolver_is_served_and_follows_a_live_change():
    async with world(LISTED) as (desk, port, server):
        stub = dns.asyncresolver.Resolver(configure=False)
        stub.nameservers = [dns.nameserver.Do53Nameserver("127.0.0.1", port)]
        stub.lifetime = 20.0
        assert [str(rdata) for rdata in await stub.resolve(NAME, "A", search=False)] == [PUBLIC]
        desk.policy = Policy.parse({"allow": ["other.example"]})
        with pytest.raises(dns.resolver.NXDOMAIN):
            await stub.resolve(NAME, "A", search=False)
        desk.policy = Policy.parse(LISTED)
        assert [str(rdata) for rdata in await stub.resolve(NAME, "CNAME", search=False)] == ["a.wild.example.org."]
        assert len(await stub.resolve(NAME, "TXT", search=False)) == 20
        with pytest.raises(dns.resolver.NoAnswer):
            await stub.resolve(NAME, "MX", search=False)
        with pytest.raises(dns.resolver.NoAnswer):
            await stub.resolve("example.com", "A", search=False)
        assert server.asked[0] == (f"{NAME}.", "CNAME")


async def test_r9_forged_answers_reach_no_program():
    def blast(query, over_tcp):
        forged = [reply(query, f'{query.question[0].name} 60 TXT "forged"') for _ in range(20)]
        for n, message in enumerate(forged):
            message.id = query.id ^ (1 << n % 16)
        return [*forged, reply(query, f'{query.question[0].name} 60 TXT "true"')]

    async with world(LISTED, blast) as (_, port, _server), client_of(port) as sock:
        await sock.send(wire(rdtype="TXT"))
        assert texts(dns.message.from_wire(await sock.recv(999))) == [f'{NAME}. TXT "true"']


async def test_r11_a_flood_of_names_leaves_nothing_behind():
    async with world(LISTED, dns_rate=10**6, dns_lookup_rate=10**6) as (desk, port, server), client_of(port) as sock:
        for n in range(3000):
            await sock.send(wire(f"n{n}.evil.example"))
            answer = dns.message.from_wire(await sock.recv(999))
            assert why(answer) == (15, "domain-not-allowed")
        assert (server.asked, desk.names.asked, len(desk.answerer._ready)) == ([], [], 0)
