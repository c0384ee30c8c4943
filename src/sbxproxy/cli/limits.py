"""``--limit NAME=VALUE``: other bounds than the defaults, by their fields' names."""

from __future__ import annotations

__all__ = ["limits"]

import difflib
from collections.abc import Sequence
from dataclasses import fields

import click

from sbxproxy.errors import ConfigurationError
from sbxproxy.settings import Limits


def limits(texts: Sequence[str]) -> Limits:
    """Read ``NAME=VALUE``, a field of ``Limits`` and a number or ``none``."""
    known = {bound.name: str(bound.type) for bound in fields(Limits)}
    values: dict[str, float | int | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        kind = known.get(name)
        if kind is None or not equals:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near and kind is None else ""
            raise click.UsageError(f"--limit: write NAME=VALUE with a bound's name, such as flows_per_sandbox=20000{hint}")
        if name in values:
            raise click.UsageError(f"--limit: {name} is given twice")
        try:
            values[name] = _bound(value.strip(), kind)
        except ValueError as error:
            raise click.UsageError(f"--limit: {name} must be {error}") from None
    try:
        return Limits(**values)  # type: ignore[arg-type]  # each was read as its field's kind
    except ConfigurationError as error:
        raise click.UsageError(f"--limit: {error}") from None


def _bound(text: str, kind: str) -> float | int | None:
    """Read a value of *kind*, a field's type as text; raises ``ValueError`` with what it must be."""
    if text.lower() == "none" and "None" in kind:
        return None
    whole = kind.startswith("int")
    wanted = f"a positive {'whole number' if whole else 'number'}{' or none' if 'None' in kind else ''}"
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not 0 < number < float("inf"):
        raise ValueError(wanted)
    return number
