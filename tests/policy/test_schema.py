"""The published JSON Schema is the one that the models make, and says yes and no like the reader does."""

import json
from pathlib import Path

import jsonschema
import pytest

from sbxproxy.policy import Policy, json_schema

COMMITTED = Path(__file__).parents[2] / "docs" / "policy.schema.json"
SET = [{"transform": [{"headers": {"x": "${secret:y}"}}, {"plugin": "p", "config": {"a": [1]}}]}]

VALID = [
    "allow-all",
    "deny-all",
    "default-deny",
    {},
    {"mode": "allow-all", "subnets": {"deny": ["10.0.0.0/8"]}},
    {"allow": ["a.example"], "subnets": {"allow": ["10.0.0.0/8"], "deny": []}},
    {"allow": {"a.example": SET, "b.example": []}},
    {"allow": {"a": [{"forwardURL": "https://f.example"}, {"response": {"statusCode": 200, "contentType": "a/b", "body": ""}}]}},
    {"allow": {"a": [{"match": {"method": {"exact": "GET"}, "path": {"regex": "x"}}, "response": {"statusCode": 200}}]}},
    {"allow": {"a": [{"match": {"method": ["GET"], "queryString": [{"key": {"exact": "k"}}], "headers": [{"value": {"startsWith": "v"}}]}, **SET[0]}]}},
    {"mode": "custom", "allowedDomains": ["a"], "deniedCIDRs": ["10.0.0.0/8"], "injectionRules": [{"domain": "a", "headers": {"x": "y"}}]},
    {"allowedDomains": ["a"], "forwardRules": [{"domain": "a", "forwardURL": "https://f.example", "match": {}}]},
]  # fmt: skip

INVALID = [
    "open",
    None,
    5,
    ["a.example"],
    {"alow": []},
    {"allow": "a.example"},
    {"allow": [5]},
    {"mode": "open"},
    {"allow": {"a": [{}]}},
    {"allow": {"a": [{"match": {}}]}},
    {"allow": {"a": [{"forwardURL": "https://f.example", "response": {"statusCode": 200}}]}},
    {"allow": {"a": [{"forwardURL": None}]}},
    {"allow": {"a": [{"response": {"statusCode": 199}}]}},
    {"allow": {"a": [{"response": {}}]}},
    {"allow": {"a": [{"transform": [{"headers": {"x": 1}}]}]}},
    {"allow": {"a": [{"transform": [{"config": {}}]}]}},
    {"allow": {"a": [{"transform": [{"plugin": "p", "headers": {}}]}]}},
    {"allow": {"a": [{"match": {"method": []}, "response": {"statusCode": 200}}]}},
    {"allow": {"a": [{"match": {"path": {}}, "response": {"statusCode": 200}}]}},
    {"allow": {"a": [{"match": {"path": {"exact": "/", "regex": "/"}}, "response": {"statusCode": 200}}]}},
    {"allow": {"a": [{"match": {"headers": [{}]}, "response": {"statusCode": 200}}]}},
    {"subnets": {"allow": "10.0.0.0/8"}},
    {"allowedDomains": ["a"], "allow": []},
]


def test_the_committed_schema_is_fresh():
    """Made by: json.dumps(json_schema(), indent=2, ensure_ascii=False) and a line end."""
    assert COMMITTED.read_text() == json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def test_the_schema_is_a_schema():
    """Of the draft that it names."""
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("document", VALID)
def test_what_the_reader_takes_the_schema_takes(document: object):
    """Else an editor would mark a good policy as wrong."""
    Policy.parse(document)
    jsonschema.validate(document, json_schema())


@pytest.mark.parametrize("document", INVALID)
def test_what_the_schema_refuses_the_reader_refuses(document: object):
    """Mistakes of shape, all of them seen by both."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
    with pytest.raises(ValueError):
        Policy.parse(document)


def test_every_key_is_described():
    """Editors show the descriptions."""

    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for name, inner in node.get("properties", {}).items():
                assert inner.get("description"), f"{path}.{name}"
            for name, inner in node.items():
                walk(inner, f"{path}.{name}")
        elif isinstance(node, list):
            for inner in node:
                walk(inner, path)

    walk(json_schema(), "")
