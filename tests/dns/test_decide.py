"""What is answered before anybody is asked, and which addresses are left of an answer."""

from ipaddress import ip_address, ip_network

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.address import PrefixTable
from sbxproxy.dns.decide import Allow, Refuse, address_answer, decide, no_such_name, reverse_address
from sbxproxy.dns.message import Ede, Query, Rcode, parse_query
from sbxproxy.hostname import Hostname
from sbxproxy.policy import Boundary, Policy

LISTED = {"allow": ["api.example.com", "*.wild.example.org"]}
RANGES = {"subnets": {"allow": ["198.51.100.0/24"]}}


def query(name, rdtype="A", rdclass="IN") -> Query:
    found = parse_query(dns.message.make_query(name, rdtype, rdclass).to_wire())
    assert isinstance(found, Query)
    return found


def verdict(policy, name, rdtype="A", rdclass="IN"):
    return decide(Policy.parse(policy), query(name, rdtype, rdclass))


ROWS = [
    # mode, name, type: rcode or None if it may be looked up, reason
    ("allow-all", "anything.example", "A", None, "allow-all"),
    ("allow-all", "anything.example", "TYPE1000", None, "allow-all"),
    ("allow-all", ".", "NS", None, "allow-all"),
    ("allow-all", ".", "A", Rcode.NOERROR, "bad-name"),
    ("allow-all", r"My\032Printer._ipp._tcp.example", "SRV", None, "allow-all"),
    ("allow-all", r"a\032b.example", "A", Rcode.NXDOMAIN, "bad-name"),
    ("allow-all", r"localhost\000.example.com", "A", Rcode.NXDOMAIN, "bad-name"),
    ("allow-all", "127.1", "A", Rcode.NXDOMAIN, "bad-name"),
    ("deny-all", "anything.example", "A", Rcode.NXDOMAIN, "deny-all"),
    ("deny-all", ".", "NS", Rcode.NXDOMAIN, "deny-all"),
    ("deny-all", r"a\032b.example", "TXT", Rcode.NXDOMAIN, "deny-all"),
    (RANGES, "anything.example", "A", None, "range-allowed"),
    (RANGES, "anything.example", "TXT", None, "range-allowed"),
    (LISTED, "api.example.com", "A", None, "domain-allowed"),
    (LISTED, "API.Example.com", "AAAA", None, "domain-allowed"),
    (LISTED, "api.example.com", "HTTPS", None, "domain-allowed"),
    (LISTED, "api.example.com", "NULL", Rcode.NOERROR, "dns-not-supported"),
    (LISTED, "api.example.com", "TYPE1000", Rcode.NOERROR, "dns-not-supported"),
    (LISTED, "api.example.com", "DNSKEY", Rcode.NOERROR, "dns-not-supported"),
    (LISTED, "key123.evil.example", "A", Rcode.NXDOMAIN, "domain-not-allowed"),
    (LISTED, "key123.evil.example", "NULL", Rcode.NXDOMAIN, "domain-not-allowed"),
    (LISTED, "x.api.example.com", "A", Rcode.NXDOMAIN, "domain-not-allowed"),
    (LISTED, "xapi.example.com", "A", Rcode.NXDOMAIN, "domain-not-allowed"),
    (LISTED, "api.example.com.svc.local", "A", Rcode.NXDOMAIN, "domain-not-allowed"),  # R7
    (LISTED, "example.com", "A", Rcode.NOERROR, "domain-not-allowed"),  # R6
    (LISTED, "com", "NS", Rcode.NOERROR, "domain-not-allowed"),
    (LISTED, ".", "NS", Rcode.NOERROR, "domain-not-allowed"),
    (LISTED, "wild.example.org", "A", Rcode.NOERROR, "domain-not-allowed"),
    (LISTED, "a.b.wild.example.org", "A", None, "domain-allowed"),
    (LISTED, "_acme-challenge.wild.example.org", "TXT", None, "domain-allowed"),
    (LISTED, "_acme-challenge.api.example.com", "TXT", Rcode.NXDOMAIN, "domain-not-allowed"),
    (LISTED, r"api\.example.com", "A", Rcode.NXDOMAIN, "bad-name"),
    (LISTED, r"\000.wild.example.org", "TXT", Rcode.NXDOMAIN, "bad-name"),
]


@pytest.mark.parametrize(("policy", "name", "rdtype", "rcode", "reason"), ROWS)
def test_r1_r3_r6_r7_who_may_look_up_what(policy, name, rdtype, rcode, reason):
    found = verdict(policy, name, rdtype)
    assert found.reason == reason
    if rcode is None:
        assert isinstance(found, Allow)
    else:
        assert isinstance(found, Refuse)
        assert found.answer.rcode is rcode
        assert found.answer.records == ()
        assert found.answer.ede is not None
        assert found.answer.ede[1] == reason


@pytest.mark.parametrize("policy", ["allow-all", "deny-all", LISTED])
@pytest.mark.parametrize("name", ["api.example.com", "evil.example"])
@pytest.mark.parametrize(
    ("rdtype", "rdclass"),
    [("ANY", "IN"), ("AXFR", "IN"), ("IXFR", "IN"), ("MAILA", "IN"), ("TKEY", "IN"), ("TYPE0", "IN"), ("TYPE200", "IN"),
     ("TYPE65535", "IN"), ("TXT", "CH"), ("A", "HS"), ("A", "ANY"), ("A", "NONE"), ("A", "CLASS2000")],
)  # fmt: skip
def test_r3_what_is_no_lookup_is_refused_whatever_the_name(policy, name, rdtype, rdclass):
    """The same for every name, so that it tells nothing of the policy."""
    found = verdict(policy, name, rdtype, rdclass)
    assert isinstance(found, Refuse)
    assert (found.answer.rcode, found.answer.ede) == (Rcode.REFUSED, (Ede.NOT_SUPPORTED, "dns-not-supported"))


def test_a_name_whose_requests_are_all_answered_by_rules_needs_nobody():
    policy = {"allow": {"tool.internal": [{"response": {"statusCode": 200}}], "api.example.com": []}}
    here, elsewhere = verdict(policy, "tool.internal"), verdict(policy, "api.example.com")
    assert isinstance(here, Allow)
    assert isinstance(elsewhere, Allow)
    assert (here.here, here.rule, elsewhere.here) == (True, "tool.internal", False)


@pytest.mark.parametrize(
    ("policy", "name", "rcode"),
    [
        ("allow-all", "x.com", Rcode.NXDOMAIN),
        (RANGES, "x.com", Rcode.NXDOMAIN),
        (LISTED, "api.example.com", Rcode.NXDOMAIN),
        ({"allow": ["example.com", "api.example.com"]}, "example.com", Rcode.NOERROR),
    ],
)
def test_r6_not_even_the_name_servers_deny_what_is_below_an_allowed_name(policy, name, rcode):
    assert no_such_name(Policy.parse(policy), Hostname(name)) is rcode


PUBLIC, PRIVATE, V6 = ip_address("93.184.216.34"), ip_address("10.0.0.1"), ip_address("2606:2800:220:1::1")


def addresses(policy, given, rdtype=1, *, ipv6=True, **boundary):
    answer, denied = address_answer(Policy.parse(policy), Boundary(**boundary), given, rdtype, ipv6=ipv6)
    assert answer.rcode is Rcode.NOERROR
    return [ip_address(record.rdata) for record in answer.records], denied, answer.ede


@pytest.mark.parametrize("policy", ["allow-all", {"allow": ["api.example.com"]}, RANGES])
@pytest.mark.parametrize("text", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "100.64.0.1", "192.0.2.1", "0.0.0.0"])
def test_d3_d5_d10_n14_what_may_not_be_dialled_is_not_answered(policy, text):
    """Programs with a pin on the first answer would rebind to the host."""
    assert addresses(policy, [ip_address(text)]) == ([], "private-address", (Ede.FILTERED, "private-address"))
    assert addresses(policy, [ip_address(text), PUBLIC]) == ([PUBLIC], None, None)


@pytest.mark.parametrize("text", ["2002:7f00:1::", "64:ff9b::a00:1", "::1", "fd00::1", "fe80::1", "2001:db8::1"])
def test_d1_d2_neither_in_ipv6(text):
    assert addresses("allow-all", [ip_address(text)], 28)[:2] == ([], "private-address")


def test_families_are_told_apart():
    assert addresses("allow-all", [PUBLIC, V6], 1)[0] == [PUBLIC]
    assert addresses("allow-all", [PUBLIC, V6], 28)[0] == [V6]
    assert addresses("allow-all", [PUBLIC], 28) == ([], None, None)
    assert addresses("allow-all", [PRIVATE, V6], 28)[0] == [V6]


def test_without_ipv6_there_are_no_ipv6_addresses():
    """A redirected connection opens at once, so a client would believe in them."""
    assert addresses("allow-all", [PUBLIC, V6], 28, ipv6=False) == ([], None, None)
    assert addresses("allow-all", [PUBLIC, V6], 1, ipv6=False)[0] == [PUBLIC]


def test_ranges_and_the_operator_open_and_close_addresses():
    net = ip_network("10.0.0.0/8")
    assert addresses({"allow": ["x.com"], "subnets": {"allow": ["10.0.0.0/8"]}}, [PRIVATE])[0] == [PRIVATE]
    assert addresses("allow-all", [PRIVATE], private=PrefixTable([net]))[0] == [PRIVATE]
    assert addresses("allow-all", [PRIVATE], private=PrefixTable([net]), never=PrefixTable([net]))[1] == "address-denied"
    denied = {"allow": ["x.com"], "subnets": {"deny": ["93.184.216.0/24"]}}
    assert addresses(denied, [PUBLIC]) == ([], "address-denied", (Ede.FILTERED, "address-denied"))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_reverse_names_are_read_back(address):
    assert reverse_address(query(address.reverse_pointer).name) == address


@pytest.mark.parametrize(
    "name",
    ["1.168.192.in-addr.arpa", "01.0.0.127.in-addr.arpa", "256.0.0.127.in-addr.arpa", "x.0.0.127.in-addr.arpa", "in-addr.arpa",
     "1.0.0.127.in-addr.example", "1.0.0.127.x.in-addr.arpa", "1.2.ip6.arpa", ".".join(["g"] * 32) + ".ip6.arpa",
     ".".join(["10"] * 32) + ".ip6.arpa", "com"],
)  # fmt: skip
def test_what_is_no_whole_reverse_name_is_none(name):
    assert reverse_address(query(name).name) is None
