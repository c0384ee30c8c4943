"""From first bytes to a dial or a denial: what a connection may and may not become."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sbxproxy import Limits, Policy, PolicyError
from sbxproxy.testing.hello import client_hello, hello_message
from sbxproxy.testing.hello import encode_record as record
from sbxproxy.testing.hello import encode_records as records
from support.talk import exactly, until_end
from support.wire_box import ALERT_ACCESS_DENIED, open_box

GOOD, EVIL = "good.example.com", "evil.example.net"
GOOD_ADDRESS, EVIL_ADDRESS = "1.1.0.1", "1.1.0.66"
NAMES = {GOOD: GOOD_ADDRESS, EVIL: EVIL_ADDRESS}
ALLOW_GOOD = {"allow": [GOOD]}


async def test_t1_the_address_that_the_client_chose_is_ignored() -> None:
    """An allowed server name sent to an attacker's address ends at the server of that name."""
    hello = client_hello(GOOD)
    async with open_box(ALLOW_GOOD, NAMES) as box:
        stream = box.open(EVIL_ADDRESS)
        await stream.send_all(hello)
        await box.settle()
        assert box.wires.dialled == [((GOOD_ADDRESS,), 443)]
        assert await box.wires.upstreams[0].receive_some() == hello


@pytest.mark.parametrize(("asked", "named"), [(GOOD, EVIL), (EVIL, GOOD)])
async def test_t2_both_names_must_be_the_same(asked: str, named: str) -> None:
    async with open_box(ALLOW_GOOD, NAMES) as box:
        answer = await box.say(asked, client_hello(named))
        assert box.wires.upstreams == []
        assert answer in {ALERT_ACCESS_DENIED, b""}
        assert box.closed[0].reason == ("sni-mismatch" if asked == GOOD else "domain-not-allowed")


async def test_t2_two_allowed_names_may_not_be_mixed() -> None:
    """Each is allowed, but what was asked for is not what is wanted."""
    async with open_box({"allow": [GOOD, EVIL]}, NAMES) as box:
        assert await box.say(GOOD, client_hello(EVIL)) == ALERT_ACCESS_DENIED
        assert box.wires.dialled == []
        assert box.closed[0].reason == "sni-mismatch"


async def test_t5_no_server_name_is_denied() -> None:
    async with open_box(ALLOW_GOOD, NAMES) as box:
        assert await box.say(GOOD_ADDRESS, client_hello(None)) == ALERT_ACCESS_DENIED
        assert await box.say(GOOD, client_hello(None)) == ALERT_ACCESS_DENIED
        assert [event.reason for event in box.closed] == ["no-sni", "no-sni"]
        assert box.wires.dialled == []


async def test_t7_a_hello_may_come_a_byte_at_a_time() -> None:
    hello = client_hello(GOOD)
    async with open_box(ALLOW_GOOD, NAMES) as box:
        stream = box.open(EVIL_ADDRESS)
        for index in range(len(hello)):
            assert box.wires.dialled == []
            await stream.send_all(hello[index : index + 1])
            await box.settle()
        assert await exactly(box.wires.upstreams[0], len(hello)) == hello


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_t8_a_hello_may_come_in_many_records(size: int) -> None:
    """The name is judged, wherever records cut it, and the records go on as they came."""
    async with open_box(ALLOW_GOOD, NAMES) as box:
        hello = client_hello(GOOD, record_size=size)
        stream = box.open(EVIL_ADDRESS)
        await stream.send_all(hello)
        await box.settle()
        assert await exactly(box.wires.upstreams[0], len(hello)) == hello
        assert await box.say(GOOD_ADDRESS, client_hello(EVIL, record_size=size)) == ALERT_ACCESS_DENIED
        assert len(box.wires.dialled) == 1


@pytest.mark.parametrize(
    ("junk", "reason"),
    [
        (b"\x16\x03\x01" + b"\x00\x20" + b"junk" * 8, "bad-client-hello"),
        (b"\x16\x03\x01\xff\xff" + b"\x01" * 40, "bad-client-hello"),
        (record(hello_message(GOOD)[:40]) + record(b"x" * 9, kind=23), "bad-client-hello"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "protocol-not-allowed"),
        (b"\x00\x01\x02\x03" * 9, "protocol-not-allowed"),
        (b"GET / HTTP/1.1\r\nHost: good.example.com\r\n\r\n", "plain-http"),
    ],
)
@pytest.mark.parametrize("target", [GOOD, GOOD_ADDRESS])
async def test_t16_what_is_not_tls_is_denied_not_taken_for_plain_text(junk: bytes, reason: str, target: str) -> None:
    async with open_box(ALLOW_GOOD, NAMES) as box:
        await box.say(target, junk)
        assert box.closed[0].reason == reason
        assert box.closed[0].ended in {"denied", "reset"}
        assert box.wires.dialled == []


async def test_t17_a_server_that_speaks_first_is_heard_at_once_in_a_range(autojump_clock: trio.testing.MockClock) -> None:
    """No waiting for a client that waits for its server, also while rules could still call for inspection."""
    rules = {"allow": {GOOD: [{"transform": [{"headers": {"x": "y"}}]}]}, "subnets": {"allow": ["1.1.0.0/16"]}}
    for policy in ({"subnets": {"allow": ["1.1.0.0/16"]}}, rules, "allow-all"):
        async with open_box(policy, NAMES) as box:
            began = trio.current_time()
            stream = box.open(EVIL_ADDRESS, 22)
            await box.settle()
            await box.wires.upstreams[0].send_all(b"SSH-2.0-server\r\n")
            assert await stream.receive_some() == b"SSH-2.0-server\r\n"
            await stream.send_all(client_hello(GOOD))
            await box.settle()
            assert await box.wires.upstreams[0].receive_some() == client_hello(GOOD)
            assert trio.current_time() == began
            assert box.wires.dialled == [((EVIL_ADDRESS,), 22)]


@pytest.mark.parametrize("target", [GOOD, GOOD_ADDRESS])
async def test_t17_a_silent_client_is_closed_at_the_deadline(target: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_box(ALLOW_GOOD, NAMES, limits=Limits(first_bytes=8)) as box:
        began = trio.current_time()
        await until_end(box.open(target))
        assert trio.current_time() - began == pytest.approx(8, abs=1.1)
        await trio.sleep(2)
        assert box.closed[0].reason == "first-bytes-timeout"
        assert box.wires.dialled == []
        assert box.sandbox.flows == ()


async def test_t18_one_byte_a_second_does_not_push_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with open_box(ALLOW_GOOD, NAMES, limits=Limits(first_bytes=10)) as box:
        stream = box.open(GOOD_ADDRESS)
        began = trio.current_time()
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            for byte in client_hello(GOOD):
                await stream.send_all(bytes((byte,)))
                await trio.sleep(1)
        assert trio.current_time() - began < 13
        assert box.closed[0].reason == "first-bytes-timeout"
        assert box.wires.dialled == []


@pytest.mark.parametrize("port", [22, 25, 6379, 8443])
async def test_t20_a_domain_is_allowed_at_any_port_for_tls_alone(port: int) -> None:
    async with open_box(ALLOW_GOOD, NAMES) as box:
        stream = box.open(EVIL_ADDRESS, port)
        await stream.send_all(client_hello(GOOD))
        await box.settle()
        assert box.wires.dialled == [((GOOD_ADDRESS,), port)]
        await box.say(GOOD_ADDRESS, b"*1\r\n$4\r\nPING\r\n", port)
        assert box.closed[-1].reason == "protocol-not-allowed"
        assert len(box.wires.dialled) == 1


def test_t20_a_port_in_a_domain_is_an_error_and_never_ignored() -> None:
    with pytest.raises(PolicyError):
        Policy.parse({"allow": ["example.com:443"]})


# -- addresses


@pytest.mark.parametrize(
    ("answer", "private", "dialled"),
    [
        (["10.0.0.1"], [], None),
        (["127.0.0.1"], [], None),
        (["169.254.169.254"], [], None),
        (["::ffff:10.0.0.1"], [], None),
        (["64:ff9b::a00:1"], [], None),
        (["10.0.0.1", "1.1.0.9"], [], ("1.1.0.9",)),
        (["1.1.0.9", "fe80::1", "1.1.0.8"], [], ("1.1.0.9", "1.1.0.8")),
        (["10.0.0.1", "10.0.1.1"], ["10.0.1.0/24"], ("10.0.1.1",)),
    ],
)
async def test_d10_d11_only_permitted_answers_are_dialled(
    answer: list[str], private: list[str], dialled: tuple[str, ...] | None
) -> None:
    """An allowed name that points into a private network is denied; of a mixed answer the bad part is dropped."""
    async with open_box(ALLOW_GOOD, {GOOD: [answer]}, private=private) as box:
        if dialled is None:
            await box.say(GOOD, client_hello(GOOD))
            assert box.closed[0].reason == "private-address"
            assert box.wires.dialled == []
        else:
            await box.open(GOOD).send_all(client_hello(GOOD))
            await box.settle()
            assert box.wires.dialled == [(dialled, 443)]


@pytest.mark.parametrize("target", [GOOD, EVIL_ADDRESS])
async def test_d9_a_name_is_looked_up_once(target: str) -> None:
    """What was judged is what is dialled: a second look-up could give another answer."""
    async with open_box(ALLOW_GOOD, {GOOD: [[GOOD_ADDRESS], ["127.0.0.1"]]}) as box:
        await box.open(target).send_all(client_hello(GOOD))
        await box.settle()
        assert box.wires.queries == [GOOD]
        assert box.wires.dialled == [((GOOD_ADDRESS,), 443)]


@pytest.mark.parametrize("connected_to", ["10.0.0.1", "127.0.0.1", "169.254.169.254"])
@pytest.mark.parametrize("policy", [ALLOW_GOOD, "allow-all"])
async def test_d9_the_address_that_was_connected_is_judged_once_more(connected_to: str, policy: object) -> None:
    """Whatever a dialer does, no byte goes to an address that would be denied."""
    async with open_box(policy, NAMES) as box:
        box.wires.connected_to = connected_to
        await box.say(GOOD, client_hello(GOOD))
        assert [(await until_end(upstream))[0] for upstream in box.wires.upstreams] == [b""]
        assert box.closed[0].decision == "deny"
        assert box.closed[0].bytes_up == 0


@pytest.mark.parametrize("mode", ["domain", "range", "allow-domains"])
async def test_d8_a_denied_range_beats_what_is_allowed(mode: str) -> None:
    deny = {"deny": ["1.1.0.0/24"]}
    policy = {
        "domain": {"allow": [GOOD], "subnets": deny},
        "allow-domains": {"allow": ["*"], "subnets": deny},
        "range": {"subnets": {"allow": ["1.1.0.0/16"], **deny}},
    }[mode]
    async with open_box(policy, NAMES) as box:
        await box.say(GOOD, client_hello(GOOD))
        await box.say(GOOD_ADDRESS, client_hello(GOOD))
        assert {event.reason for event in box.closed} == {"address-denied"}
        assert box.wires.dialled == []


@pytest.mark.parametrize("target", ["169.254.169.254", "10.0.0.1", "127.0.0.1", "100.64.0.1", "::1", "fd00:ec2::254", "0.0.0.0"])
async def test_d12_allow_all_is_the_public_internet_only(target: str) -> None:
    async with open_box("allow-all", NAMES) as box:
        await box.say(target, client_hello(GOOD), 80)
        assert box.closed[0].reason == "private-address"
        assert box.wires.dialled == []


async def test_d12_what_the_operator_closed_stays_closed_under_allow_all() -> None:
    async with open_box("allow-all", NAMES, never=["1.1.0.0/24"]) as box:
        await box.say(GOOD_ADDRESS, client_hello(GOOD))
        assert box.closed[0].reason == "address-denied"
        assert box.wires.dialled == []


@pytest.mark.parametrize("name", [None, EVIL, "127.0.0.1"])
async def test_d14_tls_to_an_address_passes_by_range_whatever_its_server_name(name: str | None) -> None:
    async with open_box({"subnets": {"allow": [f"{EVIL_ADDRESS}/32"]}}, NAMES) as box:
        await box.open(EVIL_ADDRESS).send_all(client_hello(name))
        await box.settle()
        assert box.wires.dialled == [((EVIL_ADDRESS,), 443)]
        await box.say(GOOD_ADDRESS, client_hello(name))
        assert box.closed[-1].decision == "deny"
        assert len(box.wires.dialled) == 1


async def test_n10_an_address_as_server_name_matches_no_domain() -> None:
    async with open_box({"allow": ["*"]}, NAMES) as box:
        assert await box.say(GOOD_ADDRESS, client_hello("127.0.0.1")) == ALERT_ACCESS_DENIED
        assert box.wires.dialled == []


@pytest.mark.parametrize(
    "name", [b"localhost\0.example.com", b"a\r\nX: y.example.com", b"b c.example.com", b"\xc3\xa9.example.com"]
)
async def test_n7_a_name_with_odd_bytes_is_never_looked_up(name: bytes) -> None:
    """The C library's resolver ends a name at its first NUL: what was judged would not be what is looked up."""
    async with open_box({"allow": ["*"]}, NAMES) as box:
        assert await box.say(GOOD_ADDRESS, client_hello(name)) == ALERT_ACCESS_DENIED
        assert box.wires.queries == []
        assert box.wires.dialled == []
        assert b"\n" not in repr(box.closed[0]).encode()


async def test_r1_a_name_that_is_not_allowed_is_not_even_looked_up() -> None:
    """A query would carry out whatever its labels spell."""
    async with open_box(ALLOW_GOOD, NAMES) as box:
        await box.say("key123.evil.example.net", client_hello("key123.evil.example.net"))
        await box.say(EVIL_ADDRESS, client_hello("key123.evil.example.net"))
        assert box.wires.queries == []
        assert [event.reason for event in box.closed] == ["domain-not-allowed"] * 2


async def test_t10_a_hello_beyond_the_limit_is_denied() -> None:
    async with open_box(ALLOW_GOOD, NAMES, limits=Limits(client_hello=4096)) as box:
        hello = client_hello(GOOD, padding=3000)
        await box.open(EVIL_ADDRESS).send_all(hello)
        await box.settle()
        assert await exactly(box.wires.upstreams[0], len(hello)) == hello
        await box.say(GOOD_ADDRESS, client_hello(GOOD, padding=9000))
        assert box.closed[-1].decision == "deny"
        assert len(box.wires.dialled) == 1


async def test_held_first_bytes_are_bounded_for_all_flows_together() -> None:
    """Thousands of half-sent hellos are refused before they add up, and what they held is given back."""
    limits = Limits(buffered_bytes_per_sandbox=4000)
    hello = records(hello_message(GOOD, padding=1500))
    async with open_box(ALLOW_GOOD, NAMES, limits=limits) as box:
        waiting = [box.open(EVIL_ADDRESS) for _ in range(2)]
        for stream in waiting:
            await stream.send_all(hello[:-1])
        await box.settle()
        await box.say(EVIL_ADDRESS, hello)
        assert box.closed[0].reason == "limit"
        for stream in waiting:
            await stream.aclose()
        await box.settle()
        await box.open(EVIL_ADDRESS).send_all(hello)
        await box.settle()
        assert len(box.wires.dialled) == 1


async def test_a_relay_under_way_no_longer_counts_against_that_bound() -> None:
    hello = client_hello(GOOD, padding=1500)
    async with open_box(ALLOW_GOOD, NAMES, limits=Limits(buffered_bytes_per_sandbox=2000)) as box:
        for count in range(1, 5):
            await box.open(EVIL_ADDRESS).send_all(hello)
            await box.settle()
            assert len(box.wires.dialled) == count
        assert len(box.sandbox.flows) == 4


async def test_a_relay_carries_both_ways_and_ends_each_way_by_itself() -> None:
    """A client that has said all may still be answered."""
    async with open_box(ALLOW_GOOD, NAMES) as box:
        stream = box.open(GOOD)
        await stream.send_all(client_hello(GOOD))
        await box.settle()
        await stream.send_eof()
        upstream = box.wires.upstreams[0]
        assert (await until_end(upstream))[0] == client_hello(GOOD)
        await upstream.send_all(b"late answer")
        await upstream.send_eof()
        assert await until_end(stream) == (b"late answer", "eof")
        await box.settle()
        event = box.closed[0]
        assert (event.decision, event.reason, event.rule) == ("relay", "domain-allowed", GOOD)
        assert (event.bytes_up, event.bytes_down) == (len(client_hello(GOOD)), 11)
        assert event.address == f"{GOOD_ADDRESS}:443"
        assert event.ended == "eof"
        assert box.sandbox.flows == ()
