"""Whether something allowed stands below a name."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.hostname import canonical_hostname
from sbxproxy.policy import Policy

CASES = [
    ("api.example.com", ["", "com", "example.com"], ["api.example.com", "x.api.example.com", "other.com", "ample.com", "org"]),
    ("*.example.com", ["", "com", "example.com", "a.example.com"], ["org", "b.com"]),
    ("s3.*.aws.com", ["", "com", "aws.com", "eu.aws.com"], ["s3.eu.aws.com", "a.b.aws.com", "x.com"]),
    ("*.s3.*.com", ["com", "eu.com", "s3.eu.com", "bucket.s3.eu.com"], ["s4.eu.com", "org"]),
    ("*", ["", "com", "a.b"], []),
]


@pytest.mark.parametrize(("pattern", "above", "not_above"), CASES, ids=[case[0] for case in CASES])
def test_r6_ancestors_of_a_pattern_are_known(pattern, above, not_above):
    policy = Policy.parse({"allow": [pattern]})
    assert [name for name in above if not policy.covers_below(name)] == []
    assert [name for name in not_above if policy.covers_below(name)] == []


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("allow-all", True), ("deny-all", False), ({"subnets": {"allow": ["192.0.2.0/24"]}}, True), ({"allow": ["a.b"]}, False)],
)
def test_modes(policy, expected):
    assert Policy.parse(policy).covers_below("example.com") is expected


LABEL = st.sampled_from(["a", "b", "*"])
PATTERNS = st.lists(st.lists(LABEL, min_size=1, max_size=4).map(".".join), min_size=1, max_size=4)
NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(".".join)


@given(PATTERNS, NAMES)
def test_r6_it_is_what_trying_names_below_shows(patterns, name):
    """ "No such name" would deny what is below, so not one allowed name may be overlooked."""
    policy = Policy.parse({"allow": patterns})
    letters = ["a", "b", "c"]
    fronts = list(letters)
    fronts += [f"{one}.{two}" for one in letters for two in letters]
    fronts += [f"{one}.{two}.{three}" for one in letters for two in letters for three in letters]
    below = [canonical_hostname(f"{front}.{name}") for front in fronts]
    assert policy.covers_below(name) == any(policy.match_domain(found) is not None for found in below if found)


def test_many_names_are_no_slower():
    policy = Policy.parse({"allow": [f"host{n}.part{n % 997}.example.com" for n in range(100_000)]})
    started = time.process_time()
    for n in range(20_000):
        assert policy.covers_below(f"part{n % 997}.example.com")
        assert not policy.covers_below(f"host{n}.other.example.com")
    assert time.process_time() - started < 20
