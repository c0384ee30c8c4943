"""A policy on its way to a worker: the same there as here, values and all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.policy import Policy
from sbxproxy.workers.document import written

EVERYTHING = {
    "allow": {
        "plain.example": [],
        "*.wild.example": [
            {
                "match": {
                    "path": {"startsWith": "/a"},
                    "method": ["GET", "POST"],
                    "queryString": [{"key": {"exact": "k"}, "value": {"regex": "^v+$"}}],
                    "headers": [{"key": {"exact": "X-A"}}],
                },
                "transform": [
                    {"headers": {"Authorization": "Bearer ${secret:a}-${secret:b}$${not}", "x-plain": "literal"}},
                    {"plugin": "thing", "config": {"n": [1, None, True, {"text": "${secret:c} $${x}"}]}},
                    {"plugin": "bare"},
                ],
            },
            {"match": {"path": {"exact": "/f"}}, "forwardURL": "https://other.example:8443/base"},
            {"response": {"statusCode": 418, "contentType": "text/plain", "body": "tëapot"}},
        ],
        "empty.example": [{"response": {"statusCode": 204}}, {"transform": []}],
    },
    "subnets": {"allow": ["203.0.113.0/24", "2001:db8::/32"], "deny": ["203.0.113.9"]},
}

POLICIES = [
    "allow-all",
    "deny-all",
    "default-deny",
    {"mode": "allow-all", "subnets": {"deny": ["10.0.0.0/8"]}},
    {"mode": "deny-all", "subnets": {"deny": ["10.0.0.0/8"]}},
    {"allow": ["a.example", "*.b.example"]},
    {"allow": ["*"]},
    {"subnets": {"allow": ["10.0.0.0/8"]}},
    {"allow": [], "subnets": {"deny": ["10.0.0.0/8"]}},
    {"allowedDomains": ["a.example"], "injectionRules": [{"domain": "a.example", "headers": {"x": "y"}}]},
    EVERYTHING,
]


@pytest.mark.parametrize("document", POLICIES)
def test_a_policy_is_the_same_after_its_way(document: object) -> None:
    policy = Policy.parse(document)
    again = Policy.parse(json.loads(json.dumps(written(policy))))
    assert again == policy
    assert (again.secrets, again.plugins, list(again.domains)) == (policy.secrets, policy.plugins, list(policy.domains))
    assert again.document() == policy.document()


@given(st.lists(st.sampled_from(["${secret:a}", "$${", "$", "{", "}", "$$", "x", "secret:a", " "]), min_size=1, max_size=8))
def test_any_header_value_is_the_same_after_its_way(parts: list[str]) -> None:
    """Whatever looks like a secret's name and isn't must not become one."""
    document = {"allow": {"a.example": [{"transform": [{"headers": {"x": "".join(parts)}}]}]}}
    try:
        policy = Policy.parse(document)
    except ValueError:
        return
    assert Policy.parse(written(policy)) == policy
