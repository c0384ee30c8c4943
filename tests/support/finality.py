"""The one property that every parser of a growing buffer has: what it has once said, more bytes don't change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sbxproxy.errors import SbxproxyError
from sbxproxy.wire.result import Hint


def outcome(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """The parser's value or hint, or what it raised as a comparable value."""
    try:
        return parse(data)
    except SbxproxyError as error:
        return type(error), str(error), tuple(sorted(vars(error).items()))


def decided_at(parse: Callable[[bytes], Any], data: bytes) -> int:
    """Feed *data* byte by byte; return after how many bytes it was decided.

    Fails if a shorter prefix had another answer than *data*, or if *data* isn't decided.
    """
    final = outcome(parse, data)
    assert final is not Hint.NEED_MORE
    decided = None
    for end in range(len(data) + 1):
        answer = outcome(parse, data[:end])
        if answer is Hint.NEED_MORE:
            assert decided is None, f"decided after {decided} bytes, undecided after {end}"
        else:
            assert answer == final, f"another answer after {end} bytes"
            decided = end if decided is None else decided
    assert decided is not None
    return decided
