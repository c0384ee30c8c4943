"""Which rule a request falls under."""

import pytest

from sbxproxy.policy.action import Forward, Respond
from sbxproxy.policy.model import Policy
from sbxproxy.policy.rules import RuleSet

SET = {"transform": [{"headers": {"x": "1"}}]}
FORWARD = {"forwardURL": "https://f.example"}
RESPOND = {"response": {"statusCode": 403}}


def rules_of(*rules: dict) -> RuleSet:
    found = Policy.parse({"allow": {"a.example": list(rules)}}).domains["a.example"]
    assert found is not None
    return found


def select(rules: RuleSet, target: str = "/", *, method: str = "GET", headers=()) -> int | None:
    rule = rules.select(method=method, target=target, headers=headers)
    return None if rule is None else rule.index


def test_the_first_rule_that_fits_is_the_one():
    """Later ones don't add to it."""
    rules = rules_of(
        {"match": {"path": {"startsWith": "/v1/"}, "method": ["GET"]}, **SET},
        {"match": {"path": {"startsWith": "/v1/"}}, **RESPOND},
        {"match": {"queryString": [{"key": {"exact": "q"}}]}, **FORWARD},
    )
    assert select(rules, "/v1/x?q") == 0
    assert select(rules, "/v1/x", method="POST") == 1
    assert select(rules, "/v2/x?q=1") == 2
    assert select(rules, "/v2/x") is None


def test_headers_may_be_an_iterator():
    """Every rule sees all of them."""
    rules = rules_of(
        {"match": {"headers": [{"key": {"exact": "a"}}]}, **SET},
        {"match": {"headers": [{"key": {"exact": "b"}}]}, **SET},
    )
    assert select(rules, headers=iter([(b"b", b"")])) == 1


def test_h20_no_spelling_of_another_path_fits_a_rule():
    """An ambiguous path fits none, whoever forgets to refuse it."""
    rules = rules_of({"match": {"path": {"startsWith": "/v1/"}}, **SET})
    assert rules.matches_path
    for target in ("/v1/../admin", "/v1/%2e%2e/admin", "/v1/..;/admin", "/v1//x"):
        assert select(rules, target) is None


def test_h13_rule_sets_tell_what_they_look_at():
    """So that the caller drops headers that override the method only where that matters."""
    rules = rules_of({"match": {"method": {"exact": "POST"}}, **SET})
    assert rules.matches_method
    assert not rules.matches_path
    assert select(rules, method="POST") == 0
    assert select(rules, method="post") is None
    assert not rules_of(SET).matches_method


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([RESPOND], False),
        ([FORWARD], False),
        ([{"match": {}, **RESPOND}], False),
        ([FORWARD, SET], False),
        ([SET], True),
        ([SET, FORWARD], True),
        ([{"match": {"method": ["GET"]}, **RESPOND}], True),
        ([{"match": {"method": ["GET"]}, **RESPOND}, RESPOND], True),
    ],
)
def test_needs_upstream(rules: list[dict], expected: bool):
    """False only where the first rule takes every request and sends it nowhere near the domain."""
    assert rules_of(*rules).needs_upstream is expected


def test_secrets_and_plugins_are_collected():
    """Each secret once, in order."""
    rules = rules_of(
        {
            "transform": [
                {"headers": {"x": "${secret:b} ${secret:a}"}},
                {"plugin": "sig", "config": {"k": "${secret:a}"}},
            ]
        },
        RESPOND,
    )
    assert rules.secrets == ("b", "a")
    assert [plugin.name for plugin in rules.plugins] == ["sig"]


def test_c11_rules_describe_themselves_without_values():
    """For people, who need to know what happens and not with what."""
    rules = rules_of(
        {
            "transform": [
                {"headers": {"authorization": "s3cret", "x": "y"}},
                {"plugin": "sig", "config": {"k": "s3cret"}},
            ]
        },
        {"transform": []},
        FORWARD,
        {"response": {"statusCode": 418, "body": "s3cret"}},
    )
    said = [rule.describe() for rule in rules.rules]
    assert said == [
        "sets authorization, x; uses the plugin sig",
        "lets it pass unchanged",
        "forwards to https://f.example",
        "answers 418",
    ]
    assert "s3cret" not in repr(rules)
    assert isinstance(rules.rules[2].action, Forward)
    assert isinstance(rules.rules[3].action, Respond)
