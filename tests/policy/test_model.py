"""A policy as a value: immutable, comparable, silent about what it holds."""

import json
import os
import subprocess
import sys

import pytest

from sbxproxy.errors import PolicyError
from sbxproxy.hostname import Hostname
from sbxproxy.policy.model import DomainMatch, Policy

FULL = {
    "allow": {
        "api.example": [
            {
                "match": {
                    "path": {"startsWith": "/v1/"},
                    "method": ["GET", "POST"],
                    "queryString": [{"key": {"exact": "q"}, "value": {"regex": "^x"}}],
                    "headers": [{"key": {"exact": "X-Kind"}}],
                },
                "transform": [
                    {"headers": {"authorization": "Bearer ${secret:api} s3cret"}},
                    {"plugin": "aws-sigv4", "config": {"key": "s3cret", "region": ["x", 1]}},
                ],
            },
            {"forwardURL": "https://f.example/base"},
            {"response": {"statusCode": 403, "contentType": "text/plain", "body": "näh"}},
            {"match": {"method": {"exact": "PUT"}}, "response": {"statusCode": 204}},
        ],
        "*.example": [],
    },
    "subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.7/32"]},
}


def test_the_document_is_shown_without_values():
    """In the documented shape, with every header value and every text of an option hidden."""
    document = Policy.parse(FULL).document()
    expected = json.loads(json.dumps(FULL))
    steps = expected["allow"]["api.example"][0]["transform"]
    steps[0]["headers"]["authorization"] = "<redacted>"
    steps[1]["config"] = {"key": "<redacted>", "region": ["<redacted>", 1]}
    expected["allow"]["api.example"][3]["match"]["method"] = ["PUT"]
    assert document == expected
    assert "s3cret" not in json.dumps(document)


def test_a_document_that_was_shown_is_refused():
    """Its values are gone; each place that lost one is told."""
    with pytest.raises(PolicyError) as caught:
        Policy.parse(Policy.parse(FULL).document())
    assert [problem.place for problem in caught.value.problems] == [
        'allow["api.example"][0].transform[0].headers["authorization"]',
        'allow["api.example"][0].transform[1].config["key"]',
    ]


@pytest.mark.parametrize(
    "document",
    [
        "allow-all",
        "deny-all",
        {"mode": "allow-all", "subnets": {"deny": ["10.0.0.0/8"]}},
        {"mode": "deny-all", "subnets": {"deny": ["10.0.0.0/8"]}},
        {"allow": ["a.example", "*.b.example"]},
        {"subnets": {"allow": ["10.0.0.0/8"]}},
        {
            "allow": {
                "a.example": [{"response": {"statusCode": 200}}, {"forwardURL": "https://f.example"}],
                "b.example": [],
            }
        },
    ],
)
def test_documents_without_values_come_back_as_they_went_in(document: object):
    """And mean the same."""
    policy = Policy.parse(document)
    assert policy.document() == document
    assert Policy.parse(policy.document()) == policy


def test_names_of_secrets_and_plugins_are_collected():
    """So that they can be looked for before the policy is put in force."""
    policy = Policy.parse(FULL)
    assert policy.secrets == ("api",)
    assert policy.plugins == (("aws-sigv4", 'allow["api.example"][0].transform[1].plugin'),)
    assert policy.has_rules
    assert policy.has_domains


def test_c11_repr_shows_counts():
    """Not names, and no values."""
    assert repr(Policy.parse(FULL)) == "<Policy user-defined: 2 domains, 1 ranges, 1 denied ranges>"
    assert repr(Policy.parse("deny-all")) == "<Policy deny-all: 0 domains, 0 ranges, 0 denied ranges>"


def test_policies_are_compared_by_content():
    """A value that differs makes another policy, even where only a header's value does."""
    other = json.loads(json.dumps(FULL))
    assert Policy.parse(other) == Policy.parse(FULL)
    assert hash(Policy.parse(other)) == hash(Policy.parse(FULL))
    other["allow"]["api.example"][0]["transform"][0]["headers"]["authorization"] = "other"
    assert Policy.parse(other) != Policy.parse(FULL)
    assert Policy.parse("deny-all") != Policy.parse("allow-all")
    assert Policy.parse("deny-all") != "deny-all"


def test_l4_a_policy_cannot_be_changed():
    """An update is another policy, put in force whole."""
    policy = Policy.parse("deny-all")
    with pytest.raises(AttributeError):
        policy.mode = "allow-all"
    with pytest.raises(AttributeError):
        del policy.mode
    with pytest.raises(AttributeError):
        policy.extra = 1
    with pytest.raises(TypeError):
        Policy.parse({"allow": ["a.example"]}).domains["b.example"] = None


def test_l5_a_document_that_changes_later_changes_nothing():
    """Compiled values are taken, not references into the author's object."""
    document = json.loads(json.dumps(FULL))
    policy = Policy.parse(document)
    document["allow"]["api.example"][0]["transform"][1]["config"]["key"] = "changed"
    document["allow"]["evil.example"] = []
    document["subnets"]["allow"].append("0.0.0.0/0")
    assert policy == Policy.parse(FULL)


def test_matching_gives_pattern_and_rules():
    """The rules of the most specific pattern, and of no other."""
    policy = Policy.parse(FULL)
    assert policy.match_domain(Hostname("x.example")) == DomainMatch("*.example", None)
    found = policy.match_domain(Hostname("api.example"))
    assert found is not None
    assert found.rules is policy.domains["api.example"]
    assert policy.match_domain(Hostname("example")) is None
    assert [match.pattern for match in policy.all_matches(Hostname("api.example"))] == [
        "api.example",
        "*.example",
    ]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("allow-all", True),
        ("deny-all", False),
        ({"allow": ["a.example"]}, True),
        ({"allow": ["*.example"]}, True),
        ({"allow": ["b.example"]}, False),
        ({"allow": ["b.example"], "subnets": {"allow": ["0.0.0.0/0"]}}, False),
        ({"subnets": {"allow": ["203.0.113.0/24"]}}, True),
    ],
)
def test_r1_which_names_are_resolved(document: object, expected: bool):
    """A query carries its name out; only policies of ranges alone, which list no names, resolve all."""
    assert Policy.parse(document).resolves(Hostname("a.example")) is expected


def test_policies_are_read_from_json_text_and_bytes():
    """UTF-8."""
    for text in (json.dumps(FULL), json.dumps(FULL, ensure_ascii=False).encode()):
        assert Policy.from_json(text) == Policy.parse(FULL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1"),
        ('{"allow": ["a.example",\n ]}', "line 2, column 2"),
        ('{"allow": ["s3cret"} ', "line 1, column 20"),
        (b'"\xff"', "UTF-8, at byte 1"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a": NaN}', "a number that JSON doesn't have"),
        ('{"a": ' + "1" * 5000 + "}", "a number that JSON doesn't have"),
        ("[" * 100_000, "nested too deep"),
        ('{"allow": [], "allow": []}', "allow: this key stands twice"),
        ('{"allow": {"a.example": [], "a.example": []}}', 'allow["a.example"]: this key stands twice'),
        (
            '{"allow": {"a.example": [{"transform": [{"headers": {"x": "s3cret", "x": "s3cret"}}]}]}}',
            'allow["a.example"][0].transform[0].headers["x"]: this key stands twice',
        ),
        (
            '{"allow": {"https://u:s3cret@a": [], "https://u:s3cret@a": []}}',
            "allow[key 1]: this key stands twice",
        ),
    ],
)
def test_texts_that_are_no_json_tell_where(text: str | bytes, message: str):
    """Line and column for syntax, the place for a key that stands twice; never the text itself."""
    with pytest.raises(PolicyError) as caught:
        Policy.from_json(text)
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_importing_policies_is_cheap():
    """Pydantic, RE2 and idna are loaded by the policies that need them; nothing here needs an event loop or sockets."""
    code = (
        "import sys, sbxproxy.policy as p; p.Policy.parse({'allow': ['a.example'], 'subnets': {'allow': ['10.0.0.0/8']}});"
        "print([m for m in ('pydantic', 're2', 'idna', 'trio', 'socket', 'ssl') if m in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it imports socket
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
