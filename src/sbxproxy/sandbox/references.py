"""Whether what a policy names is there."""

from __future__ import annotations

__all__ = ["check_references"]

from collections.abc import Mapping
from typing import Any

from sbxproxy.errors import PolicyError, PolicyProblem
from sbxproxy.policy.model import Policy
from sbxproxy.secrets import Secrets


def check_references(policy: Policy, secrets: Secrets, plugins: Mapping[str, Any]) -> None:
    """Check that all that *policy* names exists.

    Raises:
        PolicyError: it names a secret without a source, or a plugin that isn't loaded.
    """
    problems = [
        PolicyProblem("", f"it uses the secret {name!r}, which has no source", _known("secrets", secrets.names))
        for name in sorted(set(policy.secrets) - secrets.names)
    ]
    problems += [
        PolicyProblem(place, f"no transform named {name!r} is loaded", _known("loaded transforms", plugins))
        for name, place in policy.plugins
        if name not in plugins
    ]
    if problems:
        raise PolicyError(*problems)


def _known(what: str, names: Any) -> str:
    return f"{what}: {', '.join(sorted(names)) or 'none'}"
