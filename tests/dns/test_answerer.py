"""One sandbox's DNS, without sockets: by the policy as it is at that moment, and never held up."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import dns.message
import dns.rcode
import pytest
import trio
import trio.testing

from sbxproxy.dns import DnsAnswerer
from sbxproxy.dns.message import Answer, Rcode, Record
from sbxproxy.dns.reading import read_answer
from sbxproxy.errors import UpstreamResolveError
from sbxproxy.events import Problem, as_dict
from sbxproxy.policy import Boundary, Policy
from support.dns import PUBLIC, PUBLIC_V6, make_desk, reply, texts, why

NAME = "api.example.com"
LISTED = {"allow": [NAME, "*.wild.example.org"]}
KNOWN = {NAME: [PUBLIC, PUBLIC_V6]}
ECH = "ech=AEX+DQBBtAAgACCPLEEvoMWbG0GAQ5mY1JhHtgRPBEmJhHvyRY6lRL4fWwAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="


@dataclass(eq=False)
class Records:
    """A forwarder that answers with these records, as a name server would write them."""

    records: dict[str, list[str]] = field(default_factory=dict)
    rcode: int = 0
    asked: list[bytes] = field(default_factory=list)
    error: UpstreamResolveError | None = None

    async def ask(self, name, rdtype):
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        if self.error:
            raise self.error
        owner = dns.name.from_wire(name, 0)[0]
        query = dns.message.make_query(owner, rdtype)
        written = self.records.get(dns.rdatatype.to_text(rdtype), [])
        answer = reply(query, *written, rcode=self.rcode)
        return read_answer(answer.to_wire(max_size=65535), name, rdtype), trio.current_time()


# -- addresses


async def test_an_allowed_name_has_the_addresses_that_the_proxy_would_dial():
    desk = make_desk(LISTED, KNOWN)
    answer = await desk.ask("ApI.example.com")
    assert texts(answer) == [f"ApI.example.com. A {PUBLIC}"]
    assert answer.answer[0].ttl == 30
    assert texts(await desk.ask(NAME, "AAAA")) == [f"{NAME}. AAAA {PUBLIC_V6}"]
    first = desk.told[0]
    assert (first.sandbox, first.name, first.type, first.rcode, first.answers) == ("box", NAME, "A", "NOERROR", 1)
    assert (first.decision, first.reason, first.rule) == ("allow", "domain-allowed", NAME)


async def test_r1_a_name_not_allowed_is_never_asked_for():
    records = Records()
    desk = make_desk(LISTED, KNOWN, forwarder=records)
    for name, rdtype in (("key123.evil.example", "A"), ("key123.evil.example", "TXT"), (f"key123.{NAME}", "AAAA")):
        answer = await desk.ask(name, rdtype)
        assert (answer.rcode(), answer.authority, why(answer)) == (dns.rcode.NXDOMAIN, [], (15, "domain-not-allowed"))
    assert (desk.names.asked, records.asked) == ([], [])
    assert [(event.decision, event.reason, event.rule) for event in desk.told] == [("deny", "domain-not-allowed", None)] * 3
    assert desk.told[0].remedy == '"allow": ["key123.evil.example"]'


async def test_r1_deny_all_asks_nobody_for_anything():
    records = Records()
    desk = make_desk("deny-all", KNOWN, forwarder=records)
    for name in (NAME, "com", ".", "localhost", "34.216.184.93.in-addr.arpa"):
        for rdtype in ("A", "AAAA", "HTTPS", "TXT", "PTR", "NULL"):
            answer = await desk.ask(name, rdtype)
            assert (answer.rcode(), why(answer)) == (dns.rcode.NXDOMAIN, (15, "deny-all"))
    assert (desk.names.asked, records.asked) == ([], [])


@pytest.mark.parametrize(
    ("known", "rcode", "reason"),
    [
        (None, "NXDOMAIN", "domain-allowed"),
        ([], "NOERROR", "domain-allowed"),
        (UpstreamResolveError("x", reason="resolver-failed"), "SERVFAIL", "resolver-failed"),
        (UpstreamResolveError("x", reason="resolve-timeout", status=504), "SERVFAIL", "resolve-timeout"),
    ],
)
async def test_what_the_resolver_says_is_passed_on(known, rcode, reason):
    desk = make_desk(LISTED, {NAME: known})
    answer = await desk.ask(NAME)
    assert dns.rcode.to_text(answer.rcode()) == rcode
    assert (answer.answer, answer.authority) == ([], [])
    assert (desk.told[0].rcode, desk.told[0].reason) == (rcode, reason)
    assert why(answer) == ((22, reason) if rcode == "SERVFAIL" else None)


async def test_r6_a_missing_ancestor_of_an_allowed_name_has_no_data():
    desk = make_desk({"allow": ["example.com", NAME]})
    assert (await desk.ask("example.com")).rcode() == dns.rcode.NOERROR
    assert (await desk.ask(NAME)).rcode() == dns.rcode.NXDOMAIN


async def test_d10_r4_an_allowed_name_at_a_private_address_has_none():
    desk = make_desk("allow-all", {NAME: ["10.0.0.1"], "mixed.example": ["169.254.169.254", PUBLIC]})
    answer = await desk.ask(NAME)
    assert (answer.rcode(), texts(answer), why(answer)) == (dns.rcode.NOERROR, [], (17, "private-address"))
    assert (desk.told[0].decision, desk.told[0].reason) == ("deny", "private-address")
    assert texts(await desk.ask("mixed.example")) == [f"mixed.example. A {PUBLIC}"]


async def test_a_name_that_only_rules_answer_needs_not_exist():
    records = Records()
    policy = {"allow": {"tool.internal": [{"response": {"statusCode": 200}}]}}
    desk = make_desk(policy, forwarder=records)
    assert texts(await desk.ask("tool.internal")) == ["tool.internal. A 192.0.2.1"]
    for rdtype in ("AAAA", "HTTPS"):
        answer = await desk.ask("tool.internal", rdtype)
        assert (answer.rcode(), texts(answer)) == (dns.rcode.NOERROR, [])
    assert (desk.names.asked, records.asked) == ([], [])
    assert desk.told[0].rule == "tool.internal"


# -- the policy as it is at that moment


async def test_l1_a_policy_holds_from_the_next_query_on():
    desk = make_desk(LISTED, KNOWN)
    assert texts(await desk.ask(NAME))
    desk.policy = Policy.parse("deny-all")
    assert why(await desk.ask(NAME)) == (15, "deny-all")
    desk.policy = Policy.parse({"allow": [NAME], "subnets": {"deny": [f"{PUBLIC}/32"]}})
    assert why(await desk.ask(NAME)) == (17, "address-denied")
    desk.policy = Policy.parse(LISTED)
    assert texts(await desk.ask(NAME))


@pytest.mark.parametrize(
    ("new", "expected"),
    [("deny-all", (15, "deny-all")), ({"allow": [NAME], "subnets": {"deny": [f"{PUBLIC}/32"]}}, (17, "address-denied"))],
)
async def test_l1_a_policy_changed_during_a_lookup_judges_its_outcome(new, expected):
    desk = make_desk(LISTED, KNOWN)

    def change():
        desk.policy = Policy.parse(new)

    desk.names.after = change
    answer = await desk.ask(NAME)
    assert (texts(answer), why(answer)) == ([], expected)


# -- never held up, never flooded


async def test_r12_stuck_lookups_delay_no_name_that_was_there_already(autojump_clock):
    stuck = [f"stuck{n}.wild.example.org" for n in range(200)]
    desk = make_desk(LISTED, {**KNOWN, **dict.fromkeys(stuck, ...)})
    await desk.ask(NAME)
    start = trio.current_time()
    answers = []

    async def ask(name):
        answers.append(await desk.ask(name))

    async with trio.open_nursery() as nursery:
        for name in stuck:
            nursery.start_soon(ask, name)
        await trio.testing.wait_all_tasks_blocked()
        assert len(desk.names.asked) == 1 + 16  # no more than these hold threads
        assert texts(await desk.ask(NAME))
        assert why(await desk.ask("evil.example")) == (15, "domain-not-allowed")
        assert trio.current_time() == start
    assert trio.current_time() - start == pytest.approx(4.5)
    assert {(answer.rcode(), why(answer)) for answer in answers} == {(dns.rcode.SERVFAIL, (22, "resolve-timeout"))}
    assert len(answers) == 200
    assert desk.answerer._pending == 0


async def test_r12_lookups_in_line_get_their_turn(autojump_clock):
    names = [f"n{n}.wild.example.org" for n in range(5)]
    desk = make_desk(LISTED, {names[0]: ..., **{name: [PUBLIC] for name in names[1:]}}, dns_lookups=2)
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(desk.ask, name)
    assert sorted(desk.names.asked) == names
    assert [event.rcode for event in desk.told] == ["NOERROR"] * 4 + ["SERVFAIL"]


async def test_r11_too_many_at_once_are_lost_over_udp_and_told_over_tcp(autojump_clock):
    desk = make_desk("allow-all", {f"n{n}.example": ... for n in range(10)}, dns_pending=3)
    data = [dns.message.make_query(f"n{n}.example", "A", use_edns=0).to_wire() for n in range(10)]
    async with trio.open_nursery() as nursery:
        for n in range(3):
            nursery.start_soon(desk.answerer.answer, data[n])
        await trio.testing.wait_all_tasks_blocked()
        assert await desk.answerer.answer(data[3], udp=True) is None
        answer = dns.message.from_wire(await desk.answerer.answer(data[3]))
        assert (answer.rcode(), why(answer)) == (dns.rcode.SERVFAIL, (0, "limit"))
    assert [event.reason for event in desk.events if isinstance(event, Problem)] == ["limit"]


async def test_r11_a_sandbox_has_a_rate(autojump_clock):
    desk = make_desk("deny-all", dns_rate=100)
    data = dns.message.make_query("a.example", "A").to_wire()

    async def count(tries):
        answers = [await desk.answerer.answer(data, udp=True) for _ in range(tries)]
        return sum(answer is not None for answer in answers)

    assert await count(1000) == 200
    await trio.sleep(0.5)
    assert await count(1000) == 50
    await trio.sleep(3600)
    assert await count(1000) == 200
    problems = [event for event in desk.events if isinstance(event, Problem)]
    assert [problem.detail for problem in problems] == [
        "1 DNS queries were not answered: too many at once",
        "1750 DNS queries were not answered: too many at once",
    ]


async def test_r11_what_must_be_asked_for_has_a_rate_of_its_own(autojump_clock):
    names = [f"n{n}.example" for n in range(100)]
    desk = make_desk("allow-all", {key: [PUBLIC] for key in names}, dns_lookup_rate=10)
    data = [dns.message.make_query(name, "A").to_wire() for name in names]

    async def count():
        return sum([await desk.answerer.answer(one, udp=True) is not None for one in data])

    assert await count() == 20
    assert len(desk.names.asked) == 20
    assert await count() == 20  # they are ready now
    await trio.sleep(1)
    assert await count() == 30
    assert len(desk.names.asked) == 30


async def test_r11_over_tcp_a_client_is_told_even_then_but_nonsense_is_not_answered():
    desk = make_desk("deny-all", dns_rate=1)
    data = dns.message.make_query("a.example", "A", use_edns=0).to_wire()
    for _ in range(2):
        await desk.answerer.answer(data)
    answer = dns.message.from_wire(await desk.answerer.answer(data))
    assert (answer.rcode(), why(answer)) == (dns.rcode.SERVFAIL, (0, "limit"))
    assert await desk.answerer.answer(data[:20]) is None


async def test_l9_a_resolver_that_raises_fails_one_query():
    desk = make_desk(LISTED, {NAME: ValueError("secret"), "a.wild.example.org": [PUBLIC]})
    answer = await desk.ask(NAME)
    assert (answer.rcode(), why(answer)) == (dns.rcode.SERVFAIL, (22, "internal-error"))
    desk.names.known[NAME] = ExceptionGroup("x", [KeyError("secret"), ExceptionGroup("y", [ValueError("secret")])])
    await desk.ask(NAME)
    problems = [event.detail for event in desk.events if isinstance(event, Problem)]
    assert problems == ["a look-up failed with ValueError", "a look-up failed with KeyError, ValueError"]
    assert texts(await desk.ask("a.wild.example.org"))
    assert desk.answerer._pending == 0


async def test_l9_whatever_goes_wrong_before_is_an_event_and_no_answer():
    events = []

    def broken():
        raise RuntimeError("secret")

    answerer = DnsAnswerer("box", policy=broken, boundary=Boundary(), resolver=make_desk("deny-all").names, emit=events.append)
    assert await answerer.answer(dns.message.make_query("a.example", "A").to_wire()) is None
    assert [event.detail for event in events] == ["a query failed with RuntimeError"]


async def test_a_cancelled_lookup_leaves_nothing_behind():
    desk = make_desk(LISTED, {NAME: ...})
    with trio.move_on_after(0) as scope:
        await desk.ask(NAME)
    assert scope.cancelled_caught
    assert desk.answerer._pending == 0


# -- other records


async def test_other_records_of_allowed_names_are_forwarded():
    records = Records({"TXT": [f'{NAME}. 99 TXT "hi"'], "MX": [f"{NAME}. 9 MX 10 mail.evil.example."]})
    desk = make_desk(LISTED, KNOWN, forwarder=records)
    answer = await desk.ask("API.example.com", "TXT")
    assert texts(answer) == ['API.example.com. TXT "hi"']
    assert answer.answer[0].ttl == 99
    assert texts(await desk.ask(NAME, "MX")) == [f"{NAME}. MX 10 mail.evil.example."]
    assert records.asked == [b"\x03api\x07example\x03com\0"] * 2
    assert desk.names.asked == []


async def test_r4_aliases_of_an_allowed_name_are_followed_but_none_is_allowed_by_that():
    records = Records({"TXT": [f"{NAME}. 60 CNAME cdn.other.example.", 'cdn.other.example. 60 TXT "x"']})
    desk = make_desk(LISTED, forwarder=records)
    assert texts(await desk.ask(NAME, "TXT")) == [f"{NAME}. CNAME cdn.other.example.", 'cdn.other.example. TXT "x"']
    assert (await desk.ask("cdn.other.example", "TXT")).rcode() == dns.rcode.NXDOMAIN


async def test_r10_https_records_come_without_ech_private_hints_and_http3():
    records = Records(
        {
            "HTTPS": [
                f'{NAME}. 60 HTTPS 1 . alpn="h3,h2" ipv4hint="{PUBLIC},10.0.0.1" {ECH} ipv6hint="{PUBLIC_V6}"',
                f"{NAME}. 60 HTTPS 2 evil.example.",
                f"{NAME}. 60 HTTPS 3 a.wild.example.org.",
            ]
        }
    )
    desk = make_desk(LISTED, forwarder=records)
    assert texts(await desk.ask(NAME, "HTTPS")) == [
        f'{NAME}. HTTPS 1 . alpn="h2" ipv4hint="{PUBLIC}" ipv6hint="{PUBLIC_V6}"',
        f"{NAME}. HTTPS 3 a.wild.example.org.",
    ]
    desk = make_desk(LISTED, forwarder=records, ipv6=False)
    assert texts(await desk.ask(NAME, "HTTPS"))[0] == f'{NAME}. HTTPS 1 . alpn="h2" ipv4hint="{PUBLIC}"'


async def test_an_alias_before_an_https_record_stays():
    records = Records({"HTTPS": [f"{NAME}. 60 CNAME a.wild.example.org.", "a.wild.example.org. 60 HTTPS 1 . " + ECH]})
    desk = make_desk(LISTED, forwarder=records)
    assert texts(await desk.ask(NAME, "HTTPS")) == [f"{NAME}. CNAME a.wild.example.org.", "a.wild.example.org. HTTPS 1 ."]


@pytest.mark.parametrize("name", ["1.0.0.10.in-addr.arpa", "254.169.254.169.in-addr.arpa", "1.0.0.127.in-addr.arpa"])
async def test_the_names_of_private_addresses_are_not_told(name):
    """The host's name servers know the host's networks."""
    records = Records({"PTR": [f"{name}. 60 PTR db.corp.example."]})
    desk = make_desk("allow-all", forwarder=records)
    answer = await desk.ask(name, "PTR")
    assert (answer.rcode(), why(answer)) == (dns.rcode.NXDOMAIN, (15, "private-address"))
    assert records.asked == []
    assert (desk.told[0].decision, desk.told[0].reason) == ("deny", "private-address")


async def test_the_names_of_public_addresses_are():
    name = "34.216.184.93.in-addr.arpa"
    records = Records({"PTR": [f"{name}. 60 PTR example.com."]})
    desk = make_desk("allow-all", forwarder=records)
    assert texts(await desk.ask(name, "PTR")) == [f"{name}. PTR example.com."]
    assert texts(await desk.ask("184.93.in-addr.arpa", "PTR")) == []
    assert (await make_desk(LISTED, forwarder=records).ask(name, "PTR")).rcode() == dns.rcode.NXDOMAIN


async def test_r6_no_such_name_from_the_name_servers():
    records = Records(rcode=dns.rcode.NXDOMAIN)
    desk = make_desk({"allow": ["example.com", NAME]}, forwarder=records)
    assert (await desk.ask(NAME, "TXT")).rcode() == dns.rcode.NXDOMAIN
    assert (await desk.ask("example.com", "TXT")).rcode() == dns.rcode.NOERROR


async def test_without_a_forwarder_there_are_no_other_records():
    desk = make_desk("allow-all")
    answer = await desk.ask(NAME, "TXT")
    assert (answer.rcode(), why(answer)) == (dns.rcode.NOERROR, (21, "dns-not-supported"))


async def test_r12_name_servers_that_fail_are_a_failure():
    records = Records(error=UpstreamResolveError("x", reason="resolver-failed"))
    desk = make_desk("allow-all", forwarder=records)
    answer = await desk.ask(NAME, "TXT")
    assert (answer.rcode(), why(answer)) == (dns.rcode.SERVFAIL, (22, "resolver-failed"))
    assert desk.told[0].decision == "error"


async def test_the_age_of_a_forwarded_answer_counts(autojump_clock):
    """It may have been in the cache that sandboxes share."""

    class Old:
        async def ask(self, name, rdtype):
            await trio.lowlevel.checkpoint()
            answer = Answer(rcode=Rcode.NOERROR, records=[Record(None, 16, 100, b"\x01x")])
            return answer, trio.current_time() - 40

    desk = make_desk("allow-all", forwarder=Old())
    assert (await desk.ask(NAME, "TXT")).answer[0].ttl == 60
    await trio.sleep(10)
    assert (await desk.ask(NAME, "TXT")).answer[0].ttl == 50


# -- events


async def test_x14_what_observers_are_told_is_one_harmless_line():
    desk = make_desk("allow-all")
    await desk.ask(r"\010\"forged\".\027[31m.example")
    (event,) = desk.told
    assert event.name == r"\010\034forged\034.\027\09131m.example"
    assert event.reason == "bad-name"
    line = json.dumps(as_dict(event))
    assert json.loads(line)["event"] == "dns"


async def test_r8_what_can_t_be_read_is_told_without_a_name():
    desk = make_desk("allow-all")
    assert await desk.answerer.answer(dns.message.make_query(NAME, "A").to_wire()[:-1]) is not None
    (event,) = desk.told
    assert (event.name, event.type, event.rcode, event.decision, event.reason) == ("", "", "FORMERR", "deny", "bad-request")
    assert await desk.answerer.answer(b"\x12\x34\x81\x80" + bytes(8)) is None
    assert len(desk.told) == 1


def test_dnspython_is_imported_by_who_asks_name_servers_and_by_nobody_else():
    code = (
        "import sys, sbxproxy.proxy, sbxproxy.dns, sbxproxy.fronts.dns as f; from sbxproxy.dns import *\n"
        "from sbxproxy.policy import Boundary\n"
        "DnsAnswerer('s', policy=None, boundary=Boundary(), resolver=None, emit=None); forwarder = Forwarder()\n"
        "import threading, trio, importlib; assert 'dns' not in sys.modules\n"
        "by = []\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'dns': by.append(threading.current_thread())\n"
        "sys.meta_path.insert(0, Watch())\n"
        "trio.run(forwarder.load)\n"
        "assert 'dns.message' in sys.modules and by and threading.main_thread() not in by"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
