"""What is allowed in a policy and is seldom meant."""

from __future__ import annotations

__all__ = ["Finding", "Severity", "lint"]

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sbxproxy.hostname import Hostname
from sbxproxy.policy.action import Transform
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reading import Mode
from sbxproxy.policy.rules import RuleSet


class Severity(StrEnum):
    """How likely it is a mistake: a warning opens or loses something, a note only surprises."""

    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        id: what kind, stable.
        place: where in the document.
        message: what it means, and what to do.
        severity: warning or note.
    """

    id: str
    place: str
    message: str
    severity: Severity

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return {"id": self.id, "place": self.place, "message": self.message, "severity": str(self.severity)}


# Suffixes below which anyone can have a name for the asking. Not the public suffix list, which is large and
# changes weekly: only what is met in policies for sandboxes.
_SHARED = frozenset(
    [
        "amazonaws.com",
        "awsapprunner.com",
        "azureedge.net",
        "azurewebsites.net",
        "blob.core.windows.net",
        "blogspot.com",
        "cloudapp.azure.com",
        "cloudfront.net",
        "deno.dev",
        "digitaloceanspaces.com",
        "duckdns.org",
        "elasticbeanstalk.com",
        "firebaseapp.com",
        "fly.dev",
        "github.io",
        "gitlab.io",
        "glitch.me",
        "herokuapp.com",
        "hf.space",
        "lambda-url.*.on.aws",
        "loca.lt",
        "netlify.app",
        "ngrok-free.app",
        "ngrok.app",
        "ngrok.io",
        "nip.io",
        "now.sh",
        "ondigitalocean.app",
        "onrender.com",
        "pages.dev",
        "r2.cloudflarestorage.com",
        "r2.dev",
        "replit.app",
        "replit.dev",
        "run.app",
        "s3.*.amazonaws.com",
        "s3.amazonaws.com",
        "serveo.net",
        "sslip.io",
        "storage.googleapis.com",
        "supabase.co",
        "surge.sh",
        "trycloudflare.com",
        "up.railway.app",
        "vercel.app",
        "vercel.dev",
        "web.app",
        "webhook.site",
        "wordpress.com",
        "workers.dev",
        "appspot.com",
        "co.uk",
        "org.uk",
        "ac.uk",
        "com.au",
        "net.au",
        "co.jp",
        "co.kr",
        "co.in",
        "co.nz",
        "co.za",
        "com.br",
        "com.cn",
        "com.mx",
        "com.tr",
        "com.tw",
    ]
)
# *.core.windows.net covers *.blob.core.windows.net.
_ABOVE_SHARED = frozenset(
    ".".join(labels[start:]) for labels in (suffix.split(".") for suffix in _SHARED) for start in range(1, len(labels) - 1)
)

# Outer names of Encrypted Client Hello (RFC 9849): whoever may speak to one reaches every site behind it.
_ECH_PUBLIC_NAMES = ("cloudflare-ech.com", "public.tls-ech.dev", "cover.defo.ie")


def lint(policy: Policy) -> list[Finding]:
    """Return what is worth a second look, in the order of the document."""
    if policy.mode is not Mode.USER_DEFINED:
        return []
    found: list[Finding] = []
    hidden = _shadowed(policy) if policy.has_rules else {}
    for pattern, rules in policy.domains.items():
        found += _lint_pattern(policy, pattern, rules)
        found += _lint_shadows(pattern, hidden.get(pattern, []))
    found += _lint_ech(policy)
    found += _lint_ranges(policy)
    if policy.has_rules:
        found.append(
            Finding(
                "rules-https-only",
                "allow",
                "rules apply to HTTPS requests; a PostgreSQL server of the same name is reached inside TLS, with the bytes untouched",
                Severity.NOTE,
            )
        )
    return found


def _lint_pattern(policy: Policy, pattern: str, rules: RuleSet | None) -> Iterator[Finding]:
    place = f'allow["{pattern}"]'
    first, _, rest = pattern.partition(".")
    if pattern == "*":
        yield Finding("any-domain", place, "allows every server that has a name; data can go anywhere", Severity.WARNING)
    elif first == "*":
        yield from _lint_wildcard(policy, rest, place)
    if rules is None:
        return
    if first == "*" and any(isinstance(rule.action, Transform) and rule.action.steps for rule in rules.rules):
        yield Finding(
            "broad-credential",
            place,
            "sends what its rules set to every name below; one that echoes requests, or is someone else's, "
            "learns it. List the exact names",
            Severity.WARNING,
        )
    yield from _lint_rules(rules, place)


def _lint_wildcard(policy: Policy, rest: str, place: str) -> Iterator[Finding]:
    if "." not in rest or rest in _SHARED or rest in _ABOVE_SHARED:
        yield Finding(
            "shared-suffix",
            place,
            f"anyone can have a name below {rest}, and receive data there. List the exact names",
            Severity.WARNING,
        )
    elif "*" not in rest and policy.match_domain(Hostname(rest)) is None:
        yield Finding("apex-gap", place, f"doesn't cover {rest} itself. List that too if it is meant", Severity.NOTE)


def _lint_rules(rules: RuleSet, place: str) -> Iterator[Finding]:
    for rule in rules.rules:
        for earlier in rules.rules[: rule.index]:
            if earlier.match.is_empty or earlier.match == rule.match:
                yield Finding(
                    "unreachable-rule",
                    f"{place}[{rule.index}]",
                    f"never applies: rule {earlier.index} takes all of its requests first",
                    Severity.WARNING,
                )
                break


def _lint_shadows(pattern: str, hidden: list[str]) -> Iterator[Finding]:
    if hidden:
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        yield Finding(
            "shadowed-rules",
            f'allow["{pattern}"]',
            f"its rules don't apply to {hidden[0]}{more}: the more specific pattern's alone count, even where it has none",
            Severity.WARNING,
        )


def _shadowed(policy: Policy) -> dict[str, list[str]]:
    """Map patterns with rules to the more specific patterns that their rules don't reach."""
    hidden: dict[str, list[str]] = {}
    for pattern in policy.domains:
        # A label that no one lists stands in for the wildcard.
        for covering in policy.all_matches(Hostname(pattern.replace("*", "any-other-label")))[1:]:
            if covering.rules is not None:
                hidden.setdefault(covering.pattern, []).append(pattern)
                break
    return hidden


def _lint_ech(policy: Policy) -> Iterator[Finding]:
    for name in _ECH_PUBLIC_NAMES:
        found = policy.match_domain(Hostname(name))
        if found is not None and found.pattern != "*":
            yield Finding(
                "ech-public-name",
                f'allow["{found.pattern}"]',
                f"{name} is the outer name of Encrypted Client Hello: behind it any site of that provider is reached",
                Severity.WARNING,
            )


def _lint_ranges(policy: Policy) -> Iterator[Finding]:
    everything = [network for network in policy.allow if network.prefixlen == 0]
    if everything and policy.has_domains:
        yield Finding(
            "range-opens-everything",
            "subnets.allow",
            f"{everything[0]} allows every address, so the list of domains restricts nothing",
            Severity.WARNING,
        )
    if len(policy.allow) and policy.has_rules:
        yield Finding(
            "range-avoids-rules",
            "subnets.allow",
            "a connection to these ranges that sends no server name is relayed without rules",
            Severity.WARNING,
        )
    if not policy.has_domains:
        yield Finding(
            "open-dns",
            "subnets.allow",
            "without domains every name is resolved, and queries carry data out. List a domain to close that",
            Severity.WARNING,
        )
