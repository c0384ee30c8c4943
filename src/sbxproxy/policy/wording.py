"""Pydantic's errors in the words and places of a policy's author.

Nothing of the input is shown but keys that look like plain names: values may be secret, and so may pasted
URLs.
"""

from __future__ import annotations

__all__ = ["problems_of"]

from difflib import get_close_matches

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sbxproxy.errors import PolicyProblem
from sbxproxy.policy import document, shapes
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.place import locate

# Of the two kinds of pair only the names of keys count here, and those are the same.
_SHAPES: dict[str, type[BaseModel]] = {
    "subnets": document.SubnetsShape,
    "rule": shapes.RuleShape,
    "match": shapes.MatchShape,
    "matcher": shapes.MatcherShape,
    "method": shapes.OneMethodShape,
    "pair": shapes.KeyValueShape,
    "transform": shapes.TransformShape,
    "response": shapes.ResponseShape,
    "injection": document.InjectionShape,
    "forwarding": document.ForwardingShape,
}

_KINDS: dict[str, tuple[str, str]] = {
    "string_type": ("not a text", "a text in quotes"),
    "int_type": ("not a whole number", "a number without quotes"),
    "list_type": ("not a list", "a list: […]"),
    "dict_type": ("not an object", "an object: {…}"),
    "model_type": ("not an object", "an object: {…}"),
    "model_attributes_type": ("not an object", "an object: {…}"),
    "missing": ("missing", "it is required"),
    "too_short": ("empty", "at least one"),
    "string_unicode": ("not valid Unicode", "whole characters"),
    "union_tag_not_found": ("neither a list nor an object", "a list: […], or an object: {…}"),
}


def problems_of(error: ValidationError, value: object) -> list[PolicyProblem]:
    """Put each error into words."""
    root = document.Document if error.title == document.Document.__name__ else document.NormalisedDocument
    return [_problem(detail, value, root) for detail in error.errors(include_url=False, include_input=False)]


def _problem(detail: ErrorDetails, value: object, root: type[BaseModel]) -> PolicyProblem:
    # Tags of unions stand in angle brackets; "[key]" marks that the key itself is at fault.
    steps = [step for step in detail["loc"] if step not in {"<list>", "<map>", "[key]"}]
    place = locate(steps, value)
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error" if isinstance(fault := context.get("error"), Fault):
            return PolicyProblem(place.text + fault.within, fault.problem, fault.expected)
        case "extra_forbidden":
            known = list(_SHAPES.get(place.owner, root).model_fields)
            close = get_close_matches(str(steps[-1]), known, n=1)
            expected = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            if steps[-1] == "headerNames":
                expected = "this policy was read back without its values: give headers with values"
            return PolicyProblem(place.text, "unknown key", expected)
        case "literal_error":
            return PolicyProblem(place.text, "not one of the known values", str(context.get("expected", "")))
        case "greater_than_equal" | "less_than_equal":
            return PolicyProblem(place.text, "no status that a response can have", "a number from 200 to 599")
        case kind:
            problem, expected = _KINDS.get(kind, ("not acceptable", ""))
            return PolicyProblem(place.text, problem, expected)
