"""What is remembered of where connections led: never beyond its era or its sandbox, never credentials, and never much."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sbxproxy
from sbxproxy.connection import places as module
from sbxproxy.connection import verdicts
from sbxproxy.connection.places import MOST_ALPN, MOST_PLACES, MOST_ROADS, Place, Places, Road
from sbxproxy.fronts.ask import StreamAsk
from sbxproxy.fronts.http import ConnectAsk
from sbxproxy.hostname import Hostname
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.decision import Dial, Facts, Reason, Relay
from sbxproxy.testing.hello import client_hello
from sbxproxy.wire.result import Sniffed
from support.passages import ESTABLISHED, HELLO, NAME, OTHER, Pair, Step, head, open_pair

ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")


def places(**limits: Any) -> Places:
    context: Any = SimpleNamespace(limits=sbxproxy.Limits(**limits))
    return Places(context)


def client(data: bytes) -> Any:
    stream = PeekedStream.__new__(PeekedStream)
    stream.peeked = data
    return stream


def find(known: Places, data: bytes) -> tuple[Place | None, bytes]:
    stream = client(data)
    return known.find(stream), stream.peeked


def relay(*addresses: Any) -> Relay:
    return Relay(dial=Dial(addresses=addresses, port=443, name=None), reason=Reason.ALLOW_ALL, matched=None)


FACTS = Facts(host=Hostname(NAME), port=443)


# Heads.


def test_the_same_head_is_the_same_place_and_what_follows_it_stays() -> None:
    known, first = places(), head(f"{NAME}:443")
    place, rest = find(known, first + b"more")
    assert place is not None
    assert (place.wished.host, place.wished.port, place.front, place.told, rest) == (NAME, 443, "connect", ESTABLISHED, b"more")
    assert find(known, first) == (place, b"")
    assert find(known, first + b"else") == (place, b"else")
    assert find(known, first + first) == (place, first)


@pytest.mark.parametrize(
    "other",
    [
        head(f"{NAME}:443").replace(b"Host", b"host"),
        head(NAME.upper() + ":443"),
        head(f"{NAME}:443").replace(b"Host: ", b"Host:  "),
        head(f"{NAME}:443", "X: y"),
        head(f"{NAME}:444"),
        head(f"{OTHER}:443"),
    ],
)
def test_another_head_is_another_place(other: bytes) -> None:
    """What is known is known by its very bytes: there is no second reading of them that could differ."""
    known = places()
    place, _ = find(known, head(f"{NAME}:443"))
    second, rest = find(known, other)
    assert second is not None
    assert second is not place
    assert rest == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"CONNECT ",
        head(f"{NAME}:443")[:-1],
        f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {OTHER}\r\n\r\n".encode(),
        head(f"{NAME}:70000"),
        head("a b:443"),
        b"GET http://x.example/ HTTP/1.1\r\nHost: x.example\r\n\r\n",
        b"\x05\x01\x00",
        head(f"{NAME}:443", "X: " + "y" * 600),
        head(f"{NAME}:443", "Proxy-Authorization: Basic eDp5"),
        head(f"{NAME}:443", "authorization: Basic eDp5"),
        head(f"{NAME}:443", "X-AUTHORIZATION: Basic eDp5"),
    ],
)
def test_s1_what_is_bad_unusual_or_has_credentials_is_neither_taken_nor_kept(data: bytes) -> None:
    known = places()
    for _ in range(2):
        assert find(known, data) == (None, data)
    assert known._heads == {}


@given(st.data())
def test_no_part_of_a_head_is_taken_for_it(data: st.DataObject) -> None:
    known, whole = places(), head(f"{NAME}:443")
    assert find(known, whole)[0] is not None
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert find(known, whole[:cut]) == (None, whole[:cut])


def test_x1_heads_and_targets_are_bounded() -> None:
    known = places()
    for number in range(3 * MOST_PLACES):
        assert find(known, head(f"n{number}.example:443"))[0] is not None
        known.of(StreamAsk(ONE, 1 + number))
        assert len(known._heads) <= MOST_PLACES
        assert len(known._targets) <= MOST_PLACES
    assert find(known, head("n1.example:443"))[0] is not None


def test_a_target_that_the_kernel_names_is_a_place_too() -> None:
    known = places()
    place = known.of(StreamAsk(ONE, 443, front="transparent"))
    assert known.of(StreamAsk(ONE, 443, front="transparent")) is place
    assert place.told == b""
    assert known.of(StreamAsk(ONE, 444)) is not place
    assert known.of(StreamAsk(TWO, 443)) is not place
    ask = place.ask(client(b""))
    assert isinstance(ask, StreamAsk)
    assert (ask.host, ask.port, ask.front) == (ONE, 443, "transparent")


def test_a_wish_is_made_again_for_another_client_without_the_first() -> None:
    """Else an answer would go to whoever asked for this place first."""
    known, first, second = places(), client(head(f"{NAME}:443")), client(b"")
    place = known.find(first)
    assert place is not None
    ask = place.ask(second)
    assert isinstance(ask, ConnectAsk)
    assert (ask.host, ask.port, ask.client) == (NAME, 443, second)


# Roads.


def test_nothing_that_was_decided_is_known_in_another_era() -> None:
    place = Place(StreamAsk(ONE, 443))
    eras: list[Any] = [{}, {}]  # equal, and not the same
    place.renew(eras[0])
    road = place.keep(None, Road(FACTS, relay(ONE)))
    place.waiting = FACTS
    place.renew(eras[0])
    assert place.roads == {None: road}
    place.renew(eras[1])
    assert (place.roads, place.waiting, place.era) == ({}, None, eras[1])
    place.keep(None, road)
    place.renew(eras[0])
    assert place.roads == {}


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        (None, True),
        (Sniffed("tls", b"a" * (module.LONGEST - 2 * MOST_ALPN), (b"h2",) * MOST_ALPN), True),
        (Sniffed("tls", b"a" * (module.LONGEST + 1)), False),
        (Sniffed("tls", b"a", (b"h" * 255,) * 3), False),
        (Sniffed("tls", b"a", (b"h2",) * (MOST_ALPN + 1)), False),
        (Sniffed("tls"), True),
    ],
)
def test_x1_what_a_client_made_large_is_not_kept(key: Any, kept: bool) -> None:
    place, road = Place(StreamAsk(ONE, 443)), Road(FACTS, relay(ONE))
    assert place.keep(key, road) is road
    assert (key in place.roads) is kept


def test_x1_roads_are_bounded() -> None:
    place = Place(StreamAsk(ONE, 443))
    for number in range(2 * MOST_ROADS):
        road = Road(FACTS, relay(ONE))
        assert place.keep(Sniffed("tls", b"%d" % number), road) is road
    assert len(place.roads) == MOST_ROADS


def test_a_road_knows_whether_its_address_alone_was_judged() -> None:
    one = Road(FACTS.at((ONE,)), relay(ONE))
    assert (one.address, one.text, one.port, one.others, one.sole) == (ONE, "192.0.2.1", 443, False, True)
    assert one.connected is one.facts
    two = Road(FACTS.at((ONE, TWO)), relay(ONE, TWO))
    assert (two.others, two.sole, two.connected.addresses) == (True, False, (ONE,))
    narrowed = Road(FACTS.at((ONE, TWO)), relay(TWO))  # the other is denied
    assert (narrowed.address, narrowed.others, narrowed.sole, narrowed.connected.addresses) == (TWO, False, False, (TWO,))


# In a running proxy.


def script(pair: Pair, name: str = NAME, hello: bytes = HELLO) -> list[Step]:
    return [("send", head(f"{name}:{pair.upstream.port}")), ("until", ESTABLISHED), ("send", hello), ("fin",)]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Facts]:
    """What the judge is asked."""
    asked: list[Facts] = []
    judge = verdicts.judge

    def ask(policy: Any, facts: Facts, boundary: Any) -> Any:
        asked.append(facts)
        return judge(policy, facts, boundary)

    monkeypatch.setattr(verdicts, "judge", ask)
    return asked


async def _play(pair: Pair, judged: list[Facts]) -> int:
    """Connect once; how often the judge was asked."""
    judged.clear()
    assert (await pair.play(script(pair))).data == ESTABLISHED + b"<%d bytes>" % len(HELLO)
    await pair.settle()
    assert pair.ways["left"] == 0
    return len(judged)


@pytest.mark.parametrize("ends", ["time", "listener", "listener gone", "policy", "same policy"])
async def test_l2_an_era_ends_with_time_a_listener_or_a_policy(ends: str, judged: list[Facts]) -> None:
    """The machine's addresses may be others after a second, and the proxy's own with each listener."""
    async with open_pair({"allow": [NAME]}, boxes=("short",)) as pair:
        now = 1000.0
        gone = pair.proxy.note_listeners([(ONE, 1)])
        pair.short._context._verdicts._clock = lambda: now
        pair.short._context._verdicts._until = 0.0
        first = await _play(pair, judged)
        assert first > 0
        assert await _play(pair, judged) == 0
        now += 0.9
        assert await _play(pair, judged) == 0
        match ends:
            case "time":
                now += 0.11
            case "listener":
                pair.proxy.note_listeners([(TWO, 1)])
            case "listener gone":
                gone()
            case "policy":
                await pair.short.update_policy({"allow": [NAME, OTHER]})
            case "same policy":
                await pair.short.update_policy({"allow": [NAME]})
        assert await _play(pair, judged) == first
        assert await _play(pair, judged) == 0


async def test_d4_an_address_that_has_become_the_proxy_s_own_is_not_connected_to_from_memory() -> None:
    async with open_pair({"allow": [NAME]}, boxes=("short",)) as pair:
        for _ in range(2):
            await pair.play(script(pair))
            await pair.settle()
        pair.proxy.note_listeners([(ip_address("127.0.0.1"), pair.upstream.port)])
        await pair.play(script(pair))
        await pair.settle()
        assert [event.reason for event in pair.closed()][2:] == ["proxy-address"]
        assert len(pair.upstream.got) == 2


async def test_l2_what_was_remembered_under_one_policy_is_not_known_under_the_next() -> None:
    policies: list[Any] = [{"allow": [NAME]}, "deny-all", {"allow": [NAME]}, {"allow": [OTHER]}, "allow-all", {}]
    async with open_pair(policies[0], boxes=("short",)) as pair:
        for policy in policies:
            await pair.short.update_policy(policy)
            for _ in range(2):
                seen = await pair.play([("send", head(f"{NAME}:{pair.upstream.port}")), ("read", 12), ("send", HELLO), ("fin",)])
                await pair.settle()
                allowed = policy in ("allow-all", {"allow": [NAME]})
                assert seen.data.endswith(b"bytes>") is allowed
                assert seen.data.startswith(b"HTTP/1.1 200 ") is allowed
        assert len(pair.upstream.got) == 6


async def test_l2_a_policy_that_changes_between_head_and_first_bytes_finds_no_road() -> None:
    """The place is known and so was the road from it, under the policy before."""
    async with open_pair({"allow": [NAME]}, boxes=("short",)) as pair:
        for _ in range(2):
            await pair.play(script(pair))
            await pair.settle()
        client = await pair.open()
        await client.stream.send_all(head(f"{NAME}:{pair.upstream.port}"))
        assert await client.stream.receive_some(len(ESTABLISHED)) == ESTABLISHED
        await pair.short.update_policy({"allow": [OTHER]})
        await client.stream.send_all(HELLO)
        assert (await client.stream.receive_some())[:1] == b"\x15"
        client.stream.socket.close()
        await pair.settle()
        assert len(pair.upstream.got) == 2


async def test_i1_two_sandboxes_share_no_place() -> None:
    """What one may is no matter of what another was allowed before, by the same head."""
    async with open_pair({"allow": [NAME]}, boxes=("short", "second")) as pair:
        for _ in range(2):
            for box in pair.boxes:
                assert (await pair.play(script(pair), box)).data.endswith(b"bytes>")
                await pair.settle(box)
        await pair.boxes["second"].update_policy({"allow": [OTHER]})
        for box, allowed in (("short", True), ("second", False), ("short", True)):
            assert (
                await pair.play([("send", head(f"{NAME}:{pair.upstream.port}")), ("read", 12), ("send", HELLO), ("fin",)], box)
            ).data.endswith(b"bytes>") is allowed
            await pair.settle(box)
        first, second = (express.places for express in pair.expresses)
        assert first is not second
        assert not {id(one) for one in first._heads.values()} & {id(one) for one in second._heads.values()}
        assert len(pair.upstream.got) == 6


async def test_s1_credentials_stay_in_no_memory() -> None:
    async with open_pair({"allow": [NAME]}, boxes=("short",)) as pair:
        target = f"{NAME}:{pair.upstream.port}"
        for _ in range(2):
            asked = head(target, "Proxy-Authorization: Basic c2VjcmV0OnNlY3JldA==")
            await pair.play([("send", asked), ("until", ESTABLISHED), ("send", client_hello(NAME)), ("fin",)])
            await pair.settle()
        assert [event.ended for event in pair.closed()] == ["eof", "eof"]
        assert [express.places._heads for express in pair.expresses] == [{}]
