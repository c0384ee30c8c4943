"""Which addresses a policy lets be dialled.

An address is judged in every form it has: a denied range for 10.0.0.0/8 also closes the IPv6 addresses that a
translator would send on to it. Only an allowed range is held against the address as it would be dialled.
"""

from __future__ import annotations

__all__ = ["NO_ADDRESS", "Boundary", "Reach", "allow_range", "permitted"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sbxproxy.address import AddressClass, IPAddress, IPNetwork, PrefixTable, classify, forms, unmapped
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reading import Mode

_PUBLIC = AddressClass.PUBLIC


def _no_listener(_address: IPAddress, _port: int) -> bool:
    return False


def _no_epoch() -> int:
    return 0


def _no_host_address(_address: IPAddress) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """What holds for every policy, set by the operator and by where the proxy runs.

    Attributes:
        never: ranges that nothing may reach.
        private: ranges outside the public Internet that domain rules and allow-all may reach.
        listeners: whether an address and port is one of the proxy's own listeners; those are closed to all.
        is_host_address: whether an address is one of the machine's own; those, even public ones, are opened
            by a range or by ``private`` only.
        epoch: a number that changes whenever ``listeners`` may answer otherwise than before.
    """

    never: PrefixTable = field(default_factory=PrefixTable)
    private: PrefixTable = field(default_factory=PrefixTable)
    listeners: Callable[[IPAddress, int], bool] = _no_listener
    is_host_address: Callable[[IPAddress], bool] = _no_host_address
    epoch: Callable[[], int] = _no_epoch


def permitted(policy: Policy, addresses: Sequence[IPAddress], port: int, boundary: Boundary) -> tuple[IPAddress, ...] | Deny:
    """Return those of *addresses* that a domain rule or a forwardURL may dial; a denial if none may be."""
    if policy.mode is Mode.DENY_ALL:
        return Deny(reason=Reason.DENY_ALL, detail="the policy denies everything")
    return Reach(policy, port, boundary).for_domain(addresses)


NO_ADDRESS = Deny(reason=Reason.ADDRESS_DENIED, detail="the name has no address")


class Reach:
    """A policy and a boundary, asked about one port."""

    __slots__ = ("boundary", "policy", "port")

    def __init__(self, policy: Policy, port: int, boundary: Boundary) -> None:
        self.policy = policy
        self.port = port
        self.boundary = boundary

    def closed(self, address: IPAddress) -> Deny | None:
        """Return why nothing may reach *address*, in any of its forms."""
        boundary, deny = self.boundary, self.policy.deny
        for form in forms(address):
            if boundary.listeners(form, self.port):
                return Deny(
                    reason=Reason.PROXY_ADDRESS,
                    detail=f"{address} port {self.port} is the proxy itself",
                )
            if form in boundary.never:
                return Deny(reason=Reason.ADDRESS_DENIED, detail=f"{address} is in a range that the operator closed")
            if form in deny:
                network = deny.find(form)
                return Deny(
                    reason=Reason.ADDRESS_DENIED,
                    detail=f"{address} is in a denied range",
                    matched=f"subnets.deny {network}",
                    remedy=f"remove {network} from subnets.deny",
                )
        return None

    def range_of(self, address: IPAddress) -> IPNetwork | None:
        """Return the allowed range that opens *address* as it would be dialled."""
        network = self.policy.allow.find(address)
        return network if network is None or self.closed(address) is None else None

    def for_domain(self, addresses: Sequence[IPAddress]) -> tuple[IPAddress, ...] | Deny:
        """Keep those that a domain rule or allow-all may reach; without any, say why not the first."""
        allow = self.policy.allow
        allowed = [  # a comprehension: with one address or two a generator costs as much as what it does
            address for address in addresses if self.closed(address) is None and (self.is_open(address) or address in allow)
        ]
        if allowed:
            return tuple(allowed)
        if not addresses:
            return NO_ADDRESS
        return self.closed(addresses[0]) or self.private(addresses[0])

    def is_open(self, address: IPAddress) -> bool:
        """Tell whether *address* is in every form public and not ours, or opened by the operator."""
        boundary = self.boundary
        for form in forms(address):
            public = classify(form) is _PUBLIC and not boundary.is_host_address(form)
            if not public and form not in boundary.private:
                return False
        return True

    def private(self, address: IPAddress) -> Deny:
        """Deny an address that isn't open; both who wrote the policy and who runs the proxy could open it."""
        kinds = {classify(form) for form in forms(address)} - {AddressClass.PUBLIC}
        what = " and ".join(sorted(kinds)) if kinds else "this machine's own"
        operator = f'the operator\'s private_networks with "{_host_range(address)}"'
        by_policy = "" if self.policy.mode is Mode.ALLOW_ALL else f"{allow_range(address)}, or "
        return Deny(
            reason=Reason.PRIVATE_ADDRESS,
            detail=f"{address} is not on the public Internet ({what})",
            remedy=by_policy + operator,
        )

    def no_range(self, address: IPAddress) -> Deny:
        """Deny an address that no range opens, where no name can open it either."""
        refused = self.closed(address)
        if refused is not None:
            return refused
        if not self.is_open(address):
            return self.private(address)
        return Deny(
            reason=Reason.ADDRESS_DENIED,
            detail=f"{address} is in no allowed range",
            remedy=allow_range(address),
        )


def _host_range(address: IPAddress) -> str:
    plain = unmapped(address)
    return f"{plain}/{plain.max_prefixlen}"


def allow_range(address: IPAddress) -> str:
    """Write the line of a policy that opens *address*."""
    return f'"subnets": {{"allow": ["{_host_range(address)}"]}}'
