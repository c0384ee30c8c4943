"""Why a destination would be allowed or denied, before anyone connects.

It only asks ``judge`` and ``RuleSet.select``, with facts made up from what a person writes, so it can't say
anything else than what would happen. What it had to assume it says in ``notes``.
"""

from __future__ import annotations

__all__ = ["Explanation", "HttpRequest", "Target", "explain", "parse_target"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import assert_never
from urllib.parse import parse_qs, urlsplit

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.policy.decision import Decision, Deny, Facts, Handle, Inspect, Need, Reason, Relay, Wire
from sbxproxy.policy.judge import judge
from sbxproxy.policy.model import Policy
from sbxproxy.policy.path import is_ambiguous_path
from sbxproxy.policy.reach import Boundary
from sbxproxy.policy.rules import Rule

_WIRES = {"https": Wire.TLS, "http": Wire.HTTP, "postgres": Wire.POSTGRES_TLS, "postgresql": Wire.POSTGRES_TLS}
_PORTS = {"https": 443, "http": 80, "postgres": 5432, "postgresql": 5432}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A destination as a person names it.

    Attributes:
        host: name or address.
        port: 1 to 65535.
        wire: the protocol, where the scheme of a URL told it.
        path: path and query of a URL, for rules.
    """

    host: Hostname | IPAddress
    port: int
    wire: Wire | None = None
    path: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request to try the rules with."""

    method: str = "GET"
    target: str = "/"
    headers: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What would happen.

    Attributes:
        decision: as for a real connection, but with no addresses to dial where they were assumed.
        reason: its reason id.
        pattern: the pattern or range that made it, if any.
        rule: index of the rule that the request falls under, if there are rules and a request.
        action: what that rule does, without values.
        dns: whether the name would be resolved for a program; ``None`` for an address.
        notes: what was assumed, and what else to know.
    """

    decision: Decision
    reason: str
    pattern: str | None = None
    rule: int | None = None
    action: str | None = None
    dns: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether anything gets out."""
        return not isinstance(self.decision, Deny)


def parse_target(text: str) -> Target:
    """Read ``host:port``, ``[v6]:port``, ``host`` (port 443) or a URL with https, http or postgres(ql).

    A PostgreSQL client is taken to use TLS, unless the URL says ``sslmode=disable``.

    Raises:
        ValueError: it is none of these.
    """
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() not in _WIRES:
        raise ValueError("known schemes are https, http, postgres and postgresql")
    try:
        parts = urlsplit(text if separator else f"//{text}")
        port = parts.port
    except ValueError:
        raise ValueError("not host:port or a URL") from None
    scheme = parts.scheme
    name = parts.hostname or ""
    host = parse_address(name) or canonical_hostname(name)
    if host is None or port == 0 or (not separator and (parts.path or parts.query or parts.fragment or parts.username)):
        raise ValueError("not host:port or a URL: a host name or an address, and a port from 1 to 65535")
    path = None
    if scheme in {"http", "https"} and (parts.path or parts.query):
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    wire = _WIRES.get(scheme)
    if wire is Wire.POSTGRES_TLS and "disable" in parse_qs(parts.query).get("sslmode", ()):
        wire = Wire.POSTGRES
    return Target(host=host, port=port or _PORTS.get(scheme, 443), wire=wire, path=path)


def explain(
    policy: Policy,
    target: Target,
    boundary: Boundary,
    *,
    request: HttpRequest | None = None,
    addresses: Sequence[IPAddress] | None = None,
) -> Explanation:
    """Tell what would happen to a connection to *target*, and to *request* on it.

    Args:
        policy: by which.
        target: where to.
        boundary: what holds for every policy; the default one knows nothing of the machine.
        request: what to try the rules with; a URL's path as a GET, if left out.
        addresses: what the name resolves to; left out, it is taken to be public.
    """
    notes: list[str] = []
    assumed = addresses is None
    decision = _decide(policy, target, boundary, addresses, notes)
    if assumed and not isinstance(decision, Deny) and isinstance(target.host, str):
        decision = replace(decision, dial=replace(decision.dial, addresses=()))
    if request is None and target.path is not None:
        request = HttpRequest(target=target.path)
    rule: Rule | None = None
    pattern: str | None
    match decision:
        case Deny(matched=pattern):
            pass
        case Inspect(matched=pattern, rules=rules):
            if request is None:
                notes.append("no request was given to try its rules with")
            elif rules.matches_path and is_ambiguous_path(request.target):
                decision = Deny(
                    reason=Reason.AMBIGUOUS_PATH,
                    detail="rules look at the path, and programs would read this one differently",
                )
            else:
                rule = rules.select(method=request.method, target=request.target, headers=request.headers)
                if rule is None:
                    notes.append("the request fits no rule: it passes unchanged, without credential")
        case Relay(matched=pattern, provisional=provisional):
            if provisional:
                notes.append("if the client sends a ClientHello for a domain with rules, those apply")
            if target.wire is Wire.POSTGRES_TLS:
                notes += _postgres_notes(policy, target, decision)
        case Handle(matched=pattern):
            pass
        case _:
            assert_never(decision)
    return Explanation(
        decision=decision,
        reason=decision.reason,
        pattern=pattern,
        rule=None if rule is None else rule.index,
        action=None if rule is None else rule.describe(),
        dns=policy.resolves(target.host) if isinstance(target.host, str) else None,
        notes=tuple(dict.fromkeys(notes)),
    )


def _postgres_notes(policy: Policy, target: Target, decision: Relay) -> Iterator[str]:
    if decision.reason != Reason.DOMAIN:
        return
    yield "only inside TLS: a client that begins in plain text (sslmode=disable, or a plain-text cancel request) is refused"
    found = policy.match_domain(target.host) if isinstance(target.host, str) else None
    if found is not None and found.rules is not None:
        yield "its rules don't apply to PostgreSQL: the bytes pass untouched"


def _decide(
    policy: Policy,
    target: Target,
    boundary: Boundary,
    addresses: Sequence[IPAddress] | None,
    notes: list[str],
) -> Decision:
    facts = Facts(host=target.host, port=target.port)
    # Each answer adds a fact, and there are two to add.
    for _ in range(3):
        decision = judge(policy, facts, boundary)
        match decision:
            case Need.ADDRESSES:
                if addresses is None:
                    address = _some_public_address(policy, boundary)
                    notes.append(f"assumed that the name resolves to a public address ({address}) in no listed range")
                    facts = replace(facts, addresses=(address,))
                else:
                    facts = replace(facts, addresses=tuple(addresses))
            case Need.WIRE | Need.HELLO:
                wire = target.wire or Wire.TLS
                if target.wire is None:
                    notes.append("assumed that the client speaks TLS")
                name = target.host if isinstance(target.host, str) and wire in {Wire.TLS, Wire.POSTGRES_TLS} else None
                facts = replace(facts, wire=wire, server_name=name)
            case _:
                return decision
    raise AssertionError("a decision needs no more than addresses and first bytes")


# One of each of some large networks: a policy that lists ranges around all of them means everybody.
_CANDIDATES = tuple(IPv4Address(f"{first}.0.0.1") for first in (93, 1, 8, 17, 34, 52, 104, 142, 151, 185))


def _some_public_address(policy: Policy, boundary: Boundary) -> IPAddress:
    """Pick one that stands for "somewhere on the Internet": no range mentions it, if that can be."""
    tables = (policy.allow, policy.deny, boundary.never, boundary.private)
    for address in _CANDIDATES:
        if not any(address in table for table in tables):
            return address
    return _CANDIDATES[0]
