"""What a query is answered before anybody is asked, and what is left of the addresses that somebody answered. Pure.

A query carries its name out, and tunnels live of that; so a name that no pattern matches is answered here. The denial is
"no such name" because programs believe it at once, where they wait or ask on after a refusal, and it comes without an SOA
record, because with one resolvers would remember it across a change of the policy (RFC 2308).
"""

from __future__ import annotations

__all__ = [
    "ADDRESS_TTL",
    "PLACEHOLDER",
    "Allow",
    "Refuse",
    "address_answer",
    "asks_for_address",
    "decide",
    "no_such_name",
    "not_supported",
    "reverse_address",
]

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from sbxproxy.address import IPAddress
from sbxproxy.dns.message import CLASS_IN, Answer, Ede, Query, Rcode, Record, labels_of
from sbxproxy.hostname import Hostname
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reach import Boundary, Reach
from sbxproxy.policy.reading import Mode

A, PTR, AAAA = 1, 12, 28

ADDRESS_TTL = 30
"""Seconds a program may keep an address. It matters little: whatever address the program dials, the proxy resolves the name
again."""

CARRIED = frozenset({2, 5, 6, 12, 13, 15, 16, 29, 33, 35, 37, 44, 52, 53, 61, 64, 65, 99, 256, 257})
"""Types that are carried for listed names. Not NULL and unknown ones, which have no use but tunnels, and not DNSSEC's, which
prove nothing once answers are filtered."""

PLACEHOLDER = IPv4Address("192.0.2.1")
"""The address of names whose every request is answered or forwarded by rules: they need not exist, and a program must connect
somewhere before its ClientHello can name them. Documentation space (RFC 5737), which nobody can be at."""


@dataclass(frozen=True, slots=True)
class Allow:
    """The name may be looked up.

    Attributes:
        reason: why.
        rule: the pattern that allows it, where one does.
        here: nothing outside is needed for this name: its rules answer or forward every request.
    """

    reason: str
    rule: str | None = None
    here: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """The answer is ready.

    Attributes:
        reason: the reason id, also the text of the extended error.
        answer: what to say.
    """

    reason: str
    answer: Answer


NOT_SUPPORTED = "dns-not-supported"


def _refuse(reason: str, rcode: Rcode, ede: Ede) -> Refuse:
    return Refuse(str(reason), Answer(rcode=rcode, ede=(ede, str(reason))))


_CLOSED = _refuse(Reason.DENY_ALL, Rcode.NXDOMAIN, Ede.BLOCKED)
_NOT_LISTED = _refuse(Reason.DOMAIN_NOT_ALLOWED, Rcode.NXDOMAIN, Ede.BLOCKED)
_ANCESTOR = _refuse(Reason.DOMAIN_NOT_ALLOWED, Rcode.NOERROR, Ede.BLOCKED)
_BAD_NAME = _refuse(Reason.BAD_NAME, Rcode.NXDOMAIN, Ede.BLOCKED)
_NO_ROOT_ADDRESS = _refuse(Reason.BAD_NAME, Rcode.NOERROR, Ede.BLOCKED)
_META = _refuse(NOT_SUPPORTED, Rcode.REFUSED, Ede.NOT_SUPPORTED)
_NOT_CARRIED = _refuse(NOT_SUPPORTED, Rcode.NOERROR, Ede.NOT_SUPPORTED)


def not_supported() -> Refuse:
    """Answer a question for a type that is not carried."""
    return _NOT_CARRIED


_ALL = Allow(str(Reason.ALLOW_ALL))
_OPEN = Allow(str(Reason.RANGE))


def decide(policy: Policy, query: Query) -> Allow | Refuse:
    """Judge the question; the addresses that an allowed name has are judged by ``address_answer``."""
    rdtype = query.rdtype
    # Zone transfers, ANY, and what is no record at all: the same refusal for every name, so that it tells nothing of the policy.
    if query.rdclass != CLASS_IN or rdtype in {0, 41, 0xFFFF} or 128 <= rdtype <= 255:
        return _META
    if policy.mode is Mode.DENY_ALL:
        return _CLOSED
    is_open = policy.mode is Mode.ALLOW_ALL or not policy.has_domains
    why_open = _ALL if policy.mode is Mode.ALLOW_ALL else _OPEN
    name = query.hostname
    if name is None:
        return _no_hostname(query, why_open if is_open else None)
    found = policy.match_domain(name)
    if found is not None:
        if rdtype not in CARRIED and not asks_for_address(rdtype):
            return _NOT_CARRIED
        here = found.rules is not None and not found.rules.needs_upstream
        return Allow(str(Reason.DOMAIN), found.pattern, here)
    if is_open:
        return why_open
    return _ANCESTOR if policy.covers_below(name) else _NOT_LISTED


def _no_hostname(query: Query, why_open: Allow | None) -> Refuse | Allow:
    """Judge the root, and names that no TLS server can have: service instances with blanks, numbers, raw bytes."""
    is_root = query.name == b"\0"
    if why_open is None:
        return _ANCESTOR if is_root else _BAD_NAME
    if asks_for_address(query.rdtype):
        return _NO_ROOT_ADDRESS if is_root else _BAD_NAME
    return why_open


def asks_for_address(rdtype: int) -> bool:
    """Tell A and AAAA from the rest."""
    return rdtype in {A, AAAA}


def no_such_name(policy: Policy, name: Hostname | None) -> Rcode:
    """Return what to say of an allowed name that does not exist: that, or that it has nothing, for an allowed name's ancestor."""
    below = policy.mode is Mode.USER_DEFINED and policy.has_domains and name is not None and policy.covers_below(name)
    return Rcode.NOERROR if below else Rcode.NXDOMAIN


def address_answer(
    policy: Policy, boundary: Boundary, addresses: Sequence[IPAddress], rdtype: int, *, ipv6: bool
) -> tuple[Answer, str | None]:
    """Answer with those of *addresses* that have the right family and may be dialled.

    If none of that family may be, the answer is "no data", since the other family's may be well; and an extended error says why.

    Returns:
        The answer, and the reason id of a denial if all were dropped.
    """
    wanted = [address for address in addresses if address.version == (4 if rdtype == A else 6)]
    if not wanted or (rdtype == AAAA and not ipv6):
        # A redirected connection opens before its upstream is reached, so a client that is given an unreachable address of the
        # better family believes that it works, and never tries the other.
        return Answer(rcode=Rcode.NOERROR), None
    # No port is asked for yet, and no listener has port 0.
    allowed = Reach(policy, 0, boundary).for_domain(wanted)
    if isinstance(allowed, Deny):
        return Answer(rcode=Rcode.NOERROR, ede=(Ede.FILTERED, str(allowed.reason))), str(allowed.reason)
    records = tuple(Record(None, rdtype, ADDRESS_TTL, address.packed) for address in allowed)
    return Answer(rcode=Rcode.NOERROR, records=records), None


def reverse_address(name: bytes) -> IPAddress | None:
    """Return the address that a name under in-addr.arpa or ip6.arpa stands for, if it is a whole one."""
    match labels_of(name):
        case [*digits, b"in-addr", b"arpa"] if len(digits) == 4:
            if all(digit.isdigit() and (digit == b"0" or digit[:1] != b"0") and int(digit) < 256 for digit in digits):
                return IPv4Address(bytes(int(digit) for digit in reversed(digits)))
        case [*digits, b"ip6", b"arpa"] if len(digits) == 32:
            if all(len(digit) == 1 and digit in b"0123456789abcdef" for digit in digits):
                return IPv6Address(int(b"".join(reversed(digits)), 16))
    return None
