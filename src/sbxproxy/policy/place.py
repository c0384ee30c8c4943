"""Places in a policy document, written as a reader of JSON would: ``allow["*.x.com"][0].transform[0]``."""

from __future__ import annotations

__all__ = ["Place", "Step", "key_place", "locate"]

import json
from collections.abc import Sequence
from dataclasses import dataclass

Step = int | str

_SHOWN_IN_KEYS = frozenset("._-*:")


def key_place(key: str, position: int) -> str:
    """Write a key of the author's own as part of a place: ``["api.example.com"]``.

    A key that is no plain name could be a pasted URL with a password in it: its *position* (from 0) is shown
    instead.
    """
    if 0 < len(key) <= 253 and all(character.isalnum() or character in _SHOWN_IN_KEYS for character in key):
        return f"[{json.dumps(key, ensure_ascii=False)}]"
    return f"[key {position + 1}]"


@dataclass(frozen=True, slots=True)
class _Open:
    """A map whose keys are the author's own; ``inner`` is what they lead to."""

    inner: str = ""


# What each key of an object leads to. Lists are not told: an index never changes what one is looking at.
_OBJECTS: dict[str, dict[str, str | _Open]] = {
    "document": {
        "allow": _Open("rule"),
        "subnets": "subnets",
        "injectionRules": "injection",
        "forwardRules": "forwarding",
    },
    "rule": {"match": "match", "transform": "transform", "response": "response"},
    "injection": {"match": "match", "headers": _Open()},
    "forwarding": {"match": "match"},
    "match": {"path": "matcher", "method": "method", "queryString": "pair", "headers": "pair"},
    "pair": {"key": "matcher", "value": "matcher"},
    "transform": {"headers": _Open(), "config": _Open()},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands.

    Attributes:
        text: as a reader writes it; empty for the document as a whole.
        owner: the kind of object that holds the last step: ``document``, ``rule``, …; empty if open.
    """

    text: str
    owner: str


def locate(steps: Sequence[Step], document: object) -> Place:
    """Write down the way that leads through *document*, which needn't be well-formed, to a place."""
    written = ""
    value = document
    here: str | _Open = "document"
    owner = ""
    for step in steps:
        owner = here if isinstance(here, str) else ""
        if isinstance(step, int):
            written += f"[{step}]"
            value = value[step] if isinstance(value, list) and step < len(value) else None
            continue
        keys = list(value) if isinstance(value, dict) else [step]
        position = keys.index(step) if step in keys else 0
        if isinstance(here, _Open) or not step.isidentifier() or len(step) > 64:
            written += key_place(step, position)
        else:
            written += f".{step}" if written else step
        here = here.inner if isinstance(here, _Open) else _OBJECTS.get(here, {}).get(step, "")
        value = value.get(step) if isinstance(value, dict) else None
    return Place(written, owner)
