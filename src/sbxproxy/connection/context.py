"""What the connections of one sandbox share."""

from __future__ import annotations

__all__ = ["Context", "Dialer"]

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trio.abc import Stream

from sbxproxy.address import IPAddress
from sbxproxy.connection.verdicts import Verdicts
from sbxproxy.events import Event
from sbxproxy.flow import Flow
from sbxproxy.hostname import Hostname
from sbxproxy.http.pool import Pool
from sbxproxy.net.engine import Engine
from sbxproxy.net.listen import Slots
from sbxproxy.net.resolve import Resolver
from sbxproxy.policy.decision import Decision, Deny, Facts, Handle, Need, Relay
from sbxproxy.policy.judge import Boundary
from sbxproxy.policy.model import Policy
from sbxproxy.secrets import Secrets
from sbxproxy.settings import Limits
from sbxproxy.stages.slots import Handler, PolicyStage, Terminator
from sbxproxy.stages.transforms import Transforms
from sbxproxy.wire.result import Sniffer

Dialer = Callable[[Sequence[IPAddress], int], Awaitable[tuple[Stream, IPAddress]]]
"""Connects to one of these judged addresses at this port, and returns stream and address; raises ``UpstreamError``."""


@dataclass(slots=True, eq=False, kw_only=True)
class Context:
    """What a sandbox's connections share; ``policy`` is replaced as a whole by an update.

    Attributes:
        sandbox: the sandbox's name.
        policy: the policy in force.
        boundary: what holds for every policy.
        limits: bounds.
        resolver: names to addresses.
        known: the addresses of a name that the resolver would give at once; ``None`` if it would have to ask.
        dialer: addresses to streams.
        dials_tcp: whether *dialer* is the proxy's own, which nothing is lost by going round.
        sniffers: third parties', asked after the built-in ones.
        policies: third parties' stages, asked after the policy.
        handlers: by name.
        terminator: TLS.
        secrets: by name.
        transforms: third parties', by name.
        pool: idle upstream connections of this sandbox alone.
        handshakes: a bound on TLS handshakes under way.
        emit: takes events.
        engine: moves the bytes of relayed connections while it runs.
        flows: the live flows, by id.
        buffered: bytes of first messages held now.
    """

    sandbox: str
    policy: Policy
    boundary: Boundary
    limits: Limits
    resolver: Resolver
    dialer: Dialer
    sniffers: Sequence[Sniffer]
    policies: Sequence[PolicyStage]
    handlers: Mapping[str, Handler]
    terminator: Terminator
    secrets: Secrets
    transforms: Transforms
    pool: Pool
    handshakes: Slots
    emit: Callable[[Event], None]
    engine: Engine | None = None
    known: Callable[[Hostname], tuple[IPAddress, ...] | None] = lambda _name: None
    dials_tcp: bool = False
    flows: dict[int, Flow] = field(default_factory=dict)
    buffered: int = 0
    _verdicts: Verdicts = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing judged."""
        self._verdicts = Verdicts(self.boundary)

    def judge(self, facts: Facts) -> Decision | Need:
        """Decide on *facts* by the policy in force."""
        return self._verdicts.judge(self.policy, facts)

    def era(self) -> object:
        """Return what stays the same object while what was decided may be said again: a second at most, and by one policy."""
        return self._verdicts.era(self.policy)

    def rejudge(self, flow: Flow) -> bool:
        """Tell whether *flow* may go on as it is under the policy in force; a flow not decided yet will be judged by it anyway."""
        before = flow.decision
        if before is None or isinstance(before, Deny):
            return True
        verdict = self.judge(flow.facts)
        kind = Relay if isinstance(before, Handle) else type(before)
        if isinstance(verdict, Need | Deny) or type(verdict) is not kind:
            return False
        if flow.address is not None and verdict.dial.addresses and flow.address not in verdict.dial.addresses:
            return False
        if isinstance(verdict, Relay) and verdict.only_postgres and not (isinstance(before, Relay) and before.only_postgres):
            return False  # its server was never made to show that it is PostgreSQL
        if not isinstance(before, Handle):
            if isinstance(verdict, Relay) and verdict.provisional:
                verdict = replace(verdict, provisional=False)
            flow.decision = verdict
        return True
