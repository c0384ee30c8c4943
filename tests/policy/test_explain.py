"""Explanations come from the code that decides, and say what they assumed."""

import pytest

from sbxproxy.address import parse_address, parse_network
from sbxproxy.policy.decision import Deny, Inspect, Reason, Relay, Wire
from sbxproxy.policy.explain import Explanation, HttpRequest, Target, explain, parse_target
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reach import Boundary

POLICY = Policy.parse(
    {
        "allow": {
            "api.example.com": [
                {
                    "match": {"path": {"startsWith": "/v1/"}, "method": ["GET"]},
                    "transform": [{"headers": {"authorization": "s3cret"}}],
                },
                {"match": {"path": {"exact": "/teapot"}}, "response": {"statusCode": 418}},
            ],
            "*.example.org": [],
        },
        "subnets": {"allow": ["203.0.113.0/24"]},
    }
)


def ask(target: str, policy: Policy = POLICY, boundary: Boundary | None = None, **more) -> Explanation:
    return explain(policy, parse_target(target), boundary or Boundary(), **more)


@pytest.mark.parametrize(
    ("text", "host", "port", "wire", "path"),
    [
        ("example.com", "example.com", 443, None, None),
        ("EXAMPLE.com.:8443", "example.com", 8443, None, None),
        ("203.0.113.7:22", "203.0.113.7", 22, None, None),
        ("[2001:db8::1]:22", "2001:db8::1", 22, None, None),
        ("[::ffff:10.0.0.1]:22", "10.0.0.1", 22, None, None),
        ("https://example.com", "example.com", 443, Wire.TLS, None),
        ("https://example.com:8443/a?b=c#d", "example.com", 8443, Wire.TLS, "/a?b=c"),
        ("https://example.com?b", "example.com", 443, Wire.TLS, "/?b"),
        ("http://example.com/a", "example.com", 80, Wire.HTTP, "/a"),
        ("postgres://u:p@db.example.com/name", "db.example.com", 5432, Wire.POSTGRES_TLS, None),
        ("postgresql://db.example.com:6432", "db.example.com", 6432, Wire.POSTGRES_TLS, None),
    ],
)
def test_targets_are_read(text: str, host: str, port: int, wire: Wire | None, path: str | None):
    """As people write them."""
    target = parse_target(text)
    assert (str(target.host), target.port, target.wire, target.path) == (host, port, wire, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":443",
        "example.com:0",
        "example.com:65536",
        "example.com:x",
        "ftp://example.com",
        "a b",
        "example.com/path",
        "u@example.com",
        "[::1",
        "[fe80::1%lo]:1",
        "127.1",
        "https://",
        "https://a..b/",
    ],
)
def test_what_is_no_target(text: str):
    """One error for all, without the text."""
    with pytest.raises(ValueError, match=r"host:port|schemes"):
        parse_target(text)


def test_an_allowed_domain_is_explained_with_its_rule():
    """Pattern, rule and what it does, but no value; the path of the URL is tried as a GET."""
    explanation = ask("https://api.example.com/v1/x")
    assert isinstance(explanation.decision, Inspect)
    assert explanation.allowed
    assert explanation.reason == Reason.DOMAIN
    assert explanation.pattern == "api.example.com"
    assert (explanation.rule, explanation.action) == (0, "sets authorization")
    assert explanation.dns
    assert explanation.decision.dial.addresses == ()
    assert any("assumed that the name resolves to a public address" in note for note in explanation.notes)
    assert "s3cret" not in repr(explanation)


@pytest.mark.parametrize(
    ("target", "request_", "rule", "note"),
    [
        ("https://api.example.com/teapot", None, 1, "resolves"),
        ("https://api.example.com/other", None, None, "passes unchanged"),
        (
            "https://api.example.com/v1/x",
            HttpRequest(method="POST", target="/v1/x"),
            None,
            "passes unchanged",
        ),
        ("api.example.com", None, None, "no request was given"),
        ("api.example.com", HttpRequest(target="/v1/y"), 0, "assumed that the client speaks TLS"),
    ],
)
def test_requests_are_tried_with_the_rules(target: str, request_: HttpRequest | None, rule: int | None, note: str):
    """A given request goes before the path of the URL."""
    explanation = ask(target, request=request_)
    assert explanation.rule == rule
    assert any(note in text for text in explanation.notes)


def test_h20_an_ambiguous_path_is_explained_as_denied():
    """Where rules look at paths; the connection itself would be allowed."""
    explanation = ask("api.example.com", request=HttpRequest(target="/v1/../admin"))
    assert explanation.reason == Reason.AMBIGUOUS_PATH
    assert not explanation.allowed


@pytest.mark.parametrize(
    ("target", "reason", "dns"),
    [
        ("evil.test", Reason.DOMAIN_NOT_ALLOWED, False),
        ("http://a.example.org/", Reason.PLAIN_HTTP, True),
        ("postgres://a.example.org", Reason.DOMAIN, True),
        ("postgresql://a.example.org/db?sslmode=disable", Reason.POSTGRES_PLAINTEXT, True),
        ("postgres://93.184.216.34", Reason.NO_SNI, None),
        ("postgres://203.0.113.7/?sslmode=disable", Reason.RANGE, None),
        ("93.184.216.34", Reason.NO_SNI, None),
        ("http://93.184.216.34/", Reason.PLAIN_HTTP, None),
        ("a.example.org", Reason.DOMAIN, True),
        ("203.0.113.7:22", Reason.RANGE, None),
    ],
)
def test_other_targets(target: str, reason: str, dns: bool | None):
    """The reason is that of a live connection."""
    explanation = ask(target)
    assert explanation.reason == reason
    assert explanation.dns is dns


def test_ranges_beside_rules_are_provisional():
    """Said in a note; the address stays in the decision, since it was given."""
    explanation = ask("203.0.113.7:22")
    assert isinstance(explanation.decision, Relay)
    assert explanation.pattern == "203.0.113.0/24"
    assert explanation.decision.dial.addresses == (parse_address("203.0.113.7"),)
    assert any("ClientHello" in note for note in explanation.notes)


def test_given_addresses_are_judged():
    """And the operator's boundary with them."""
    private = [parse_address("10.0.0.1")]
    explanation = ask("a.example.org", addresses=private)
    assert isinstance(explanation.decision, Deny)
    assert explanation.reason == Reason.PRIVATE_ADDRESS
    assert not any("assumed that the name" in note for note in explanation.notes)
    from sbxproxy.address import PrefixTable

    opened = ask(
        "a.example.org",
        boundary=Boundary(private=PrefixTable([parse_network("10.0.0.0/8")])),
        addresses=private,
    )
    assert opened.reason == Reason.DOMAIN
    assert opened.decision.dial.addresses == tuple(private)  # type: ignore[union-attr]
    assert ask("a.example.org", addresses=[]).reason == Reason.ADDRESS_DENIED


def test_the_assumed_address_avoids_the_ranges_of_the_policy():
    """It stands for somewhere on the Internet; ranges that hold everything hold it too."""
    ranges = Policy.parse({"allow": ["a.example"], "subnets": {"allow": ["93.0.0.0/8"], "deny": ["1.0.0.0/8"]}})
    assert ask("a.example", ranges).reason == Reason.DOMAIN
    everything = Policy.parse({"allow": ["a.example"], "subnets": {"deny": ["0.0.0.0/0"]}})
    assert ask("a.example", everything).reason == Reason.ADDRESS_DENIED
    assert ask("anything.test:22", Policy.parse({"subnets": {"allow": ["0.0.0.0/0"]}})).reason == Reason.RANGE


def test_modes():
    """Nothing is looked up for deny-all, everything for allow-all."""
    denied = ask("a.example", Policy.parse("deny-all"))
    assert (denied.reason, denied.dns, denied.notes) == (Reason.DENY_ALL, False, ())
    allowed = ask("a.example:22", Policy.parse("allow-all"))
    assert (allowed.reason, allowed.dns, allowed.pattern) == (Reason.ALLOW_ALL, True, None)


def test_a_denied_range_is_named():
    """As the line that denies."""
    policy = Policy.parse({"mode": "allow-all", "subnets": {"deny": ["93.184.216.0/24"]}})
    assert (
        explain(policy, Target(host=parse_address("93.184.216.34"), port=443), Boundary()).pattern
        == "subnets.deny 93.184.216.0/24"
    )


def test_postgres_notes_tell_what_passes_and_that_rules_do_not_apply():
    """As a person would ask it; by range nothing of it is worth a word."""
    policy = Policy.parse(
        {"allow": {"db.example.org": [{"transform": [{"headers": {"x": "y"}}]}]}, "subnets": {"allow": ["203.0.113.0/24"]}}
    )
    told = explain(policy, parse_target("postgres://db.example.org"), Boundary())
    assert isinstance(told.decision, Relay)
    assert any("sslmode=disable" in note for note in told.notes)
    assert any("rules don't apply" in note for note in told.notes)
    by_range = explain(policy, parse_target("postgres://203.0.113.9"), Boundary())
    assert not any("sslmode" in note for note in by_range.notes)
