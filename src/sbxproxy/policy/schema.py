"""The JSON Schema of policies, for editors and for checks in other languages.

It describes shapes and leaves out what a schema can't say (public suffixes, canonical names, RE2): what it
refuses is wrong, what it accepts may still be refused by ``Policy.parse``.
"""

from __future__ import annotations

__all__ = ["json_schema"]

from typing import Any


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) as a JSON value."""
    from sbxproxy.policy.document import DOCUMENT  # noqa: PLC0415 - imports pydantic

    schema = DOCUMENT.json_schema(mode="validation", ref_template="#/$defs/{model}")
    _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sbxproxy policy",
        "description": "What a sandbox may reach. Everything that isn't listed is denied.",
        **schema,
    }


def _tidy(node: Any) -> None:
    """Drop the titles that pydantic makes of names in code; they say nothing to a reader of policies."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str) and ("type" in node or "$ref" in node or "anyOf" in node or "oneOf" in node):
            del node["title"]
        for inner in node.values():
            _tidy(inner)
    elif isinstance(node, list):
        for inner in node:
            _tidy(inner)
