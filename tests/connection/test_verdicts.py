"""Verdicts kept for a moment are those that the judge would give."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from sbxproxy.address import PrefixTable, parse_network
from sbxproxy.connection import verdicts as module
from sbxproxy.connection.verdicts import KEEP, MOST, Verdicts
from sbxproxy.hostname import Hostname
from sbxproxy.policy import Boundary, Policy
from sbxproxy.policy.decision import Deny, Facts, Relay

HERE = IPv4Address("192.0.2.1")
PRIVATE = PrefixTable([parse_network("192.0.2.0/24")])
FACTS = Facts(host=HERE, port=443, wire="tls", server_name=Hostname("a.example"), addresses=(HERE,))


@pytest.fixture
def asked(monkeypatch):
    """Count how often the judge is really asked."""
    calls = []
    real = module.judge

    def judge(policy, facts, boundary):
        calls.append(facts)
        return real(policy, facts, boundary)

    monkeypatch.setattr(module, "judge", judge)
    return calls


def test_the_same_question_is_judged_once(asked):
    verdicts = Verdicts(Boundary(private=PRIVATE), clock=lambda: 0.0)
    policy = Policy.parse({"allow": ["a.example"]})
    first = verdicts.judge(policy, FACTS)
    assert isinstance(first, Relay)
    assert verdicts.judge(policy, FACTS.at((HERE,))) is first
    assert len(asked) == 1
    assert isinstance(verdicts.judge(policy, FACTS.at((IPv4Address("192.0.2.2"),))), Relay)
    assert len(asked) == 2


def test_l1_another_policy_is_asked_at_once():
    """An update must not be answered from before it."""
    verdicts = Verdicts(Boundary(private=PRIVATE), clock=lambda: 0.0)
    assert isinstance(verdicts.judge(Policy.parse({"allow": ["a.example"]}), FACTS), Relay)
    assert isinstance(verdicts.judge(Policy.parse("deny-all"), FACTS), Deny)
    assert isinstance(verdicts.judge(Policy.parse({"allow": ["a.example"]}), FACTS), Relay)


def test_a_new_listener_of_the_proxy_is_closed_at_once():
    own: set[tuple[object, int]] = set()
    epoch = 0
    boundary = Boundary(private=PRIVATE, listeners=lambda *where: where in own, epoch=lambda: epoch)
    verdicts = Verdicts(boundary, clock=lambda: 0.0)
    policy = Policy.parse({"allow": ["a.example"]})
    assert isinstance(verdicts.judge(policy, FACTS), Relay)
    own.add((HERE, 443))
    epoch += 1
    assert isinstance(verdicts.judge(policy, FACTS), Deny)


def test_what_changes_unseen_is_noticed_soon():
    now, private = 0.0, set()
    boundary = Boundary(private=PrefixTable(), is_host_address=lambda address: address in private)
    verdicts = Verdicts(boundary, clock=lambda: now)
    policy = Policy.parse({"allow": ["a.example"]})
    public = IPv4Address("8.8.8.8")
    facts = FACTS.at((public,))
    assert isinstance(verdicts.judge(policy, facts), Relay)
    private.add(public)
    now = KEEP - 0.01
    assert isinstance(verdicts.judge(policy, facts), Relay)
    now = KEEP
    assert isinstance(verdicts.judge(policy, facts), Deny)


def test_x1_what_is_kept_is_bounded(asked):
    verdicts = Verdicts(Boundary(private=PRIVATE), clock=lambda: 0.0)
    policy = Policy.parse({"allow": ["*.example"]})
    for number in range(3 * MOST):
        verdicts.judge(policy, Facts(host=HERE, port=443, wire="tls", server_name=Hostname(f"h{number}.example")))
        assert len(verdicts._kept) <= MOST
    long = Facts(host=HERE, port=443, wire="tls", server_name=Hostname("a.example"), alpn=tuple(b"%d" % n for n in range(1000)))
    asked.clear()
    assert verdicts.judge(policy, long) == verdicts.judge(policy, long)
    assert len(asked) == 2
