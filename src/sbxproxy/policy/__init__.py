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

from sbxproxy.policy.action import Action, Forward, Respond, SetHeaders, Transform, UsePlugin
from sbxproxy.policy.decision import (
    Decision,
    Deny,
    Dial,
    Facts,
    Handle,
    Inspect,
    Need,
    Reason,
    Relay,
    Wire,
)
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
