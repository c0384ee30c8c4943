"""What a connection may do: by name, by range, and at which addresses."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.address import (
    AddressClass,
    IPAddress,
    PrefixTable,
    classify,
    forms,
    parse_address,
    parse_network,
)
from sbxproxy.hostname import Hostname
from sbxproxy.policy.decision import Decision, Deny, Dial, Facts, Inspect, Need, Reason, Relay, Wire
from sbxproxy.policy.judge import judge
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reach import Boundary, permitted

R = Reason
SET = [{"transform": [{"headers": {"authorization": "x"}}]}]
ANSWER = [{"response": {"statusCode": 403}}]
PUBLIC = "93.184.216.34"
OTHER = "93.184.216.35"
OPEN = Boundary()


def at(text: str) -> IPAddress:
    address = parse_address(text)
    assert address is not None
    return address


def table(*texts: str) -> PrefixTable:
    return PrefixTable(parse_network(text) for text in texts)


def facts(
    host: str,
    *addresses: str,
    port: int = 443,
    wire: str | None = None,
    sni: str | None = None,
    unresolved: bool = True,
    problem: str | None = None,
) -> Facts:
    """``sni`` implies TLS; without addresses none are known yet, unless ``unresolved`` is false."""
    known: tuple[IPAddress, ...] | None = tuple(at(address) for address in addresses)
    if not addresses and unresolved:
        known = None
    return Facts(
        host=parse_address(host) or Hostname(host),
        port=port,
        wire=Wire.TLS if sni is not None and wire is None else wire,
        server_name=None if sni is None else Hostname(sni),
        addresses=known,
        problem=problem,
    )


def ask(policy: object, case: Facts, boundary: Boundary = OPEN) -> Decision | Need:
    return judge(Policy.parse(policy), case, boundary)


def reason(policy: object, case: Facts, boundary: Boundary = OPEN) -> str:
    decision = ask(policy, case, boundary)
    assert not isinstance(decision, Need), decision
    return decision.reason


def dialled(decision: Decision | Need) -> list[str]:
    assert isinstance(decision, Relay | Inspect), decision
    return [str(address) for address in decision.dial.addresses]


DOMAINS = {"allow": ["a.example", "*.w.example"]}
RULES = {"allow": {"a.example": SET, "b.example": []}}
RANGES = {"subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.7/32"]}}
BOTH = {**RULES, **RANGES}


# -- deny-all and allow-all


@pytest.mark.parametrize("case", [facts("a.example"), facts(PUBLIC), facts("a.example", PUBLIC, sni="a.example")])
def test_deny_all_denies_before_anything_is_looked_up(case: Facts):
    """No question is asked, so nothing leaves, not even a DNS query."""
    assert reason("deny-all", case) == R.DENY_ALL


def test_allow_all_relays_any_protocol_to_public_addresses():
    """By name it must be resolved first; an address is itself."""
    assert ask("allow-all", facts("a.example")) is Need.ADDRESSES
    decision = ask("allow-all", facts("a.example", PUBLIC, port=22))
    assert decision == Relay(reason=R.ALLOW_ALL, matched=None, dial=Dial(Hostname("a.example"), (at(PUBLIC),), 22))
    assert ask("allow-all", facts(PUBLIC)) == Relay(reason=R.ALLOW_ALL, matched=None, dial=Dial(None, (at(PUBLIC),), 443))
    for wire in (Wire.HTTP, Wire.POSTGRES, Wire.UNKNOWN, Wire.SILENT, "redis"):
        assert reason("allow-all", facts(PUBLIC, wire=wire)) == R.ALLOW_ALL
    assert reason("allow-all", facts(PUBLIC, wire=Wire.TLS, problem="two names")) == R.ALLOW_ALL


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "169.254.169.254", "10.0.0.1", "100.64.0.1", "168.63.129.16", "0.0.0.0", "224.0.0.1", "240.0.0.1", "::1", "fe80::1",
        "fd00::1", "fd00:ec2::254", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::", "::127.0.0.1", "::ffff:127.0.0.1", "2001::1", "3fff::1",
    ],
)  # fmt: skip
def test_d3_d4_d5_d6_d12_no_mode_opens_what_is_not_public(address: str):
    """Allow-all means the public Internet; a domain rule means the name's public addresses."""
    assert reason("allow-all", facts(address)) == R.PRIVATE_ADDRESS
    assert reason("allow-all", facts("a.example", address)) == R.PRIVATE_ADDRESS
    assert reason(DOMAINS, facts("a.example", address, sni="a.example")) == R.PRIVATE_ADDRESS
    assert reason(RULES, facts("a.example", address, sni="a.example")) == R.PRIVATE_ADDRESS


def test_d12_allow_all_obeys_denied_ranges():
    """They are all that such a policy says."""
    policy = {"mode": "allow-all", "subnets": {"deny": ["93.184.216.34/32"]}}
    assert reason(policy, facts(PUBLIC)) == R.ADDRESS_DENIED
    assert dialled(ask(policy, facts("a.example", PUBLIC, OTHER))) == [OTHER]


# -- addresses


def test_d1_d2_denied_ranges_see_every_form_of_an_address():
    """A range for 10/8 closes it inside IPv6 as well; a range for the IPv6 closes that."""
    allowed = ["::/0", "0.0.0.0/0"]
    for text in (
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "::10.0.0.1",
        "::ffff:0:10.0.0.1",
        "2001:0:1:2::f5ff:fffe",
    ):
        policy = {"subnets": {"allow": allowed, "deny": ["10.0.0.0/8"]}}
        assert reason(policy, facts(text)) == R.ADDRESS_DENIED
    assert reason({"subnets": {"allow": allowed, "deny": ["2002::/16"]}}, facts("2002:808:808::")) == R.ADDRESS_DENIED
    assert reason({"subnets": {"allow": allowed, "deny": ["11.0.0.0/8"]}}, facts("2002:a00:1::")) == R.RANGE


def test_d8_denied_ranges_beat_domains_and_ranges():
    """At the address itself, whatever allowed the name."""
    policy = {"allow": ["a.example"], "subnets": {"allow": ["93.184.216.0/24"], "deny": ["93.184.216.34/32"]}}
    assert reason(policy, facts("a.example", PUBLIC, sni="a.example")) == R.ADDRESS_DENIED
    assert reason(policy, facts(PUBLIC, PUBLIC, sni="a.example")) == R.ADDRESS_DENIED
    assert dialled(ask(policy, facts("a.example", PUBLIC, OTHER, sni="a.example"))) == [OTHER]
    denied = ask({"subnets": policy["subnets"]}, facts(PUBLIC))
    assert isinstance(denied, Deny)
    assert denied.matched == "subnets.deny 93.184.216.34/32"


def test_d10_d11_bad_addresses_of_a_name_are_dropped():
    """The rest is dialled, in the resolver's order; none left is a denial."""
    case = facts("a.example", "10.0.0.1", PUBLIC, "::1", OTHER, sni="a.example")
    for policy in (DOMAINS, RULES, "allow-all"):
        assert dialled(ask(policy, case)) == [PUBLIC, OTHER]


def test_d10_a_name_that_turns_private_is_cut_on_the_connected_address():
    """The question is asked again with the address that the socket is connected to."""
    case = facts("a.example", "10.0.0.1", sni="a.example")
    assert reason(DOMAINS, case) == R.PRIVATE_ADDRESS


@pytest.mark.parametrize("name", ["localhost", "x.localhost", "metadata.google.internal", "host.docker.internal"])
def test_n14_names_of_the_host_are_judged_by_address(name: str):
    """A wildcard may match them; what they resolve to is closed."""
    policy = {"allow": ["*"]}
    assert ask(policy, facts(name)) is Need.ADDRESSES
    assert reason(policy, facts(name, "127.0.0.1", sni=name)) == R.PRIVATE_ADDRESS
    assert reason(policy, facts(name, "169.254.169.254", sni=name)) == R.PRIVATE_ADDRESS


def test_d4_the_machines_own_addresses_are_closed_even_if_public():
    """A server in a data centre has a public address; its own services there aren't meant. A range opens it."""
    boundary = Boundary(is_host_address=lambda address: address == at(PUBLIC))
    assert reason("allow-all", facts(PUBLIC), boundary) == R.PRIVATE_ADDRESS
    assert reason(DOMAINS, facts("a.example", PUBLIC, sni="a.example"), boundary) == R.PRIVATE_ADDRESS
    assert reason({"subnets": {"allow": [PUBLIC]}}, facts(PUBLIC), boundary) == R.RANGE
    assert reason("allow-all", facts("2002:5db8:d822::"), boundary) == R.PRIVATE_ADDRESS


def test_d4_the_proxys_listeners_are_closed_to_everything():
    """No range and no setting opens them, in no form of the address; other ports of that address are another matter."""
    boundary = Boundary(
        private=table("127.0.0.0/8", "::ffff:0:0:0/96"),
        listeners=lambda address, port: (str(address), port) == ("127.0.0.1", 8080),
    )
    policy = {"allow": ["a.example"], "subnets": {"allow": ["127.0.0.0/8", "::/0"]}}
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::ffff:0:127.0.0.1"):
        assert reason({"subnets": policy["subnets"]}, facts(address, port=8080), boundary) == R.PROXY_ADDRESS
        assert reason("allow-all", facts(address, port=8080), boundary) == R.PROXY_ADDRESS
        assert reason(policy, facts("a.example", address, port=8080, sni="a.example"), boundary) == R.PROXY_ADDRESS
    assert reason(policy, facts("127.0.0.1", port=8081), boundary) == R.RANGE


def test_the_operator_opens_private_networks_to_names_and_allow_all():
    """And closes with ``never``, which beats the policy."""
    boundary = Boundary(private=table("10.0.0.0/8"), never=table("10.9.0.0/16"))
    case = facts("a.example", "10.9.0.1", "10.1.0.1", sni="a.example")
    assert dialled(ask(DOMAINS, case, boundary)) == ["10.1.0.1"]
    assert dialled(ask("allow-all", facts("10.1.0.1"), boundary)) == ["10.1.0.1"]
    assert reason("allow-all", facts("10.9.0.1"), boundary) == R.ADDRESS_DENIED
    assert reason({"subnets": {"allow": ["10.0.0.0/8"]}}, facts("10.9.0.1"), boundary) == R.ADDRESS_DENIED
    assert reason({"subnets": {"allow": ["::/0"]}}, facts("2002:a09:1::"), boundary) == R.ADDRESS_DENIED


def test_d2_opening_a_translation_prefix_does_not_open_what_lies_behind_it():
    """On a network with NAT64 the operator lists its prefix; private IPv4 behind it stays closed."""
    boundary = Boundary(private=table("64:ff9b::/96"))
    assert reason("allow-all", facts("64:ff9b::5db8:d822"), boundary) == R.ALLOW_ALL
    assert reason("allow-all", facts("64:ff9b::a00:1"), boundary) == R.PRIVATE_ADDRESS


def test_a_range_opens_private_addresses_to_names_too():
    """The author asked for them explicitly."""
    policy = {"allow": ["a.example"], "subnets": {"allow": ["10.0.0.0/8"]}}
    assert dialled(ask(policy, facts("a.example", "10.0.0.1", "192.168.0.1", sni="a.example"))) == ["10.0.0.1"]


# -- targets that are addresses


def test_d14_a_range_opens_every_protocol_at_once():
    """From byte 0, without a look at the first bytes, so that servers that speak first work."""
    expected = Relay(reason=R.RANGE, matched="203.0.113.0/24", dial=Dial(None, (at("203.0.113.8"),), 22))
    assert ask(RANGES, facts("203.0.113.8", port=22)) == expected
    for case in (
        facts("203.0.113.8", port=22, wire=Wire.SILENT),
        facts("203.0.113.8", port=22, wire=Wire.HTTP),
        facts("203.0.113.8", port=22, sni="any.example"),
        facts("203.0.113.8", port=22, wire=Wire.TLS),
        facts("203.0.113.8", port=22, wire=Wire.TLS, problem="two names"),
    ):
        assert ask(RANGES, case) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, R.ADDRESS_DENIED),
        ("203.0.113.7", R.ADDRESS_DENIED),
        ("10.0.0.1", R.PRIVATE_ADDRESS),
        ("::1", R.PRIVATE_ADDRESS),
    ],
)
def test_d14_without_domains_an_address_outside_the_ranges_is_denied_at_once(address: str, expected: str):
    """Nothing in its first bytes could allow it."""
    assert reason(RANGES, facts(address)) == expected


def test_d14_with_domains_the_server_name_decides():
    """For a transparent front the address is all that is known at first; then it is ignored."""
    assert ask(DOMAINS, facts(PUBLIC)) is Need.WIRE
    assert ask(DOMAINS, facts(PUBLIC, sni="a.example")) is Need.ADDRESSES
    decision = ask(DOMAINS, facts("10.0.0.1", OTHER, port=8443, sni="a.example"))
    assert decision == Relay(reason=R.DOMAIN, matched="a.example", dial=Dial(Hostname("a.example"), (at(OTHER),), 8443))
    assert dialled(ask(DOMAINS, facts("127.0.0.1", OTHER, sni="x.w.example"))) == [OTHER]


@pytest.mark.parametrize("host", [PUBLIC, "10.0.0.1"])
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"sni": "evil.example"}, R.DOMAIN_NOT_ALLOWED),
        ({"wire": Wire.TLS}, R.NO_SNI),
        ({"sni": "a.example", "problem": "two names"}, R.BAD_CLIENT_HELLO),
        ({"wire": Wire.TLS, "problem": "no record"}, R.BAD_CLIENT_HELLO),
        ({"wire": Wire.HTTP}, R.PLAIN_HTTP),
        ({"wire": Wire.POSTGRES}, R.POSTGRES_PLAINTEXT),
        ({"wire": Wire.POSTGRES, "problem": "malformed"}, R.BAD_STARTUP),
        ({"wire": Wire.POSTGRES_TLS}, R.NO_SNI),
        ({"wire": Wire.POSTGRES_TLS, "sni": "a.example", "problem": "x"}, R.BAD_CLIENT_HELLO),
        ({"wire": Wire.UNKNOWN}, R.PROTOCOL_NOT_ALLOWED),
        ({"wire": Wire.SILENT}, R.PROTOCOL_NOT_ALLOWED),
        ({"wire": "redis"}, R.PROTOCOL_NOT_ALLOWED),
        ({"wire": "redis", "sni": "a.example"}, R.PROTOCOL_NOT_ALLOWED),
        ({"wire": Wire.HTTP, "sni": "a.example"}, R.PLAIN_HTTP),
    ],
)
def test_first_bytes_that_do_not_carry_an_allowed_name_are_denied(host: str, case: dict, expected: str):
    """Whatever can't be judged by name is denied, not taken for harmless; and nothing is resolved for it."""
    assert reason(DOMAINS, facts(host, **case)) == expected


# -- targets that are names


def test_r1_a_name_that_is_not_listed_is_never_resolved():
    """The query would carry its labels out; a range that it might resolve into makes no difference."""
    for policy in (DOMAINS, BOTH):
        assert reason(policy, facts("key123.evil.example")) == R.DOMAIN_NOT_ALLOWED
        assert reason(policy, facts("key123.evil.example", "203.0.113.8")) == R.DOMAIN_NOT_ALLOWED


def test_an_allowed_name_is_resolved_then_its_first_bytes_are_read():
    """In that order: a denial by address can then still be told in the front's own protocol."""
    assert ask(DOMAINS, facts("a.example")) is Need.ADDRESSES
    assert ask(DOMAINS, facts("a.example", PUBLIC)) is Need.WIRE
    assert reason(DOMAINS, facts("a.example", "10.0.0.1")) == R.PRIVATE_ADDRESS
    decision = ask(DOMAINS, facts("a.example", PUBLIC, sni="a.example", port=8443))
    assert decision == Relay(reason=R.DOMAIN, matched="a.example", dial=Dial(Hostname("a.example"), (at(PUBLIC),), 8443))


@pytest.mark.parametrize("sni", ["evil.example", "x.w.example", "example"])
@pytest.mark.parametrize("policy", [DOMAINS, {**RULES, "allow": {**RULES["allow"], "x.w.example": SET}}])
def test_t2_c7_the_server_name_must_be_the_name_that_was_asked_for(policy: object, sni: str):
    """Even if the policy allows both: credentials of one must not be had by dialling the other."""
    assert reason(policy, facts("a.example", PUBLIC, sni=sni)) == R.SNI_MISMATCH


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"wire": Wire.TLS}, R.NO_SNI),
        ({"sni": "a.example", "problem": "x"}, R.BAD_CLIENT_HELLO),
        ({"wire": Wire.HTTP}, R.PLAIN_HTTP),
        ({"wire": Wire.POSTGRES}, R.POSTGRES_PLAINTEXT),
        ({"wire": Wire.POSTGRES, "problem": "malformed"}, R.BAD_STARTUP),
        ({"wire": Wire.POSTGRES_TLS}, R.NO_SNI),
        ({"wire": Wire.POSTGRES_TLS, "sni": "a.example", "problem": "x"}, R.BAD_CLIENT_HELLO),
        ({"wire": Wire.UNKNOWN}, R.PROTOCOL_NOT_ALLOWED),
        ({"wire": Wire.SILENT}, R.PROTOCOL_NOT_ALLOWED),
        ({"wire": "redis", "sni": "a.example"}, R.PROTOCOL_NOT_ALLOWED),
    ],
)
def test_t5_t16_t19_an_allowed_name_needs_tls_that_says_so(case: dict, expected: str):
    """A name is only as good as the handshake that proves it."""
    for policy in (DOMAINS, RULES):
        assert reason(policy, facts("a.example", PUBLIC, **case)) == expected


def test_t19_plain_http_is_denied_with_its_own_reason_before_the_address():
    """So that the remedy names https and not the operator's networks; the name is still resolved first, for ranges."""
    assert ask(DOMAINS, facts("a.example", wire=Wire.HTTP)) is Need.ADDRESSES
    assert reason(DOMAINS, facts("a.example", "10.0.0.1", wire=Wire.HTTP)) == R.PLAIN_HTTP


def test_names_are_resolved_where_only_ranges_are_listed():
    """And must then lie in one; only the addresses that do are dialled."""
    assert ask(RANGES, facts("any.example")) is Need.ADDRESSES
    decision = ask(RANGES, facts("any.example", PUBLIC, "203.0.113.8", "203.0.113.7", port=22))
    assert decision == Relay(
        reason=R.RANGE, matched="203.0.113.0/24", dial=Dial(Hostname("any.example"), (at("203.0.113.8"),), 22)
    )
    assert reason(RANGES, facts("any.example", PUBLIC)) == R.ADDRESS_DENIED
    assert reason(RANGES, facts("any.example", "10.0.0.1")) == R.PRIVATE_ADDRESS


@pytest.mark.parametrize("policy", [DOMAINS, RANGES, RULES, "allow-all"])
def test_a_name_without_addresses_is_denied(policy: object):
    """The resolver should have said so; if it didn't, nothing is dialled."""
    name = "a.example"
    assert reason(policy, facts(name, unresolved=False, sni=name)) == R.ADDRESS_DENIED
    assert reason({"allow": ["a.example"]}, facts(PUBLIC, unresolved=False, sni=name)) == R.ADDRESS_DENIED


# -- rules


def test_rules_make_it_an_inspection():
    """With the rules of the matching pattern."""
    policy = Policy.parse(RULES)
    for host in ("a.example", PUBLIC):
        decision = judge(policy, facts(host, OTHER, sni="a.example"), OPEN)
        assert decision == Inspect(
            reason=R.DOMAIN,
            matched="a.example",
            dial=Dial(Hostname("a.example"), (at(OTHER),), 443),
            rules=policy.domains["a.example"],
        )
    assert isinstance(ask(RULES, facts("b.example", OTHER, sni="b.example")), Relay)


def test_rules_that_need_no_upstream_need_no_addresses():
    """A name that doesn't even exist can be answered for."""
    policy = {"allow": {"a.example": ANSWER}}
    assert ask(policy, facts("a.example")) is Need.WIRE
    assert ask(policy, facts(PUBLIC)) is Need.WIRE
    for host in ("a.example", PUBLIC):
        decision = ask(policy, facts(host, sni="a.example"))
        assert isinstance(decision, Inspect)
        assert decision.dial.addresses == ()
    assert reason(policy, facts("a.example", sni="b.example")) == R.SNI_MISMATCH
    assert reason(policy, facts("a.example", wire=Wire.HTTP)) == R.PLAIN_HTTP


def test_a_range_beside_rules_is_relayed_provisionally():
    """The client may still speak TLS for a domain with rules; a server that speaks first settles it."""
    first = ask(BOTH, facts("203.0.113.8"))
    assert isinstance(first, Relay)
    assert first.provisional
    for case in (
        facts("203.0.113.8", wire=Wire.SILENT),
        facts("203.0.113.8", sni="other.example"),
        facts("203.0.113.8", sni="b.example"),
    ):
        settled = ask(BOTH, case)
        assert isinstance(settled, Relay)
        assert not settled.provisional
        assert settled.matched == "203.0.113.0/24"
    no_rules = ask({**DOMAINS, **RANGES}, facts("203.0.113.8"))
    assert isinstance(no_rules, Relay)
    assert not no_rules.provisional


def test_a_name_with_rules_is_brokered_through_a_range_too():
    """The address the client chose is left aside: it goes to where the name resolves."""
    assert ask(BOTH, facts("203.0.113.8", sni="a.example")) is Need.ADDRESSES
    decision = ask(BOTH, facts("203.0.113.8", OTHER, sni="a.example"))
    assert isinstance(decision, Inspect)
    assert dialled(decision) == [OTHER]
    malformed = ask(BOTH, facts("203.0.113.8", sni="a.example", problem="two names"))
    assert isinstance(malformed, Relay)


def test_a_named_target_in_a_range_with_rules():
    """Relayed until the hello; then brokered for the same name, and refused for another with rules."""
    case = facts("a.example", PUBLIC, "203.0.113.8")
    first = ask(BOTH, case)
    assert isinstance(first, Relay)
    assert first.provisional
    assert dialled(first) == ["203.0.113.8"]
    inspected = ask(BOTH, replace(case, wire=Wire.TLS, server_name=Hostname("a.example")))
    assert isinstance(inspected, Inspect)
    assert dialled(inspected) == ["203.0.113.8"]
    other = facts("b.example", "203.0.113.8", sni="a.example")
    assert reason(BOTH, other) == R.SNI_MISMATCH
    assert isinstance(ask(BOTH, facts("b.example", "203.0.113.8", sni="c.example")), Relay)
    assert isinstance(ask(BOTH, facts("b.example", "203.0.113.8", sni="b.example")), Relay)


# -- updates, and what is said


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("deny-all", R.DENY_ALL),
        ({"allow": ["other.example"]}, R.DOMAIN_NOT_ALLOWED),
        ({"allow": ["a.example"], "subnets": {"deny": [PUBLIC]}}, R.ADDRESS_DENIED),
        ({"allow": ["*.example"]}, R.DOMAIN),
        ("allow-all", R.ALLOW_ALL),
    ],
)
def test_l4_a_live_flow_is_judged_by_the_same_function(policy: object, expected: str):
    """With the facts it was admitted on and the address it is connected to; no question is left open."""
    assert reason(policy, facts("a.example", PUBLIC, sni="a.example")) == expected


def test_denials_tell_the_line_that_would_allow():
    """In the document's own words; for what the operator can open too, both."""
    denied = {
        "name": ask(DOMAINS, facts("b.example")),
        "address": ask(RANGES, facts(PUBLIC)),
        "private": ask(RANGES, facts("10.0.0.1")),
        "allow-all": ask("allow-all", facts("::1")),
        "http": ask(DOMAINS, facts(PUBLIC, wire=Wire.HTTP)),
        "deny-all": ask("deny-all", facts("b.example")),
    }
    remedies = {key: decision.remedy for key, decision in denied.items() if isinstance(decision, Deny)}
    assert remedies == {
        "name": '"allow": ["b.example"]',
        "address": f'"subnets": {{"allow": ["{PUBLIC}/32"]}}',
        "private": '"subnets": {"allow": ["10.0.0.1/32"]}, or the operator\'s private_networks with "10.0.0.1/32"',
        "allow-all": 'the operator\'s private_networks with "::1/128"',
        "http": f'use https, or "subnets": {{"allow": ["{PUBLIC}/32"]}}',
        "deny-all": '"allow": ["b.example"]',
    }


def test_a_range_opens_what_is_private_to_domain_rules_too():
    """As far as the range goes."""
    policy = Policy.parse({"allow": ["a.example"], "subnets": {"allow": ["10.0.0.0/8"]}})
    assert permitted(policy, [at("192.168.0.1"), at("10.0.0.1")], 443, OPEN) == (at("10.0.0.1"),)


def test_forwarded_requests_go_to_permitted_addresses_only():
    """The target of a forwardURL is resolved like any other, and its addresses are held to the same."""
    policy = Policy.parse({**RULES, "subnets": {"deny": [OTHER]}})
    assert permitted(policy, [at("10.0.0.1"), at(OTHER), at(PUBLIC)], 443, OPEN) == (at(PUBLIC),)
    nothing = permitted(Policy.parse("deny-all"), [at(PUBLIC)], 443, OPEN)
    assert isinstance(nothing, Deny)
    assert nothing.reason == R.DENY_ALL
    denied = permitted(policy, [at("10.0.0.1")], 443, OPEN)
    assert isinstance(denied, Deny)
    assert denied.reason == R.PRIVATE_ADDRESS


# -- properties

ADDRESSES = st.sampled_from(
    [
        "93.184.216.34",
        "93.184.216.35",
        "10.0.0.1",
        "203.0.113.8",
        "127.0.0.1",
        "::1",
        "2606:4700::1",
        "2002:a00:1::",
        "64:ff9b::a00:1",
    ]
).map(at)
NETWORKS = st.sampled_from(
    [
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "93.184.216.0/24",
        "93.184.216.34/32",
        "203.0.113.0/24",
        "127.0.0.0/8",
        "2002::/16",
        "64:ff9b::/96",
    ]
)
NAMES = st.sampled_from(["a.example", "b.example", "x.w.example", "evil.test"]).map(Hostname)
POLICIES = st.fixed_dictionaries(
    {
        "allow": st.dictionaries(
            st.sampled_from(["a.example", "*.w.example", "*.example", "*"]),
            st.sampled_from([[], SET, ANSWER]),
            max_size=3,
        ),
        "subnets": st.fixed_dictionaries({"allow": st.lists(NETWORKS, max_size=2), "deny": st.lists(NETWORKS, max_size=1)}),
    }
) | st.fixed_dictionaries(
    {"mode": st.just("allow-all"), "subnets": st.fixed_dictionaries({"deny": st.lists(NETWORKS, max_size=2)})}
)
FACTS = st.builds(
    Facts,
    host=NAMES | ADDRESSES,
    port=st.sampled_from([443, 8080]),
    wire=st.sampled_from([None, *Wire, "redis"]),
    server_name=st.none() | NAMES,
    addresses=st.none() | st.lists(ADDRESSES, max_size=3).map(tuple),
    problem=st.none() | st.just("malformed"),
)
BOUNDARY = Boundary(
    never=table("203.0.113.8/32"),
    private=table("10.0.0.0/8"),
    listeners=lambda address, port: (str(address), port) == ("127.0.0.1", 8080),
    is_host_address=lambda address: str(address) == "93.184.216.35",
)


def with_denied(document: dict, network: str) -> dict:
    subnets = document.get("subnets", {})
    return {**document, "subnets": {**subnets, "deny": [*subnets.get("deny", []), network]}}


@given(POLICIES, FACTS, NETWORKS)
def test_d8_a_denied_range_never_allows_anything(document: dict, case: Facts, network: str):
    """One more such range turns no denial into anything else, and adds no address to what is dialled."""
    before = ask(document, case, BOUNDARY)
    after = ask(with_denied(document, network), case, BOUNDARY)
    if isinstance(before, Deny):
        assert isinstance(after, Deny)
    if isinstance(before, Relay | Inspect) and isinstance(after, Relay | Inspect) and before.reason == after.reason:
        assert set(after.dial.addresses) <= set(before.dial.addresses)


@given(POLICIES, FACTS)
def test_nothing_is_dialled_that_is_closed(document: dict, case: Facts):
    """Of whatever is allowed: no listener, no never, no denied range, in any form, and nothing private that isn't opened."""
    policy = Policy.parse(document)
    decision = judge(policy, case, BOUNDARY)
    if isinstance(decision, Need):
        return
    if isinstance(decision, Deny):
        assert decision.detail
        return
    assert isinstance(decision, Relay | Inspect)
    if not decision.dial.addresses:
        assert isinstance(decision, Inspect)
        assert not decision.rules.needs_upstream
    for address in decision.dial.addresses:
        for form in forms(address):
            assert form not in policy.deny
            assert form not in BOUNDARY.never
            assert not BOUNDARY.listeners(form, case.port)
        opened = address in policy.allow or all(
            form in BOUNDARY.private or (classify(form) is AddressClass.PUBLIC and str(form) != "93.184.216.35")
            for form in forms(address)
        )
        assert opened


@given(POLICIES, FACTS)
def test_a_need_is_for_something_unknown(document: dict, case: Facts):
    """Else the connection would ask for ever."""
    decision = ask(document, case, BOUNDARY)
    if decision is Need.WIRE:
        assert case.wire is None
    if decision is Need.ADDRESSES:
        assert case.addresses is None


@given(POLICIES, FACTS)
def test_rules_apply_only_to_the_verified_name(document: dict, case: Facts):
    """An inspection is for the server name in the hello, and for the name that was asked for, if one was."""
    decision = ask(document, case, BOUNDARY)
    if isinstance(decision, Inspect):
        assert decision.dial.name == case.server_name
        assert case.problem is None
        assert case.wire == Wire.TLS
        assert case.host == case.server_name or not isinstance(case.host, str)


# -- PostgreSQL

POSTGRES_RULES = {"allow": {"a.example": SET, "gone.example": ANSWER}}


@pytest.mark.parametrize("host", ["a.example", PUBLIC])
@pytest.mark.parametrize("policy", [DOMAINS, POSTGRES_RULES])
def test_p1_a_request_for_encryption_asks_for_the_hello(host: str, policy: object):
    """The name is in the ClientHello alone, so nothing is decided, and nobody dialled, before that."""
    known = facts(host, PUBLIC, wire=Wire.POSTGRES_REQUEST)
    assert ask(policy, known) is Need.HELLO
    decision = ask(policy, replace(known, wire=Wire.POSTGRES_TLS, server_name=Hostname("a.example")))
    assert isinstance(decision, Relay)
    assert (decision.reason, decision.only_postgres) == (R.DOMAIN, False)


@pytest.mark.parametrize("host", ["a.example", PUBLIC])
def test_c9_p7_p13_rules_never_apply_to_postgres(host: str):
    """Both ways into its TLS; in the direct one the server must prove it, since one word of ALPN would get around rules."""
    told = facts(host, PUBLIC, wire=Wire.POSTGRES_TLS, sni="a.example")
    direct = replace(facts(host, PUBLIC, sni="a.example"), alpn=(b"postgresql",))
    for known, unproven in ((told, False), (direct, True)):
        decision = ask(POSTGRES_RULES, known)
        assert isinstance(decision, Relay)
        assert decision.only_postgres is unproven
    assert ask(DOMAINS, direct) == replace(ask(POSTGRES_RULES, direct), only_postgres=False)
    for alpn in ((), (b"http/1.1", b"postgresql"), (b"postgresql", b"h2"), (b"h2",)):
        assert isinstance(ask(POSTGRES_RULES, replace(direct, alpn=alpn)), Inspect)


def test_c9_rules_that_answer_for_a_server_do_not_stand_in_for_a_database():
    """It is resolved and dialled, though its requests never would be."""
    for name in ("gone.example", PUBLIC):
        known = facts(name, wire=Wire.POSTGRES_TLS, sni="gone.example")
        assert ask(POSTGRES_RULES, known) is Need.ADDRESSES
        decision = ask(POSTGRES_RULES, replace(known, addresses=(at(OTHER),)))
        assert isinstance(decision, Relay)
        assert dialled(decision) == [OTHER]


@pytest.mark.parametrize("wire", [Wire.POSTGRES, Wire.POSTGRES_REQUEST, Wire.POSTGRES_TLS])
def test_p4_p8_ranges_and_allow_all_let_every_start_up_pass(wire: Wire):
    """Untouched, whatever it is."""
    for policy in (
        "allow-all",
        {"subnets": {"allow": [f"{PUBLIC}/32"]}},
        {**POSTGRES_RULES, "subnets": {"allow": [f"{PUBLIC}/32"]}},
    ):
        for host in ("a.example", PUBLIC):
            decision = ask(policy, facts(host, PUBLIC, wire=wire))
            assert isinstance(decision, Relay)
            assert decision.only_postgres is False


@pytest.mark.parametrize("sni", ["evil.example", "x.w.example"])
def test_p11_the_name_of_the_handshake_must_be_the_name_asked_for(sni: str):
    assert reason(DOMAINS, facts("a.example", PUBLIC, wire=Wire.POSTGRES_TLS, sni=sni)) == R.SNI_MISMATCH
    assert reason(DOMAINS, facts(PUBLIC, wire=Wire.POSTGRES_TLS, sni="evil.example")) == R.DOMAIN_NOT_ALLOWED
