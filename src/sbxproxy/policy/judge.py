"""The one place where it is decided what a connection may do.

A pure function of policy, facts and boundary. It is asked when a connection comes in, again whenever more is
known, again when the policy changes, and by ``explain``; so these can't come to different answers. It denies
whatever it doesn't know.
"""

from __future__ import annotations

__all__ = ["Boundary", "judge", "permitted"]

from sbxproxy.address import IPAddress, IPNetwork, unmapped
from sbxproxy.hostname import Hostname
from sbxproxy.policy.decision import Decision, Deny, Facts, Inspect, Need, Reason, Relay, Wire, make_dial, make_relay
from sbxproxy.policy.model import DomainMatch, Policy
from sbxproxy.policy.reach import NO_ADDRESS, Boundary, Reach, allow_range, permitted
from sbxproxy.policy.reading import Mode

# Members of an enumeration are looked up by a function of its class, which every decision would do a dozen times.
_ALLOW_ALL, _DENY_ALL = Mode.ALLOW_ALL, Mode.DENY_ALL
_TLS, _POSTGRES_TLS, _POSTGRES_REQUEST = Wire.TLS, Wire.POSTGRES_TLS, Wire.POSTGRES_REQUEST
_BY_NAME, _BY_RANGE, _BY_MODE = Reason.DOMAIN, Reason.RANGE, Reason.ALLOW_ALL
_PLAIN, _ENCRYPTED = frozenset({Wire.HTTP, Wire.POSTGRES}), frozenset({Wire.TLS, Wire.POSTGRES_TLS})


def judge(policy: Policy, facts: Facts, boundary: Boundary) -> Decision | Need:
    """Decide on a connection, or say what must be known first.

    When the connection stands, ask with the connected address alone in ``facts.addresses``: a changed policy
    is then judged on that. For a target that is an address, ``facts.addresses`` are those of the server name,
    once there is one to be dialled; a provisional relay whose client then sends a ClientHello is asked about
    with ``addresses=None``.
    """
    return _Case(policy, facts, boundary).decide()


class _Case(Reach):
    """One question, with what its steps share."""

    __slots__ = ("facts",)

    def __init__(self, policy: Policy, facts: Facts, boundary: Boundary) -> None:
        self.policy = policy
        self.port = facts.port
        self.boundary = boundary
        self.facts = facts

    def decide(self) -> Decision | Need:
        host, mode = self.facts.host, self.policy.mode
        if mode is _DENY_ALL:
            return Deny(
                reason=Reason.DENY_ALL,
                detail="the policy denies everything",
                remedy=_allow_name(host) if isinstance(host, str) else allow_range(host),
            )
        if mode is _ALLOW_ALL:
            return self.allow_all()
        return self.named(host) if isinstance(host, str) else self.numbered(unmapped(host))

    # -- the three kinds of target

    def allow_all(self) -> Decision | Need:
        host, addresses = self.facts.host, self.facts.addresses
        if addresses is None:
            if isinstance(host, str):
                return Need.ADDRESSES
            addresses = (host,)
        allowed = self.for_domain(addresses)
        return allowed if isinstance(allowed, Deny) else self.relay(_BY_MODE, None, allowed)

    def numbered(self, address: IPAddress) -> Decision | Need:
        """Judge a target that is an address: by range, or else by server name, ignoring the address."""
        facts, policy = self.facts, self.policy
        network = self.range_of(address)
        if network is not None:
            named = self.brokered()
            if named is not None:
                return self.to_domain(named)
            return self.by_range(network, (address,))
        if not policy.has_domains:
            return self.no_range(address)
        wire = facts.wire
        if wire is None:
            return Need.WIRE
        if wire == _POSTGRES_REQUEST:
            return Need.HELLO
        if wire not in _ENCRYPTED:
            return self.no_protocol(address)
        if facts.problem is not None:
            return _bad_hello()
        name = facts.server_name
        if name is None:
            return Deny(
                reason=Reason.NO_SNI,
                detail=f"the ClientHello has no server name, and {address} is in no allowed range",
                remedy=allow_range(address),
            )
        found = policy.match_domain(name)
        return self.not_listed(name) if found is None else self.to_domain(found)

    def named(self, name: Hostname) -> Decision | Need:
        """Judge a target that is a name: by range, or else the server name must be the same."""
        facts, policy = self.facts, self.policy
        found = policy.match_domain(name)
        if found is None and not policy.resolves(name):
            # Before any look-up: a query would already carry out whatever the name spells.
            return self.not_listed(name)
        addresses = facts.addresses
        if addresses is None:
            if found is None or found.rules is None or found.rules.needs_upstream:
                return Need.ADDRESSES
        elif not addresses:
            return NO_ADDRESS
        else:
            allow = policy.allow
            in_range = [address for address in addresses if address in allow and self.closed(address) is None]
            if in_range:
                return self.named_in_range(name, tuple(in_range))
            if found is None:
                return self.no_range(addresses[0])
        assert found is not None
        wire = facts.wire
        if wire in _PLAIN:
            return self.no_protocol(None)
        # Told before the first bytes are waited for, while the front can still say so in its own protocol.
        allowed = () if addresses is None else self.for_domain(addresses)
        if isinstance(allowed, Deny):
            return allowed
        if wire is None:
            return Need.WIRE
        if wire == _POSTGRES_REQUEST:
            return Need.HELLO
        if wire not in _ENCRYPTED:
            return self.no_protocol(None)
        if facts.problem is not None:
            return _bad_hello()
        if facts.server_name != name:
            return _bad_name(facts.server_name, name)
        return self.to_domain(found) if addresses is None else self.go_to_domain(found, allowed)

    def named_in_range(self, name: Hostname, addresses: tuple[IPAddress, ...]) -> Decision:
        """Judge a named target with addresses in allowed ranges, which only those may be dialled."""
        network = self.range_of(addresses[0])
        assert network is not None
        brokered = self.brokered()
        if brokered is None or brokered.rules is None:
            return self.by_range(network, addresses)
        if self.facts.server_name != name:
            # Rules of one name must not be had by dialling another (and its credentials not be sent there).
            return _mismatch(name)
        dial = make_dial(name, addresses, self.port)
        return Inspect(reason=_BY_NAME, matched=brokered.pattern, dial=dial, rules=brokered.rules)

    # -- what they have in common

    def brokered(self) -> DomainMatch | None:
        """Return the pattern of a well-formed ClientHello's server name if it has rules that apply."""
        facts = self.facts
        if not self.policy.has_rules or facts.wire != _TLS or facts.problem is not None or facts.server_name is None:
            return None
        if self.is_postgres():
            return None
        found = self.policy.match_domain(facts.server_name)
        return found if found is not None and found.rules is not None else None

    def by_range(self, network: IPNetwork, addresses: tuple[IPAddress, ...]) -> Relay:
        """Relay at once; but while there are rules, the first bytes may turn out to call for them."""
        provisional = self.policy.has_rules and self.facts.wire is None
        return self.relay(_BY_RANGE, str(network), addresses, provisional=provisional)

    def to_domain(self, found: DomainMatch) -> Decision | Need:
        """Go to the server name, which *found* allows, at the addresses it resolved to."""
        addresses = self.facts.addresses
        if addresses is None:
            if found.rules is None or found.rules.needs_upstream or self.is_postgres():
                return Need.ADDRESSES
            return self.go_to_domain(found, ())
        allowed = self.for_domain(addresses)
        return allowed if isinstance(allowed, Deny) else self.go_to_domain(found, allowed)

    def go_to_domain(self, found: DomainMatch, allowed: tuple[IPAddress, ...]) -> Decision:
        facts, rules = self.facts, found.rules
        if rules is None or self.is_postgres():
            unproven = rules is not None and facts.wire == _TLS
            return self.relay(_BY_NAME, found.pattern, allowed, only_postgres=unproven)
        dial = make_dial(facts.server_name, allowed, self.port)
        return Inspect(reason=_BY_NAME, matched=found.pattern, dial=dial, rules=rules)

    def is_postgres(self) -> bool:
        """Tell whether the client speaks PostgreSQL in TLS, in which there are no requests that rules could apply to.

        Its direct form offers the one protocol ``postgresql`` (PostgreSQL 17 manual, 55.2.9).
        """
        facts = self.facts
        return facts.wire == _POSTGRES_TLS or (facts.wire == _TLS and facts.alpn == (b"postgresql",))

    def relay(
        self,
        reason: Reason,
        matched: str | None,
        addresses: tuple[IPAddress, ...],
        *,
        provisional: bool = False,
        only_postgres: bool = False,
    ) -> Relay:
        host = self.facts.host
        name = host if isinstance(host, str) else None
        if reason is _BY_NAME:
            name = self.facts.server_name
        return make_relay(
            reason=reason,
            matched=matched,
            dial=make_dial(name, addresses, self.port),
            provisional=provisional,
            only_postgres=only_postgres,
        )

    # -- first bytes

    def no_protocol(self, address: IPAddress | None) -> Deny:
        """Deny first bytes that carry no server name to judge by."""
        match self.facts.wire:
            case Wire.HTTP:
                reason, what, instead = Reason.PLAIN_HTTP, "HTTP without TLS", "use https, or "
            case Wire.POSTGRES if self.facts.problem is not None:
                return Deny(reason=Reason.BAD_STARTUP, detail=f"{self.facts.problem}")
            case Wire.POSTGRES:
                reason, what, instead = (
                    Reason.POSTGRES_PLAINTEXT,
                    "PostgreSQL without TLS",
                    "use sslmode=require or stricter, or ",
                )
            case _:
                reason, what, instead = Reason.PROTOCOL_NOT_ALLOWED, "a protocol other than TLS", ""
        if address is None and self.facts.addresses:
            address = self.facts.addresses[0]
        remedy = allow_range(address) if address is not None else "an address range in subnets.allow"
        return Deny(
            reason=reason,
            detail=f"{what} passes to allowed ranges only: it has no server name to rely on",
            remedy=instead + remedy,
        )

    def not_listed(self, name: Hostname) -> Deny:
        return Deny(
            reason=Reason.DOMAIN_NOT_ALLOWED,
            detail=f"no allowed domain matches {name}",
            remedy=_allow_name(name),
        )


def _bad_hello() -> Deny:
    return Deny(reason=Reason.BAD_CLIENT_HELLO, detail="the ClientHello is malformed or ambiguous")


def _bad_name(found: Hostname | None, name: Hostname) -> Deny:
    """Deny a server name that isn't the name that the front was given."""
    if found is None:
        return Deny(reason=Reason.NO_SNI, detail=f"the ClientHello has no server name; {name} was asked for")
    return _mismatch(name)


def _mismatch(name: Hostname) -> Deny:
    return Deny(
        reason=Reason.SNI_MISMATCH,
        detail=f"the ClientHello names another server than {name}, which was asked for",
    )


def _allow_name(name: Hostname) -> str:
    return f'"allow": ["{name}"]'
