"""The rules of one domain: which one a request falls under.

Rules decide what happens to a request, never whether it may go out: that was decided for the connection. A
request that fits no rule passes as it is, without any credential.
"""

from __future__ import annotations

__all__ = ["Rule", "RuleSet"]

from collections.abc import Iterable
from dataclasses import dataclass, field

from sbxproxy.policy.action import Action, Forward, Respond, SetHeaders, Transform, UsePlugin, secrets_of
from sbxproxy.policy.fault import REDACTED
from sbxproxy.policy.match import RequestMatch


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        index: its place in the list, from 0.
        match: what a request must have; an empty one takes every request.
        action: what is done with it.
    """

    index: int
    match: RequestMatch
    action: Action

    def describe(self) -> str:
        """Tell in a few words what it does, without any value."""
        match self.action:
            case Transform(steps):
                done = [
                    f"sets {', '.join(name for name, _ in step.headers)}"
                    if isinstance(step, SetHeaders)
                    else f"uses the plugin {step.name}"
                    for step in steps
                ]
                return "; ".join(done) or "lets it pass unchanged"
            case Forward(url=url):
                return f"forwards to {url}"
            case Respond(status=status):
                return f"answers {status}"

    def document(self) -> dict[str, object]:
        """Return it as a policy shows it: without values of headers and texts of plugins' options."""
        written: dict[str, object] = {}
        if not self.match.is_empty:
            written["match"] = self.match.document()
        match self.action:
            case Transform(steps):
                written["transform"] = [
                    {"headers": {name: REDACTED for name, _ in step.headers}}
                    if isinstance(step, SetHeaders)
                    else {"plugin": step.name, **({"config": step.redacted()} if step.config else {})}
                    for step in steps
                ]
            case Forward(url=url):
                written["forwardURL"] = url
            case Respond(status=status, content_type=content_type, body=body):
                response: dict[str, object] = {"statusCode": status}
                if content_type is not None:
                    response["contentType"] = content_type
                if body:
                    response["body"] = body.decode()
                written["response"] = response
        return written


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one pattern, in order; there is at least one.

    Attributes:
        pattern: the canonical pattern they belong to.
        rules: in the author's order; the first that fits is the one.
        matches_path: some rule looks at the path, so ambiguous paths must be refused.
        matches_method: some rule looks at the method, so headers that override it must go.
        needs_upstream: some request may reach the domain itself; false only if the first rule takes them all,
            and answers or forwards them.
        secrets: names of all secrets that the rules need, each once.
    """

    pattern: str
    rules: tuple[Rule, ...]
    matches_path: bool = field(init=False, compare=False)
    matches_method: bool = field(init=False, compare=False)
    needs_upstream: bool = field(init=False, compare=False)
    secrets: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        rules = self.rules
        derived = {
            "matches_path": any(rule.match.path is not None for rule in rules),
            "matches_method": any(rule.match.methods for rule in rules),
            "needs_upstream": not (rules and rules[0].match.is_empty and isinstance(rules[0].action, Forward | Respond)),
            "secrets": tuple(dict.fromkeys(name for rule in rules for name in secrets_of(rule.action))),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def plugins(self) -> tuple[UsePlugin, ...]:
        """The plugin steps of all rules, in order."""
        return tuple(step for _, _, step in self.plugin_steps())

    def plugin_steps(self) -> list[tuple[int, int, UsePlugin]]:
        """Return the plugin steps with the index of their rule and of their step."""
        return [
            (rule.index, position, step)
            for rule in self.rules
            if isinstance(rule.action, Transform)
            for position, step in enumerate(rule.action.steps)
            if isinstance(step, UsePlugin)
        ]

    def select(self, *, method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> Rule | None:
        """Return the first rule that a request fits, or ``None``: then the request passes unchanged.

        Args:
            method: as sent; compared with case.
            target: origin-form. If ``matches_path``, the caller has refused ambiguous ones already.
            headers: the fields as the client sent them.
        """
        fields = tuple(headers)
        for rule in self.rules:
            if rule.match.fits(method=method, target=target, headers=fields):
                return rule
        return None
