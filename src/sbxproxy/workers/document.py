"""A policy as a document that makes it again, whole: ``Policy.document`` hides the values that may be secret.

For the one way from the supervisor to its workers, and for nothing that anybody looks at.
"""

from __future__ import annotations

__all__ = ["written"]

from collections.abc import Mapping
from typing import Any

from sbxproxy.policy.action import Forward, Respond, SetHeaders, Step, Transform
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reading import Mode
from sbxproxy.policy.rules import Rule
from sbxproxy.policy.template import Template


def written(policy: Policy) -> dict[str, Any]:
    """Return a document that ``Policy.parse`` makes an equal policy of."""
    subnets = {"allow": list(map(str, policy.allow)), "deny": list(map(str, policy.deny))}
    if policy.mode is not Mode.USER_DEFINED:
        return {"mode": policy.mode.value, "subnets": subnets}
    return {
        "allow": {pattern: [_rule(rule) for rule in rules.rules] if rules else [] for pattern, rules in policy.domains.items()},
        "subnets": subnets,
    }


def _rule(rule: Rule) -> Mapping[str, Any]:
    document = rule.document()
    match rule.action:
        case Transform(steps):
            document["transform"] = [_step(step) for step in steps]
        case Forward() | Respond():
            pass  # these are shown as they are
    return document


def _step(step: Step) -> Mapping[str, Any]:
    if isinstance(step, SetHeaders):
        return {"headers": {name: _text(value) for name, value in step.headers}}
    return {"plugin": step.name, **({"config": dict(step.config)} if step.config else {})}


def _text(template: Template) -> str:
    literals = [literal.replace("${", "$${") for literal in template.literals]
    return literals[0] + "".join(
        f"${{secret:{name}}}{literal}" for name, literal in zip(template.names, literals[1:], strict=True)
    )
