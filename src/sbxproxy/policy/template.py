"""Texts that name secrets instead of holding them: ``Bearer ${secret:github}``.

``$${`` is a literal ``${``. A literal part may itself be secret (a token written into the policy), so
``repr`` shows names only.
"""

from __future__ import annotations

__all__ = ["Template"]

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from sbxproxy.errors import SecretError
from sbxproxy.policy.fault import REDACTED, Fault

_SPECIAL = re.compile(r"\$\$\{|\$\{([^}]*)(\})?")
_SECRET = re.compile(r"secret:([A-Za-z0-9][A-Za-z0-9_./-]{0,127})")


@dataclass(frozen=True, slots=True)
class Template:
    """Literal texts and names of secrets, in turn.

    Attributes:
        literals: one more than there are names: before, between and after them.
        names: the secrets, in order of use; one may stand several times.
    """

    literals: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a template.

        Raises:
            Fault: a ``${`` opens nothing that is known, or *text* is what a policy shows in place of a value.
        """
        if REDACTED in text:
            raise Fault(f'"{REDACTED}" stands for a value that was hidden', "put the value itself, or ${secret:name}")
        literals: list[str] = []
        names: list[str] = []
        literal = ""
        position = 0
        for special in _SPECIAL.finditer(text):
            literal += text[position : special.start()]
            position = special.end()
            if special[1] is None:
                literal += "${"
                continue
            name = _SECRET.fullmatch(special[1])
            if name is None or special[2] is None:
                raise Fault("a ${ that names no secret", "write ${secret:name}, or $${ for a literal ${")
            literals.append(literal)
            names.append(name[1])
            literal = ""
        literals.append(literal + text[position:])
        return cls(tuple(literals), tuple(names))

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets, each once, in order of first use."""
        return tuple(dict.fromkeys(self.names))

    def render(self, values: Mapping[str, str]) -> str:
        """Put the secrets' values in; what a value holds is not read as a template again.

        Raises:
            SecretError: *values* lacks a name.
        """
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            value = values.get(name)
            if value is None:
                raise SecretError(f"no value for the secret {name!r}")
            parts += (value, literal)
        return "".join(parts)
