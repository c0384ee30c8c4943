"""What is answered from what was answered a moment ago, and what never is."""

import dns.message
import dns.rcode
import trio

from sbxproxy.dns.message import Answer, Rcode, Record, parse_query
from sbxproxy.dns.ready import READY, Outcome, Ready
from sbxproxy.policy import Policy
from support.dns import PUBLIC, PUBLIC_V6, make_desk, why

NAME = "api.example.com"
LISTED = {"allow": [NAME, "*.wild.example.org"]}
KNOWN = {NAME: [PUBLIC, PUBLIC_V6]}


async def test_an_answer_is_ready_for_its_lifetime(autojump_clock):
    desk = make_desk(LISTED, KNOWN)
    await desk.ask(NAME)
    start = trio.current_time()
    await trio.sleep_until(start + 12.5)
    answer = await desk.ask("API.EXAMPLE.COM")
    assert answer.answer[0].ttl == 18
    await trio.sleep_until(start + 29.9)
    assert (await desk.ask(NAME)).answer[0].ttl == 1
    assert desk.names.asked == [NAME]
    assert isinstance(desk.answerer.begin(dns.message.make_query(NAME, "A").to_wire(), udp=True), bytes)
    await trio.sleep_until(start + 30)
    assert (await desk.ask(NAME)).answer[0].ttl == 30
    assert desk.names.asked == [NAME, NAME]
    assert len(desk.told) == 5


async def test_r3_a_ready_answer_is_none_for_another_class():
    desk = make_desk(LISTED, KNOWN)
    await desk.ask(NAME)
    assert (await desk.put(dns.message.make_query(NAME, "A", "CH"))).rcode() == dns.rcode.REFUSED


async def test_l1_what_was_looked_up_under_an_old_policy_is_not_ready_under_the_new():
    desk = make_desk(LISTED, KNOWN)

    def change():
        desk.policy = Policy.parse({"allow": ["other.example"]})

    desk.names.after = change
    await desk.ask(NAME)
    assert why(await desk.ask(NAME)) == (15, "domain-not-allowed")


async def test_r11_denials_are_not_kept():
    desk = make_desk(LISTED, {NAME: None})
    for _ in range(2):
        await desk.ask(NAME)
        await desk.ask("evil.example")
    assert desk.names.asked == [NAME, NAME]
    assert not desk.answerer._ready


async def test_r11_ready_answers_are_bounded():
    names = [f"n{n}.wild.example.org" for n in range(READY + 50)]
    desk = make_desk(LISTED, {name: [PUBLIC] for name in names}, dns_rate=10**6, dns_lookup_rate=10**6)
    for name in names:
        await desk.ask(name)
    assert len(desk.answerer._ready) == READY
    desk.names.asked.clear()
    await desk.ask(names[-1])
    await desk.ask(names[0])
    assert desk.names.asked == [names[0]]


def asked(name=NAME, rdtype="A"):
    return parse_query(dns.message.make_query(name, rdtype).to_wire())


def answered(*lifetimes, rcode=Rcode.NOERROR):
    records = tuple(Record(None, 1, lifetime, b"\x5d\xb8\xd8\x22") for lifetime in lifetimes)
    return Outcome(Answer(rcode=rcode, records=records), "allow", "domain-allowed")


def test_an_answer_lasts_as_long_as_its_shortest_record():
    policy, ready = Policy.parse(LISTED), Ready()
    ready.keep(policy, asked(), answered(20, 10, 30), 100.0)
    assert ready.find(policy, asked(), 109.9).made == 100.0
    assert ready.find(policy, asked(), 110.0) is None
    assert ready.find(policy, asked(rdtype="AAAA"), 101.0) is None


def test_there_is_nothing_to_keep_in_an_answer_without_records_or_with_an_error():
    policy, ready = Policy.parse(LISTED), Ready()
    ready.keep(policy, asked(), answered(), 100.0)
    ready.keep(policy, asked(), answered(10, rcode=Rcode.NXDOMAIN), 100.0)
    assert ready.find(policy, asked(), 100.0) is None


def test_l1_another_policy_knows_nothing_even_one_of_the_same_words():
    """Whichever is heard of first, a question or an answer that was on its way."""
    old, new = Policy.parse(LISTED), Policy.parse(LISTED)
    ready = Ready()
    ready.keep(old, asked(), answered(10), 100.0)
    assert ready.find(new, asked(), 101.0) is None
    assert len(ready) == 0
    ready.keep(old, asked(), answered(10), 100.0)
    ready.keep(new, asked(rdtype="AAAA"), answered(10), 100.0)
    assert len(ready) == 1
    assert ready.find(new, asked(), 101.0) is None


def test_r11_of_what_does_not_fit_what_was_asked_for_least_lately_goes():
    policy, ready = Policy.parse(LISTED), Ready()
    queries = [asked(f"n{n}.wild.example.org") for n in range(READY + 1)]
    for query in queries[:-1]:
        ready.keep(policy, query, answered(10), 100.0)
    assert ready.find(policy, queries[0], 101.0) is not None
    ready.keep(policy, queries[-1], answered(10), 101.0)
    assert [ready.find(policy, query, 101.0) is None for query in (*queries[:3], queries[-1])] == [False, True, False, False]
