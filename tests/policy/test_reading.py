"""Reading policy documents: what is accepted, what it comes to, and how faults are told."""

import traceback

import pytest

from sbxproxy.errors import PolicyError, PolicyProblem
from sbxproxy.hostname import Hostname
from sbxproxy.policy.action import Forward, SetHeaders, Transform
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reading import Mode

SET = {"transform": [{"headers": {"x": "1"}}]}


def problems(document: object) -> list[PolicyProblem]:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(document)
    assert caught.value.problems
    return list(caught.value.problems)


def places(document: object) -> list[str]:
    return [problem.place for problem in problems(document)]


def one(document: object) -> PolicyProblem:
    (problem,) = problems(document)
    return problem


@pytest.mark.parametrize(
    "document",
    [
        "allow-all",
        {"mode": "allow-all"},
        "default-allow",
        {"mode": "default-allow"},
        {"mode": "allow-all", "allow": []},
    ],
)
def test_allow_all(document: object):
    """In all its spellings."""
    assert Policy.parse(document).mode is Mode.ALLOW_ALL


@pytest.mark.parametrize(
    "document",
    [
        "deny-all",
        {"mode": "deny-all"},
        "default-deny",
        {"mode": "default-deny"},
        {"mode": "custom"},
        {},
        {"allow": []},
        {"allow": {}},
        {"subnets": {}},
        {"subnets": {"allow": [], "deny": []}},
        {"subnets": {"deny": ["10.0.0.0/8"]}},
        {"allow": [], "subnets": {"deny": ["10.0.0.0/8"]}},
        {"allowedDomains": []},
    ],
)
def test_deny_all(document: object):
    """What lists nothing allows nothing; a deny range alone grants nothing."""
    policy = Policy.parse(document)
    assert policy.mode is Mode.DENY_ALL
    assert not policy.resolves(Hostname("a.example"))


@pytest.mark.parametrize(
    "document",
    [
        {"allow": ["a.example"], "subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.7"]}},
        {"allow": {"a.example": []}, "subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.7/32"]}},
        {"mode": "custom", "allow": ["A.Example."], "subnets": {"allow": ["203.0.113.0/24"], "deny": ["::ffff:203.0.113.7"]}},
        {"mode": "default-deny", "allowedDomains": ["a.example"], "allowedCIDRs": ["203.0.113.0/24"], "deniedCIDRs": ["203.0.113.7"]},
        {"mode": "custom", "allowedDomains": ["a.example", "a.example"], "allowedCIDRs": ["203.0.113.0/24"], "deniedCIDRs": ["203.0.113.7"]},
        {"allowedDomains": ["a.example"], "allowedCIDRs": ["203.0.113.0/24"], "deniedCIDRs": ["203.0.113.7"], "injectionRules": []},
    ],
)  # fmt: skip
def test_the_forms_of_a_user_defined_policy_are_equal(document: object):
    """Lists, maps and the normalised form say the same."""
    policy = Policy.parse(document)
    expected = Policy.parse({"allow": ["a.example"], "subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.7"]}})
    assert policy.mode is Mode.USER_DEFINED
    assert policy == expected
    assert hash(policy) == hash(expected)


@pytest.mark.parametrize(
    "document",
    [
        {"mode": "allow-all", "subnets": {"deny": ["203.0.113.0/24"]}},
        {"mode": "allow-all", "deniedCIDRs": ["203.0.113.0/24"]},
    ],
)
def test_d12_allow_all_may_carry_denied_ranges(document: object):
    """They take something away from everything."""
    policy = Policy.parse(document)
    assert policy.mode is Mode.ALLOW_ALL
    assert len(policy.deny) == 1


@pytest.mark.parametrize("mode", ["allow-all", "deny-all"])
def test_lists_beside_a_mode_are_a_fault(mode: str):
    """Either the mode is meant or the list; to guess would open or close too much."""
    assert places({"mode": mode, "allow": ["a.example"], "subnets": {"allow": ["203.0.113.0/24"]}}) == [
        "allow",
        "subnets.allow",
    ]
    assert places({"mode": mode, "allow": {"a.example": [SET]}}) == ["allow"]
    assert places({"mode": mode, "allowedDomains": ["a.example"]}) == ["allowedDomains"]


@pytest.mark.parametrize(
    "document",
    ["", "custom", "allow_all", "ALLOW-ALL", None, True, 5, ["a.example"], b"deny-all", ("deny-all",)],
)
def test_what_is_no_policy(document: object):
    """Nothing else is guessed at."""
    assert one(document) == PolicyProblem("", "not a policy", '"allow-all", "deny-all" or an object with allow and subnets')


def test_a_policy_comes_back_as_it_is():
    """So that callers may take either."""
    policy = Policy.parse("deny-all")
    assert Policy.parse(policy) is policy


def test_rules_of_the_normalised_form():
    """Headers first, then forwards, each list in its order."""
    policy = Policy.parse(
        {
            "mode": "custom",
            "allowedDomains": ["A.example", "b.example"],
            "injectionRules": [
                {"domain": "a.example", "headers": {"x": "1"}, "match": {"method": ["GET"]}},
                {"domain": "a.example", "headers": {"y": "2"}},
            ],
            "forwardRules": [{"domain": "a.example", "forwardURL": "https://f.example"}],
        }
    )
    rules = policy.domains["a.example"]
    assert rules is not None
    assert [rule.index for rule in rules.rules] == [0, 1, 2]
    assert [type(rule.action) for rule in rules.rules] == [Transform, Transform, Forward]
    assert rules.rules[0].match.methods == {"GET"}
    assert policy.domains["b.example"] is None


def test_rules_never_widen_access():
    """A rule for a domain that isn't allowed is a fault in the form where that can be written."""
    problem = one({"allowedDomains": ["a.example"], "injectionRules": [{"domain": "b.example", "headers": {"x": "1"}}]})
    assert problem.place == "injectionRules[0].domain"


def test_what_a_normalised_policy_looks_like_when_read_back_is_refused():
    """It has lost the values of its headers."""
    found = problems({"allowedDomains": ["a.example"], "injectionRules": [{"domain": "a.example", "headerNames": ["x"]}]})
    assert any("read back" in problem.expected for problem in found)


FAULTS = [
    ({"alow": []}, "alow", "did you mean allow?"),
    ({"subnet": {}}, "subnet", "did you mean subnets?"),
    ({"zzz": []}, "zzz", "known are mode, allow, subnets"),
    ({"mode": "open"}, "mode", "allow-all"),
    ({"allow": 5}, "allow", "a list"),
    ({"allow": None}, "allow", "a list"),
    ({"allow": "a.example"}, "allow", "a list"),
    ({"allow": [5]}, "allow[0]", "a text"),
    ({"allow": ["a.example", "b*.example"]}, "allow[1]", "*.example.com"),
    ({"allow": {"b*.example": []}}, 'allow["b*.example"]', "*.example.com"),
    ({"allow": {"b*.example": [SET]}}, 'allow["b*.example"]', "*.example.com"),
    ({"allow": {"a.example": {}}}, 'allow["a.example"]', "a list"),
    ({"allow": {"a.example": [5]}}, 'allow["a.example"][0]', "an object"),
    ({"allow": {"a.example": [{}]}}, 'allow["a.example"][0]', "one of transform, forwardURL and response"),
    ({"allow": {"a.example": [{"match": {}}]}}, 'allow["a.example"][0]', "one of transform, forwardURL and response"),
    ({"allow": {"a.example": [{**SET, "forwardURL": "https://f.example"}]}}, 'allow["a.example"][0]', "in each rule"),
    ({"allow": {"a.example": [{**SET, "macth": {}}]}}, 'allow["a.example"][0].macth', "did you mean match?"),
    ({"allow": {"a.example": [{"transform": [{"hedaers": {}}]}]}}, 'allow["a.example"][0].transform[0].hedaers', "did you mean headers?"),
    ({"allow": {"a.example": [{"transform": {}}]}}, 'allow["a.example"][0].transform', "a list"),
    ({"allow": {"a.example": [{"transform": [{"headers": {"x": 1}}]}]}}, 'allow["a.example"][0].transform[0].headers["x"]', "a text"),
    ({"allow": {"a.example": [{"transform": [{"headers": {"host": "b"}}]}]}}, 'allow["a.example"][0].transform[0].headers["host"]', "leave it out"),
    ({"allow": {"a.example": [{"transform": [{"headers": {"x-y": "a", "X_Y": "b"}}]}]}}, 'allow["a.example"][0].transform[0].headers["X_Y"]', "each name once"),
    ({"allow": {"a.example": [{"transform": [{"config": {}}]}]}}, 'allow["a.example"][0].transform[0]', "name the plugin"),
    ({"allow": {"a.example": [{"transform": [{"plugin": "p", "headers": {}}]}]}}, 'allow["a.example"][0].transform[0]', "two steps"),
    ({"allow": {"a.example": [{"transform": [{"plugin": "P"}]}]}}, 'allow["a.example"][0].transform[0].plugin', "lower-case"),
    ({"allow": {"a.example": [{"transform": [{"plugin": "p", "config": {"allow": {"a": ["${x}"]}}}]}]}}, 'allow["a.example"][0].transform[0].config["allow"]["a"][0]', "${secret:name}"),
    ({"allow": {"a.example": [{"forwardURL": "http://f.example"}]}}, 'allow["a.example"][0].forwardURL', "https://"),
    ({"allow": {"a.example": [{"response": {}}]}}, 'allow["a.example"][0].response.statusCode', "required"),
    ({"allow": {"a.example": [{"response": {"statusCode": 199}}]}}, 'allow["a.example"][0].response.statusCode', "200 to 599"),
    ({"allow": {"a.example": [{"response": {"statusCode": 600}}]}}, 'allow["a.example"][0].response.statusCode', "200 to 599"),
    ({"allow": {"a.example": [{"response": {"statusCode": True}}]}}, 'allow["a.example"][0].response.statusCode', "a number"),
    ({"allow": {"a.example": [{"response": {"statusCode": "200"}}]}}, 'allow["a.example"][0].response.statusCode', "a number"),
    ({"allow": {"a.example": [{"response": {"statusCode": 204, "body": "x"}}]}}, 'allow["a.example"][0].response.body', "no body"),
    ({"allow": {"a.example": [{"response": {"statusCode": 200, "body": "\ud800"}}]}}, 'allow["a.example"][0].response.body', "whole characters"),
    ({"allow": {"a.example": [{"response": {"statusCode": 200, "contentType": "a\r\nb/c"}}]}}, 'allow["a.example"][0].response.contentType', "application/json"),
    ({"allow": {"a.example": [{**SET, "match": {"path": {}}}]}}, 'allow["a.example"][0].match.path', "exact, startsWith or regex"),
    ({"allow": {"a.example": [{**SET, "match": {"path": {"exact": "/", "regex": "/"}}}]}}, 'allow["a.example"][0].match.path', "exact, startsWith or regex"),
    ({"allow": {"a.example": [{**SET, "match": {"path": {"exact": None}}}]}}, 'allow["a.example"][0].match.path.exact', "a text"),
    ({"allow": {"a.example": [{**SET, "match": {"path": "/"}}]}}, 'allow["a.example"][0].match.path', "an object"),
    ({"allow": {"a.example": [{**SET, "match": {"path": {"prefix": "/"}}}]}}, 'allow["a.example"][0].match.path.prefix', "startsWith"),
    ({"allow": {"a.example": [{**SET, "match": {"path": {"exact": "/a/../b"}}}]}}, 'allow["a.example"][0].match.path', "no empty"),
    ({"allow": {"a.example": [{**SET, "match": {"path": {"regex": "("}}}]}}, 'allow["a.example"][0].match.path', "RE2"),
    ({"allow": {"a.example": [{**SET, "match": {"method": []}}]}}, 'allow["a.example"][0].match.method', "at least one"),
    ({"allow": {"a.example": [{**SET, "match": {"method": "GET"}}]}}, 'allow["a.example"][0].match.method', "a list"),
    ({"allow": {"a.example": [{**SET, "match": {"method": ["get"]}}]}}, 'allow["a.example"][0].match.method[0]', "upper case"),
    ({"allow": {"a.example": [{**SET, "match": {"method": {"exact": "get"}}}]}}, 'allow["a.example"][0].match.method.exact', "upper case"),
    ({"allow": {"a.example": [{**SET, "match": {"method": {"regex": "GET"}}}]}}, 'allow["a.example"][0].match.method.exact', "required"),
    ({"allow": {"a.example": [{**SET, "match": {"headers": [{}]}}]}}, 'allow["a.example"][0].match.headers[0]', "at least one"),
    ({"allow": {"a.example": [{**SET, "match": {"queryString": [{"keys": {}}]}}]}}, 'allow["a.example"][0].match.queryString[0].keys', "did you mean key?"),
    ({"allow": {"a.example": [{**SET, "match": {"headers": [{"key": {"startsWith": ""}}]}}]}}, 'allow["a.example"][0].match.headers[0].key', "leave the matcher out"),
    ({"subnets": {"allow": ["10.0.0.1/8"]}}, "subnets.allow[0]", "CIDR"),
    ({"subnets": {"deny": ["10.0.0.0/8", "010.0.0.0/8"]}}, "subnets.deny[1]", "CIDR"),
    ({"subnets": {"denied": []}}, "subnets.denied", "did you mean deny?"),
    ({"subnets": []}, "subnets", "an object"),
    ({"allowedDomains": ["a"], "subnets": {}}, "subnets", "known are"),
    ({"allowedCIDRs": ["x"]}, "allowedCIDRs[0]", "CIDR"),
    ({"forwardRules": [{"domain": "a"}]}, "forwardRules[0].forwardURL", "required"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "place", "expected"), FAULTS)
def test_faults_tell_their_place_and_what_would_be_right(document: object, place: str, expected: str):
    """As a reader of the document would write it."""
    found = problems(document)
    assert place in [problem.place for problem in found]
    assert any(expected in problem.expected for problem in found if problem.place == place)


def test_every_fault_is_told_at_once():
    """An author fixes a document in one go."""
    found = places(
        {
            "allow": {
                "b*.example": [],
                "a.example": [{"transform": [{"headers": {"host": "x", "a b": "y", "c": "\n"}}]}, {}],
            },
            "subnets": {"allow": ["x"], "deny": ["y"], "extra": 1},
        }
    )
    assert sorted(found) == sorted(
        [
            'allow["b*.example"]',
            'allow["a.example"][0].transform[0].headers["host"]',
            'allow["a.example"][0].transform[0].headers[key 2]',
            'allow["a.example"][0].transform[0].headers["c"]',
            'allow["a.example"][1]',
            "subnets.allow[0]",
            "subnets.deny[0]",
            "subnets.extra",
        ]
    )


@pytest.mark.parametrize("rules", [[], [SET]])
def test_two_keys_for_one_pattern_are_a_fault(rules: list):
    """One of them would silently lose its rules. In a list the same twice does no harm."""
    problem = one({"allow": {"A.example": rules, "a.example.": rules}})
    assert problem.place == 'allow["a.example."]'
    assert "A.example" in problem.problem
    assert len(Policy.parse({"allow": ["a.example", "A.example"]}).domains) == 1


def test_c3_c11_no_value_is_shown_by_any_fault():
    """Header values, options, URLs, unknown keys' values and pasted URLs as keys: neither text, repr nor traceback shows them."""
    s = "s3cret-value"
    documents: list[object] = [
        s,
        {"mode": s},
        {"extra": s},
        {"allow": [f"https://u:{s}@a.example"]},
        {"allow": {f"https://u:{s}@a.example": []}},
        {"allow": {f"https://u:{s}@a.example": [SET]}},
        {"allow": {"a.example": s}},
        {"allow": {"a.example": [s]}},
        {"allow": {"a.example": [{"transform": [{"headers": {"x": f"{s}\r\n"}}]}]}},
        {"allow": {"a.example": [{"transform": [{"headers": {"x": f"{s}<redacted>"}}]}]}},
        {"allow": {"a.example": [{"transform": [{"headers": {"x": f"${{{s}}}"}}]}]}},
        {"allow": {"a.example": [{"transform": [{"headers": {"x": [s]}}]}]}},
        {"allow": {"a.example": [{"transform": [{"headers": s}]}]}},
        {"allow": {"a.example": [{"transform": [{"headers": {f"Bearer {s}": "authorization"}}]}]}},
        {"allow": {"a.example": [{"transform": [{"plugin": s.upper(), "config": {"a": s}}]}]}},
        {"allow": {"a.example": [{"transform": [{"plugin": "p", "config": {"a": f"{s}${{"}}]}]}},
        {"allow": {"a.example": [{"forwardURL": f"https://u:{s}@a.example"}]}},
        {"allow": {"a.example": [{"forwardURL": f"https://a.example/?{s}"}]}},
        {"allow": {"a.example": [{"response": {"statusCode": s}}]}},
        {"allow": {"a.example": [{"response": {"statusCode": 204, "body": s}}]}},
        {"allow": {"a.example": [{**SET, "match": {"headers": [{"value": {"regex": f"({s}"}}]}}]}},
        {"allow": {"a.example": [{**SET, "match": {"headers": [{"value": s}]}}]}},
        {"subnets": {"allow": [s]}},
        {"subnets": s},
        {"allowedDomains": ["a"], "injectionRules": [{"domain": "a", "headers": {"x": f"{s}\n"}}]},
    ]
    for document in documents:
        with pytest.raises(PolicyError) as caught:
            Policy.parse(document)
        shown = f"{caught.value}{caught.value!r}" + "".join(traceback.format_exception(caught.value))
        assert s not in shown.lower(), document


def test_c11_faults_hold_on_to_nothing_of_the_document():
    """Pydantic's own error holds the whole input; as the context of ours it would travel into logs."""
    with pytest.raises(PolicyError) as caught:
        Policy.parse({"allow": {"a.example": [{"transform": [{"headers": {"x": "s3cret\n"}}]}]}})
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_plain_policies_need_no_pydantic_and_read_the_same(monkeypatch):
    """The short way and the long way through the models come to equal policies."""
    from sbxproxy.policy import reading

    documents = [
        {
            "allow": ["a.example", "*.b.example"],
            "subnets": {"allow": ["10.0.0.0/8"], "deny": ["10.1.0.0/16"]},
        },
        {"allow": {"a.example": [], "*": []}},
        {"subnets": {"allow": ["::/0"]}},
        {"mode": "allow-all", "subnets": {"deny": ["10.0.0.0/8"]}},
        {"mode": "default-deny", "allowedDomains": ["a.example"], "deniedCIDRs": ["10.0.0.0/8"]},
        {},
    ]
    short = [Policy.parse(document) for document in documents]
    monkeypatch.setattr(reading, "_read_plain", lambda *_: None)
    assert [Policy.parse(document) for document in documents] == short


@pytest.mark.parametrize(
    "document",
    [
        {"allow": ["b*", ""]},
        {"allow": {"b*": []}},
        {"subnets": {"deny": ["x", "1.2.3.4/8"]}},
        {"allowedCIDRs": ["x"]},
    ],
)
def test_plain_policies_have_the_same_faults(document: object, monkeypatch):
    """Place, problem and remedy."""
    from sbxproxy.policy import reading

    short = problems(document)
    monkeypatch.setattr(reading, "_read_plain", lambda *_: None)
    assert problems(document) == short


def test_headers_of_a_step_keep_their_order_and_spelling():
    """They go out as written."""
    policy = Policy.parse({"allow": {"a.example": [{"transform": [{"headers": {"X-B": "1", "a": "2"}}]}]}})
    rules = policy.domains["a.example"]
    assert rules is not None
    action = rules.rules[0].action
    assert isinstance(action, Transform)
    (step,) = action.steps
    assert isinstance(step, SetHeaders)
    assert [name for name, _ in step.headers] == ["X-B", "a"]
