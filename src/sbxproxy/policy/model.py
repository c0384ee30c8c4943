"""A policy: immutable, checked whole, and fast to ask.

``repr`` and ``document`` never show a value that may be secret.
"""

from __future__ import annotations

__all__ = ["DomainMatch", "Policy"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

from sbxproxy.address import PrefixTable
from sbxproxy.hostname import Hostname
from sbxproxy.policy.opened import opened
from sbxproxy.policy.pattern import PatternTable
from sbxproxy.policy.reading import Draft, Mode, read
from sbxproxy.policy.rules import RuleSet
from sbxproxy.policy.text import load


@dataclass(frozen=True, slots=True)
class DomainMatch:
    """The most specific pattern for a name, and its rules; ``None`` where it has none."""

    pattern: str
    rules: RuleSet | None = field(repr=False)


_OpenMatch = opened(DomainMatch)


class Policy:
    """What one sandbox may reach.

    Attributes:
        mode: what holds for what isn't listed.
        allow: ranges open to any TCP protocol.
        deny: ranges closed to everything.
        domains: canonical patterns and their rules, in the author's order.
        has_domains: there is a pattern.
        has_rules: some pattern has rules.
        secrets: names of all secrets that the rules need, each once.
        plugins: names of all plugins that the rules use, each with the place where it stands.
    """

    __slots__ = (
        "_patterns",
        "allow",
        "deny",
        "domains",
        "has_domains",
        "has_rules",
        "mode",
        "plugins",
        "secrets",
    )

    mode: Mode
    allow: PrefixTable
    deny: PrefixTable
    domains: Mapping[str, RuleSet | None]
    has_domains: bool
    has_rules: bool
    secrets: tuple[str, ...]
    plugins: tuple[tuple[str, str], ...]
    _patterns: PatternTable

    def __init__(self, draft: Draft) -> None:
        """Take what ``read`` made; authors use ``parse``."""
        set_ = object.__setattr__
        rule_sets = [rules for rules in draft.domains.values() if rules is not None]
        set_(self, "mode", draft.mode)
        set_(self, "domains", MappingProxyType(draft.domains))
        set_(self, "allow", PrefixTable(draft.allow))
        set_(self, "deny", PrefixTable(draft.deny))
        set_(self, "has_domains", bool(draft.domains))
        set_(self, "has_rules", bool(rule_sets))
        set_(self, "secrets", tuple(dict.fromkeys(name for rules in rule_sets for name in rules.secrets)))
        set_(
            self,
            "plugins",
            tuple(
                (step.name, f'allow["{rules.pattern}"][{rule}].transform[{position}].plugin')
                for rules in rule_sets
                for rule, position, step in rules.plugin_steps()
            ),
        )
        set_(self, "_patterns", PatternTable(draft.domains))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a policy can't be changed: make another ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a policy can't be changed: make another ({name})")

    @classmethod
    def parse(cls, document: object) -> Policy:
        """Read a JSON value: ``"allow-all"``, ``"deny-all"``, the documented shape or the normalised one.

        A ``Policy`` comes back as it is.

        Raises:
            PolicyError: with every fault, each at its place, and no value that may be secret.
        """
        return document if isinstance(document, Policy) else cls(read(document))

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """Read a policy from JSON text; bytes are UTF-8.

        Raises:
            PolicyError: as in ``parse``, and for what isn't JSON, with line and column. A key that stands
                twice in an object is an error: programs differ in which one they take.
        """
        return cls.parse(load(text))

    def match_domain(self, name: Hostname) -> DomainMatch | None:
        """Return the most specific pattern that matches *name*, with its rules."""
        pattern = self._patterns.find(name)
        return None if pattern is None else self._match(pattern)

    def all_matches(self, name: Hostname) -> list[DomainMatch]:
        """Return every pattern that matches *name*, most specific first: for explanations."""
        return list(map(self._match, self._patterns.find_all(name)))

    def _match(self, pattern: str) -> DomainMatch:
        match = _OpenMatch()
        match.pattern = pattern
        match.rules = self.domains[pattern]
        match.__class__ = DomainMatch
        made: DomainMatch = match
        return made

    def resolves(self, name: Hostname) -> bool:
        """Tell whether a program may look *name* up.

        A query carries its name out, so where domains are listed only they are resolved. Where only ranges
        are, there is no list of names to go by.
        """
        match self.mode:
            case Mode.ALLOW_ALL:
                return True
            case Mode.DENY_ALL:
                return False
            case Mode.USER_DEFINED:
                return not self.has_domains or self._patterns.find(name) is not None

    def covers_below(self, name: str) -> bool:
        """Tell whether a name that this policy lets a program look up may stand below *name*.

        "No such name" would be a wrong answer for such an ancestor: it also says that there is nothing below (RFC 8020).

        Args:
            name: a canonical name, or "" for the root of all names.
        """
        match self.mode:
            case Mode.ALLOW_ALL:
                return True
            case Mode.DENY_ALL:
                return False
            case Mode.USER_DEFINED:
                return not self.has_domains or self._patterns.has_below(name)

    def document(self) -> object:
        """Return the policy as a JSON value in the documented shape.

        Header values and the texts in plugins' options read ``<redacted>``; such a document is for looking
        at, and ``parse`` refuses it. Names, ranges, what requests are matched on and the bodies of responses
        are shown.
        """
        subnets: dict[str, object] = {
            name: [str(network) for network in table]
            for name, table in (("allow", self.allow), ("deny", self.deny))
            if len(table)
        }
        if self.mode is not Mode.USER_DEFINED:
            return {"mode": self.mode.value, "subnets": subnets} if subnets else self.mode.value
        written: dict[str, object] = {}
        if self.has_rules:
            written["allow"] = {
                pattern: [rule.document() for rule in rules.rules] if rules else [] for pattern, rules in self.domains.items()
            }
        elif self.has_domains:
            written["allow"] = list(self.domains)
        if subnets:
            written["subnets"] = subnets
        return written

    def _content(self) -> tuple[object, ...]:
        return self.mode, self.domains, frozenset(self.allow.spans), frozenset(self.deny.spans)

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if isinstance(other, Policy) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.mode, frozenset(self.domains), frozenset(self.allow.spans), frozenset(self.deny.spans)))

    def __repr__(self) -> str:
        counts = f"{len(self.domains)} domains, {len(self.allow)} ranges, {len(self.deny)} denied ranges"
        return f"<Policy {self.mode}: {counts}>"
