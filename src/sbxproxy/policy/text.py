"""The JSON text of a policy: read with every fault told, and without holding up the other threads of the program.

One call of ``json`` holds the interpreter until it returns, which for a policy of a hundred thousand names is as long as a connection may
wait. So in a large text the lists and objects on top are read in pieces. Whatever is unusual there is read at once after all, for what it
is or what is wrong with it.
"""

from __future__ import annotations

__all__ = ["load"]

import json
import re
from collections.abc import Iterable
from typing import NoReturn

from sbxproxy.errors import PolicyError, PolicyProblem
from sbxproxy.paced import give_way
from sbxproxy.policy.place import Step, locate

_LARGE = 1 << 16
"""Characters of a text that is read in pieces; less takes half a millisecond."""

_DEPTH = 3
"""Levels that are read in pieces: the document, ``allow`` or ``subnets`` in it, and a list in that."""


class _Twice(dict[str, object]):
    """An object with a key that stands twice."""

    key = ""


def load(text: str | bytes) -> object:
    """Read JSON text; bytes are UTF-8.

    Raises:
        PolicyError: it isn't JSON, or a key stands twice in an object.
    """
    found: list[_Twice] = []

    def make(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        twice = _Twice(made)
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                twice.key = key
                break
            seen.add(key)
        found.append(twice)
        return twice

    decoder = json.JSONDecoder(object_pairs_hook=make, parse_constant=_no_constant)
    problem: PolicyProblem
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        document = _load_in_pieces(text, decoder) if len(text) >= _LARGE else _UNUSUAL
        if document is _UNUSUAL or found:
            found.clear()
            document = decoder.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        problem = PolicyProblem("", f"not JSON: {error.msg}, at {where}")
    except UnicodeDecodeError as error:
        problem = PolicyProblem("", f"not UTF-8, at byte {error.start}")
    except RecursionError:
        problem = PolicyProblem("", "nested too deep")
    except ValueError:
        problem = PolicyProblem("", "a number that JSON doesn't have", "finite and not thousands of digits")
    else:
        if found:
            raise PolicyError(*_duplicates(document, document))
        return document
    # Outside the except clauses: JSONDecodeError holds the whole text, and would hang on ours as its context.
    raise PolicyError(problem)


_UNUSUAL = object()

_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([],}])[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
# What large policies are made of: texts, and names without rules. Of what matches only the marks are relied on, texts are decoded.
_TEXTS = re.compile(r'(?:"[^"\\]*"[ \t\n\r]*,[ \t\n\r]*){2,2000}')
_NAMES = re.compile(r'(?:"[^"\\:]*"[ \t\n\r]*:[ \t\n\r]*\[\][ \t\n\r]*,[ \t\n\r]*){2,2000}')
_EMPTY = re.compile(r"[ \t\n\r]*:[ \t\n\r]*\[\][ \t\n\r]*,[ \t\n\r]*")

_NO_RULES: list[object] = []
"""Stands for every empty list of a map of names, each of which would be one more object for the garbage collector to look at."""


class _UnusualError(Exception):
    pass


def _load_in_pieces(text: str, decoder: json.JSONDecoder) -> object:
    """Read *text*; ``_UNUSUAL`` if it is to be read at once."""
    try:
        document, end = _value(text, _skip(text, 0), decoder, 0)
    except (_UnusualError, ValueError, IndexError):
        return _UNUSUAL
    return document if _skip(text, end) == len(text) else _UNUSUAL


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _value(text: str, at: int, decoder: json.JSONDecoder, depth: int) -> tuple[object, int]:
    """Read what begins *at*; return it and where it ends."""
    if depth < _DEPTH:
        match text[at]:
            case "[":
                return _list(text, _skip(text, at + 1), decoder, depth + 1)
            case "{":
                return _object(text, _skip(text, at + 1), decoder, depth + 1)
    return decoder.raw_decode(text, at)


def _list(text: str, at: int, decoder: json.JSONDecoder, depth: int) -> tuple[list[object], int]:
    read: list[object] = []
    if text[at] == "]":
        return read, at + 1
    while True:
        if (run := _TEXTS.match(text, at)) is not None:
            read += decoder.decode(f"[{run[0].rstrip()[:-1]}]")
            at = run.end()
            give_way()
        item, at = _value(text, at, decoder, depth)
        read.append(item)
        mark, at = _mark(text, at)
        if mark == "]":
            return read, at
        if mark != ",":
            raise _UnusualError


def _object(text: str, at: int, decoder: json.JSONDecoder, depth: int) -> tuple[dict[str, object], int]:
    read: dict[str, object] = {}
    count = 0
    if text[at] == "}":
        return read, at + 1
    while True:
        if (run := _NAMES.match(text, at)) is not None:
            names = decoder.decode(f"[{_EMPTY.sub(',', run[0])[:-1]}]")
            read.update(dict.fromkeys(names, _NO_RULES))
            count += len(names)
            at = run.end()
            give_way()
        key, at = decoder.raw_decode(text, at)
        colon = _COLON.match(text, at)
        if colon is None or not isinstance(key, str):
            raise _UnusualError
        read[key], at = _value(text, colon.end(), decoder, depth)
        count += 1
        mark, at = _mark(text, at)
        if mark == "}":
            if len(read) != count:
                raise _UnusualError  # a key that stands twice
            return read, at
        if mark != ",":
            raise _UnusualError


def _mark(text: str, at: int) -> tuple[str, int]:
    found = _NEXT.match(text, at)
    if found is None:
        raise _UnusualError
    return found[1], found.end()


def _no_constant(_: str) -> NoReturn:
    raise ValueError


def _duplicates(value: object, document: object, steps: tuple[Step, ...] = ()) -> list[PolicyProblem]:
    problems: list[PolicyProblem] = []
    items: Iterable[tuple[Step, object]] = ()
    if isinstance(value, dict):
        items = value.items()
        if isinstance(value, _Twice):
            place = locate((*steps, value.key), document)
            problems.append(PolicyProblem(place.text, "this key stands twice", "each key once"))
    elif isinstance(value, list):
        items = enumerate(value)
    for step, inner in items:
        problems += _duplicates(inner, document, (*steps, step))
    return problems
