"""What a sandbox may reach: policies, and the pure functions that judge by them."""

from __future__ import annotations

__all__ = [
    "Action",
    "Boundary",
    "Decision",
    "Deny",
    "Dial",
    "DomainMatch",
    "Explanation",
    "Facts",
    "Finding",
    "Forward",
    "Handle",
    "HttpRequest",
    "Inspect",
    "Mode",
    "Need",
    "Policy",
    "Reason",
    "Relay",
    "Respond",
    "Rule",
    "RuleSet",
    "SetHeaders",
    "Severity",
    "Target",
    "Template",
    "Transform",
    "UsePlugin",
    "Wire",
    "canonical_path",
    "explain",
    "is_ambiguous_path",
    "json_schema",
    "judge",
    "lint",
    "parse_target",
    "permitted",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.policy.action import Action, Forward, Respond, SetHeaders, Transform, UsePlugin
    from sbxproxy.policy.decision import Decision, Deny, Dial, Facts, Handle, Inspect, Need, Reason, Relay, Wire
    from sbxproxy.policy.explain import Explanation, HttpRequest, Target, explain, parse_target
    from sbxproxy.policy.judge import judge
    from sbxproxy.policy.lint import Finding, Severity, lint
    from sbxproxy.policy.model import DomainMatch, Policy
    from sbxproxy.policy.path import canonical_path, is_ambiguous_path
    from sbxproxy.policy.reach import Boundary, permitted
    from sbxproxy.policy.reading import Mode
    from sbxproxy.policy.rules import Rule, RuleSet
    from sbxproxy.policy.schema import json_schema
    from sbxproxy.policy.template import Template

face(
    __name__,
    {
        "action": "Action Forward Respond SetHeaders Transform UsePlugin",
        "decision": "Decision Deny Dial Facts Handle Inspect Need Reason Relay Wire",
        "explain": "Explanation HttpRequest Target explain parse_target",
        "judge": "judge",
        "lint": "Finding Severity lint",
        "model": "DomainMatch Policy",
        "path": "canonical_path is_ambiguous_path",
        "reach": "Boundary permitted",
        "reading": "Mode",
        "rules": "Rule RuleSet",
        "schema": "json_schema",
        "template": "Template",
    },
)
