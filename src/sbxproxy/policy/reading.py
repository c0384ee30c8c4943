"""From a JSON value to what a policy is made of, with every fault at its place.

Policies without surprises are read by hand, since building pydantic's models would cost more than all the rest
of a small program's start. Whatever that doesn't recognise goes through the models, whose errors are put into
words in ``wording``.
"""

from __future__ import annotations

__all__ = ["Draft", "Mode", "read"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from sbxproxy.errors import PolicyError, PolicyProblem
from sbxproxy.paced import give_way, paced
from sbxproxy.policy.action import SetHeaders, Transform
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.pattern import parse_pattern
from sbxproxy.policy.place import key_place
from sbxproxy.policy.plain import read_rules
from sbxproxy.policy.rules import Rule, RuleSet
from sbxproxy.ranges import IPNetwork, Span, parse_span, span_of

if TYPE_CHECKING:
    from sbxproxy.policy.document import Document, NormalisedDocument


class Mode(StrEnum):
    """What holds for a destination that the policy doesn't mention."""

    ALLOW_ALL = "allow-all"
    DENY_ALL = "deny-all"
    USER_DEFINED = "user-defined"


@dataclass(slots=True, kw_only=True)
class Draft:
    """A document that was read, not yet made fast to look up."""

    mode: Mode
    domains: dict[str, RuleSet | None] = field(default_factory=dict)
    allow: list[Span] = field(default_factory=list)
    deny: list[Span] = field(default_factory=list)


_MODES = {
    "allow-all": Mode.ALLOW_ALL,
    "default-allow": Mode.ALLOW_ALL,
    "deny-all": Mode.DENY_ALL,
    "default-deny": Mode.USER_DEFINED,
    "custom": Mode.USER_DEFINED,
}
_NORMALISED_KEYS = frozenset({"allowedDomains", "allowedCIDRs", "deniedCIDRs", "injectionRules", "forwardRules"})
_RULES_AT_ONCE = 50
_RANGES_AT_ONCE = 500
"""How many are read before other threads may run."""

_EXPECTED = '"allow-all", "deny-all" or an object with allow and subnets'


def read(document: object) -> Draft:
    """Read a document in any of the accepted forms.

    Raises:
        PolicyError: with every fault that can be told.
    """
    if isinstance(document, str):
        # A bare default-deny lists nothing, so nothing leaves.
        mode = _MODES.get(document)
        if mode is None or document == "custom":
            raise PolicyError(PolicyProblem("", "not a policy", _EXPECTED))
        return _settle(mode, {}, [], [], _Names.documented())
    if not isinstance(document, dict):
        raise PolicyError(PolicyProblem("", "not a policy", _EXPECTED))
    normalised = not _NORMALISED_KEYS.isdisjoint(document)
    plain = _read_plain(document, _Names.normalised() if normalised else _Names.documented())
    if plain is not None:
        return plain
    return _read_normalised(document) if normalised else _read_documented(document)


@dataclass(frozen=True, slots=True)
class _Names:
    """How a form of the document calls its three lists."""

    domains: str
    allow: str
    deny: str

    @classmethod
    def documented(cls) -> _Names:
        return cls("allow", "subnets.allow", "subnets.deny")

    @classmethod
    def normalised(cls) -> _Names:
        return cls("allowedDomains", "allowedCIDRs", "deniedCIDRs")


def _settle(
    mode: Mode,
    domains: dict[str, RuleSet | None],
    allow: list[Span],
    deny: list[Span],
    names: _Names,
) -> Draft:
    """Hold mode and lists against each other."""
    if mode is Mode.USER_DEFINED:
        if not domains and not allow:
            mode = Mode.DENY_ALL
    elif domains or allow:
        problems = [
            PolicyProblem(name, f"a list beside the mode {mode}", "either the mode or the list")
            for name, listed in ((names.domains, domains), (names.allow, allow))
            if listed
        ]
        raise PolicyError(*problems)
    return Draft(mode=mode, domains=domains, allow=allow, deny=deny)


def _read_plain(document: Mapping[object, object], names: _Names) -> Draft | None:
    """Read a document without the models; ``None`` if it holds what they must look at."""
    lists: dict[str, object] = {}
    for key, value in document.items():
        if key == "subnets" and names.domains == "allow":
            if not isinstance(value, dict) or not value.keys() <= {"allow", "deny"}:
                return None
            lists |= {f"subnets.{name}": listed for name, listed in value.items()}
        elif key == "mode":
            if not isinstance(value, str) or value not in _MODES:
                return None
        elif isinstance(key, str) and key in {names.domains, names.allow, names.deny}:
            lists[key] = value
        else:
            return None
    domains = lists.get(names.domains)
    keyed = isinstance(domains, dict)
    rules: dict[int, tuple[Rule, ...]] = {}
    if isinstance(domains, dict):
        for position, listed in enumerate(paced(domains.values())):
            if listed != [] or not isinstance(listed, list):
                found = read_rules(listed)
                if not found:
                    return None
                rules[position] = found
                if len(rules) % _RULES_AT_ONCE == 0:
                    give_way()
        lists[names.domains] = list(domains)
    texts: dict[str, list[str]] = {}
    for name, listed in lists.items():
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in paced(listed)):
            return None
        texts[name] = listed
    problems: list[PolicyProblem] = []
    patterns = _patterns(texts.get(names.domains, []), names.domains, problems, keyed=keyed)
    ranges = {name: _networks(texts.get(name, []), name, problems) for name in (names.allow, names.deny)}
    if problems:
        raise PolicyError(*problems)
    mode = _MODES[str(document.get("mode", "custom"))]
    compiled: dict[str, RuleSet | None] = dict.fromkeys(patterns)
    for position, found in rules.items():  # keyed, and without problems: there is a pattern for every key
        compiled[patterns[position]] = RuleSet(patterns[position], found)
    return _settle(mode, compiled, ranges[names.allow], ranges[names.deny], names)


def _patterns(texts: Sequence[str], place: str, problems: list[PolicyProblem], *, keyed: bool) -> list[str]:
    """Read patterns. In a map two keys that mean the same are a fault, in a list they do no harm."""
    patterns: dict[str, int] = {}

    def here(position: int) -> str:
        return place + (key_place(texts[position], position) if keyed else f"[{position}]")

    for position, text in enumerate(paced(texts)):
        try:
            pattern = parse_pattern(text)
        except Fault as fault:
            problems.append(PolicyProblem(here(position), fault.problem, fault.expected))
            continue
        first = patterns.setdefault(pattern, position)
        if keyed and first != position:
            problems.append(PolicyProblem(here(position), f"the same pattern as {here(first)}", "each pattern once"))
    return list(patterns)


def _networks(texts: Iterable[str], place: str, problems: list[PolicyProblem]) -> list[Span]:
    spans: list[Span] = []
    for position, text in enumerate(paced(texts, piece=_RANGES_AT_ONCE)):
        try:
            spans.append(parse_span(text))
        except ValueError as error:
            expected = "CIDR notation, such as 203.0.113.0/24"
            problems.append(PolicyProblem(f"{place}[{position}]", str(error), expected))
    return spans


_Shape = TypeVar("_Shape", "Document", "NormalisedDocument")


def _validate(shape: type[_Shape], document: object) -> _Shape:
    from pydantic import ValidationError  # noqa: PLC0415

    from sbxproxy.policy.wording import problems_of  # noqa: PLC0415

    try:
        return shape.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, document)
    # Outside the except clause: pydantic's error holds the whole document, and would hang on ours as its
    # context.
    raise PolicyError(*problems)


def _read_documented(document: object) -> Draft:
    from sbxproxy.policy.document import Document  # noqa: PLC0415

    shape = _validate(Document, document)
    problems: list[PolicyProblem] = []
    patterns = _patterns(list(shape.allow), "allow", problems, keyed=isinstance(shape.allow, dict))
    if problems:
        raise PolicyError(*problems)
    listed = shape.allow.values() if isinstance(shape.allow, dict) else [[]] * len(patterns)
    domains = {pattern: _rule_set(pattern, rules) for pattern, rules in zip(patterns, listed, strict=True)}
    return _settle(_MODES[shape.mode], domains, _spans(shape.subnets.allow), _spans(shape.subnets.deny), _Names.documented())


def _spans(networks: Iterable[IPNetwork]) -> list[Span]:
    return list(map(span_of, networks))


def _rule_set(pattern: str, rules: Iterable[Rule]) -> RuleSet | None:
    numbered = tuple(replace(rule, index=index) for index, rule in enumerate(rules))
    return RuleSet(pattern, numbered) if numbered else None


def _read_normalised(document: object) -> Draft:
    from sbxproxy.policy.document import NormalisedDocument  # noqa: PLC0415

    shape = _validate(NormalisedDocument, document)
    problems: list[PolicyProblem] = []
    rules: dict[str, list[Rule]] = {
        pattern: [] for pattern in _patterns(shape.allowedDomains, "allowedDomains", problems, keyed=False)
    }

    def add(place: str, domain: str, rule: Rule) -> None:
        """Rules never widen access, so a domain that has some must be allowed already."""
        listed = rules.get(parse_pattern(domain))
        if listed is None:
            problems.append(PolicyProblem(f"{place}.domain", "not among allowedDomains", "list it there as well"))
        else:
            listed.append(rule)

    for i, injection in enumerate(shape.injectionRules):
        step = SetHeaders(tuple(injection.headers.items()))
        add(f"injectionRules[{i}]", injection.domain, Rule(0, injection.match, Transform((step,))))
    for i, forward in enumerate(shape.forwardRules):
        add(f"forwardRules[{i}]", forward.domain, Rule(0, forward.match, forward.forwardURL))
    if problems:
        raise PolicyError(*problems)
    domains = {pattern: _rule_set(pattern, listed) for pattern, listed in rules.items()}
    return _settle(_MODES[shape.mode], domains, _spans(shape.allowedCIDRs), _spans(shape.deniedCIDRs), _Names.normalised())
