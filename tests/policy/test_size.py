"""Large policies load, and are asked like small ones."""

import time

import pytest

from sbxproxy.address import parse_address
from sbxproxy.hostname import Hostname
from sbxproxy.policy.decision import Facts, Need, Reason, Wire
from sbxproxy.policy.judge import judge
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reach import Boundary

COUNT = 100_000
HANG = 20.0
"""Seconds. Loading takes about one; this only tells a scan per entry from none."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A third wildcards, and ranges that don't touch."""
    names = [f"*.w{n}.example.org" if n % 3 == 0 else f"host{n}.example{n % 997}.com" for n in range(COUNT)]
    ranges = [f"{1 + n % 200}.{n >> 8 & 255}.{n & 255}.128/25" for n in range(COUNT)]
    started = time.process_time()
    loaded = Policy.parse({"allow": names, "subnets": {"allow": ranges}})
    assert time.process_time() - started < HANG
    return loaded


@pytest.mark.parametrize(
    ("host", "address", "expected"),
    [
        ("host1.example1.com", "212.1.1.1", Reason.DOMAIN),
        ("host99998.example298.com", "212.1.1.1", Reason.DOMAIN),
        ("a.b.w99999.example.org", "212.1.1.1", Reason.DOMAIN),
        ("w99999.example.org", "212.1.1.1", Reason.DOMAIN_NOT_ALLOWED),
        ("host100000.example300.com", "212.1.1.1", Reason.DOMAIN_NOT_ALLOWED),
        ("host1.example1.com", "1.0.0.200", Reason.RANGE),
        ("host1.example1.com", "10.0.0.1", Reason.PRIVATE_ADDRESS),
    ],
)
def test_decisions_among_a_hundred_thousand(policy: Policy, host: str, address: str, expected: str):
    """First, last, wildcard, next to one, in a range and in none."""
    resolved = parse_address(address)
    assert resolved is not None
    facts = Facts(host=Hostname(host), port=443, wire=Wire.TLS, server_name=Hostname(host), addresses=(resolved,))
    decision = judge(policy, facts, Boundary())
    assert not isinstance(decision, Need)
    assert decision.reason == expected


def test_many_decisions_do_not_scan(policy: Policy):
    """Ten thousand of them; a look at every entry would take minutes."""
    started = time.process_time()
    for n in range(10_000):
        name = Hostname(f"x.w{n}.example.org")
        judge(policy, Facts(host=name, port=443, wire=Wire.TLS, server_name=name), Boundary())
    assert time.process_time() - started < HANG
