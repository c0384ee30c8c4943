"""The stub resolver: real sockets on loopback, and name servers that don't behave."""

import socket
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from sbxproxy.dns.forward import MOST_ANSWER, MOST_IGNORED, NEGATIVE_TTL, Forwarder
from sbxproxy.dns.message import Rcode
from sbxproxy.errors import UpstreamResolveError
from sbxproxy.settings import Limits
from support.dns import open_nameserver, reply

NAME = b"\x07example\x03com\0"
RECORD = 'example.com. 60 TXT "yes"'
TIME = 20.0
"""Seconds, for tests whose answers come."""


def good(query, over_tcp=False):
    return reply(query, RECORD)


def forwarder(nameservers, *, time, cache=100):
    return Forwarder(nameservers, limits=Limits(dns_answer=time, dns_cache=cache))


async def ask(asked, name=NAME, rdtype=16):
    return (await asked.ask(name, rdtype))[0]


def data(answer):
    return [record.rdata for record in answer.records]


async def test_a_question_is_asked_and_its_answer_kept():
    async with open_nameserver(good) as server:
        asking = forwarder([server.address], time=TIME)
        assert data(await ask(asking)) == [b"\x03yes"]
        assert data(await ask(asking)) == [b"\x03yes"]
        assert server.asked == [("example.com.", "TXT")]
        sent = dns.message.from_wire(server.raw[0])
    assert sent.flags == dns.flags.RD
    assert (sent.edns, sent.payload, sent.ednsflags) == (0, 1232, 0)


async def test_r9_every_question_has_a_port_and_an_id_of_its_own():
    async with open_nameserver(good) as server:
        asking = forwarder([server.address], time=TIME)
        for n in range(20):
            await ask(asking, bytes([2]) + b"%02d" % n + NAME)
        ids = {raw[:2] for raw in server.raw}
        ports = {port for _, port in server.clients}
    assert len(ids) >= 18
    assert len(ports) >= 15
    assert sorted(ports) != list(range(min(ports), min(ports) + len(ports)))


def wrong(query, n):
    """Answers that look right, all but for one thing."""
    other = reply(query, 'example.com. 60 TXT "forged"')
    match n % 5:
        case 0:
            other.id ^= 1 + n
        case 1:
            other.question[0].name = dns.name.from_text("evil.example.")
        case 2:
            other.question[0].rdtype = dns.rdatatype.A
        case 3:
            other.flags &= ~dns.flags.QR
        case 4:
            other.question.clear()
    return other


async def test_r9_what_answers_another_question_is_waited_past():
    async with open_nameserver(lambda query, _: [*(wrong(query, n) for n in range(10)), b"", b"short", good(query)]) as server:
        assert data(await ask(forwarder([server.address], time=TIME))) == [b"\x03yes"]
        assert len(server.asked) == 1


async def test_r9_under_a_hail_of_forgeries_the_question_is_put_over_tcp():
    def blast(query, over_tcp):
        return good(query) if over_tcp else [wrong(query, 5 * n) for n in range(MOST_IGNORED + 20)]

    async with open_nameserver(blast) as server:
        assert data(await ask(forwarder([server.address], time=TIME))) == [b"\x03yes"]
        assert server.over_tcp == 1


async def test_r9_datagrams_from_elsewhere_are_not_even_seen():
    async def forge(server, elsewhere):
        while not server.clients:
            await trio.sleep(0.001)
        forged = reply(dns.message.from_wire(server.raw[0]), 'example.com. 60 TXT "forged"').to_wire()
        await elsewhere.sendto(forged, server.clients[0])
        sent.set()

    sent = trio.Event()
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as elsewhere:
        await elsewhere.bind(("127.0.0.1", 0))
        async with open_nameserver(lambda query, over_tcp: None) as server, trio.open_nursery() as nursery:
            nursery.start_soon(forge, server, elsewhere)
            with pytest.raises(UpstreamResolveError):
                await ask(forwarder([server.address], time=3.0))
            assert sent.is_set()


async def test_tcp_is_never_taken_at_its_word_either():
    async with open_nameserver(lambda query, over_tcp: wrong(query, 1) if over_tcp else truncated(query)) as server:
        with pytest.raises(UpstreamResolveError) as caught:
            await ask(forwarder([server.address], time=TIME))
    assert caught.value.reason == "resolver-failed"


def truncated(query):
    message = reply(query)
    message.flags |= dns.flags.TC
    return message


async def test_a_truncated_answer_is_fetched_over_tcp():
    async with open_nameserver(lambda query, over_tcp: good(query) if over_tcp else truncated(query)) as server:
        assert data(await ask(forwarder([server.address], time=TIME))) == [b"\x03yes"]
        assert server.over_tcp == 1


async def test_r8_an_endless_answer_is_not_read():
    big = bytes(MOST_ANSWER + 1)
    async with open_nameserver(lambda query, over_tcp: big if over_tcp else truncated(query)) as server:
        with pytest.raises(UpstreamResolveError):
            await ask(forwarder([server.address], time=TIME))


async def test_r8_a_tcp_answer_that_ends_early_is_none():
    async with open_nameserver(lambda query, over_tcp: None if over_tcp else truncated(query)) as server:
        with pytest.raises(UpstreamResolveError):
            await ask(forwarder([server.address], time=TIME))
        assert server.over_tcp == 2


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR"])
async def test_r12_an_error_is_tried_once_more_at_the_next_server_without_edns(rcode):
    async with (
        open_nameserver(lambda query, _: reply(query, rcode=dns.rcode.from_text(rcode))) as bad,
        open_nameserver(good) as ok,
    ):
        assert data(await ask(forwarder([bad.address, ok.address], time=TIME))) == [b"\x03yes"]
        assert (len(bad.asked), len(ok.asked)) == (1, 1)
        assert dns.message.from_wire(ok.raw[0]).edns == -1


async def test_r12_a_dead_server_is_passed_over():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:  # takes datagrams, and never answers
        dead.bind(("127.0.0.1", 0))
        silent = ip_address("127.0.0.1"), dead.getsockname()[1]
        async with open_nameserver(good) as server:
            assert data(await ask(forwarder([silent, server.address], time=4.0))) == [b"\x03yes"]


async def test_r12_with_all_dead_there_are_two_tries_and_one_deadline(patient_clock):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        start = trio.current_time()
        with pytest.raises(UpstreamResolveError) as caught:
            await ask(forwarder([(ip_address("127.0.0.1"), dead.getsockname()[1])], time=4.5))
        assert trio.current_time() - start == pytest.approx(4.5, abs=0.3)
        dead.setblocking(False)
        assert len(dead.recv(999)) > len(dead.recv(999))  # the second goes without EDNS
        with pytest.raises(BlockingIOError):
            dead.recv(999)
    assert (caught.value.reason, caught.value.status) == ("resolve-timeout", 504)


async def test_r12_a_closed_port_is_told_at_once(patient_clock):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        where = ip_address("127.0.0.1"), closed.getsockname()[1]
    start = trio.current_time()
    with pytest.raises(UpstreamResolveError) as caught:
        await ask(forwarder([where], time=60.0))
    assert caught.value.reason == "resolver-failed"
    assert trio.current_time() - start < 1


async def test_r8_a_malformed_answer_is_none():
    async with open_nameserver(lambda query, _: good(query).to_wire()[:-3]) as server:
        with pytest.raises(UpstreamResolveError) as caught:
            await ask(forwarder([server.address], time=TIME))
        assert len(server.asked) == 2
    assert caught.value.reason == "resolver-failed"


async def test_r5_answers_are_kept_for_their_lifetime_and_denials_shortly(patient_clock):
    def behave(query, _):
        name = query.question[0].name.to_text()
        if name.startswith("no."):
            return reply(query, rcode=dns.rcode.NXDOMAIN)
        if name.startswith("alias."):
            return reply(query, f"{name} 60 CNAME nowhere.example.")
        return reply(query, RECORD)

    async with open_nameserver(behave) as server:
        asking = forwarder([server.address], time=TIME)
        for name, kept in ((NAME, 60), (b"\x02no" + NAME, NEGATIVE_TTL), (b"\x05alias" + NAME, NEGATIVE_TTL)):
            await ask(asking, name)
            start = trio.current_time()
            server.asked.clear()
            await trio.sleep_until(start + kept - 1)
            await ask(asking, name)
            assert server.asked == []
            await trio.sleep_until(start + kept)
            await ask(asking, name)
            assert len(server.asked) == 1
        assert (await ask(asking, b"\x02no" + NAME)).rcode is Rcode.NXDOMAIN


async def test_r11_the_cache_is_bounded():
    async with open_nameserver(lambda query, _: reply(query, f'{query.question[0].name} 60 TXT "x"')) as server:
        asking = forwarder([server.address], time=TIME, cache=3)
        for n in range(10):
            await ask(asking, b"\x01%d" % n + NAME)
        server.asked.clear()
        for n in (9, 8, 7, 0):
            await ask(asking, b"\x01%d" % n + NAME)
        assert server.asked == [("0.example.com.", "TXT")]


async def test_r11_great_answers_are_not_kept():
    many = [f'example.com. 60 TXT "{n:0200}"' for n in range(40)]
    async with open_nameserver(lambda query, over_tcp: reply(query, *many) if over_tcp else truncated(query)) as server:
        asking = forwarder([server.address], time=TIME)
        for _ in range(2):
            assert len((await ask(asking)).records) == 40
        assert server.over_tcp == 2


async def test_an_answer_in_another_case_is_one():
    def shout(query, _):
        message = reply(query, RECORD)
        message.question[0].name = dns.name.from_text("EXAMPLE.com.")
        return message

    async with open_nameserver(shout) as server:
        assert data(await ask(forwarder([server.address], time=TIME))) == [b"\x03yes"]


async def test_the_servers_may_change():
    where = []
    asking = forwarder(lambda: where, time=TIME)
    async with open_nameserver(good) as server:
        where.append(server.address)
        assert data(await ask(asking)) == [b"\x03yes"]


def test_without_servers_the_hosts_own_are_asked():
    assert all(port == 53 for _, port in Forwarder()._nameservers())


async def test_it_can_be_cancelled_and_leaves_nothing_open():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        with trio.move_on_after(0.05) as scope:
            await ask(forwarder([(ip_address("127.0.0.1"), dead.getsockname()[1])], time=TIME))
    assert scope.cancelled_caught
