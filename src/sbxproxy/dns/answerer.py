"""One sandbox's DNS: from the bytes of a query to the bytes of its answer, by the policy as it is at that moment.

Theory of operation. ``begin`` never waits: what can't be read, what the policy denies and what was answered a moment ago it
answers itself, so that a program's stuck look-ups never hold up its other names. Only what somebody must be asked for becomes a
``Lookup``, which ``finish`` carries out; when the outcome is there the policy is asked once more, for it may have changed.
"""

from __future__ import annotations

__all__ = ["DnsAnswerer", "Lookup", "Resolve"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

import trio

from sbxproxy.address import IPAddress
from sbxproxy.dns.decide import (
    ADDRESS_TTL,
    PLACEHOLDER,
    PTR,
    A,
    Allow,
    Refuse,
    address_answer,
    asks_for_address,
    decide,
    no_such_name,
    not_supported,
    reverse_address,
)
from sbxproxy.dns.forward import Forward
from sbxproxy.dns.host import has_ipv6
from sbxproxy.dns.message import (
    Answer,
    Ede,
    Query,
    Rcode,
    Record,
    Unreadable,
    parse_query,
    render,
    render_unreadable,
    shown_name,
    type_name,
)
from sbxproxy.dns.rate import Bucket
from sbxproxy.dns.ready import Outcome, Ready
from sbxproxy.dns.svcb import HTTPS, SVCB, fit_svcb
from sbxproxy.errors import UpstreamNoAddressError, UpstreamResolveError
from sbxproxy.events import DnsAnswered, Event, Problem, kinds
from sbxproxy.hostname import Hostname
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reach import Boundary, Reach
from sbxproxy.settings import Limits

TELL_EVERY = 10.0
"""Seconds between two reports of lost queries, so that a flood of queries is no flood of events."""


class Resolve(Protocol):
    """What resolves names: the proxy's resolver, so that a program sees the addresses that the proxy would dial."""

    async def resolve(self, name: Hostname) -> tuple[IPAddress, ...]:
        """Return the addresses of *name*.

        Raises:
            UpstreamNoAddressError: the name has none.
            UpstreamResolveError: there is no such name, or no answer in time.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A query that somebody must be asked about: hand it to ``DnsAnswerer.finish``, once and in any case."""

    query: Query
    udp: bool


class DnsAnswerer:
    """Answers the queries of one sandbox. It opens nothing, runs nothing in the background and needs no closing."""

    __slots__ = (
        "_asking",
        "_boundary",
        "_emit",
        "_forwarder",
        "_ipv6",
        "_limits",
        "_lookups",
        "_lost",
        "_pending",
        "_policy",
        "_queries",
        "_ready",
        "_resolver",
        "_sandbox",
        "_tell_at",
    )

    def __init__(
        self,
        sandbox: str,
        *,
        policy: Callable[[], Policy],
        boundary: Boundary,
        resolver: Resolve,
        emit: Callable[[Event], None],
        forwarder: Forward | None = None,
        limits: Limits | None = None,
        ipv6: bool | None = None,
    ) -> None:
        """Put one together; no I/O.

        Args:
            sandbox: its name, for events.
            policy: returns the policy in force.
            boundary: what holds for every policy.
            resolver: the proxy's.
            emit: told of every answer; must not raise.
            forwarder: for records other than addresses, shared by the proxy's sandboxes; without it allowed names have none.
            limits: those that begin with ``dns_`` count here.
            ipv6: whether to answer with IPv6 addresses; ``None`` looks whether the host has a route.
        """
        self._sandbox = sandbox
        self._policy = policy
        self._boundary = boundary
        self._resolver = resolver
        self._emit = emit
        self._forwarder = forwarder
        self._limits = limits = limits or Limits()
        self._ipv6 = has_ipv6() if ipv6 is None else ipv6
        self._lookups = trio.Semaphore(limits.dns_lookups)
        self._pending = 0
        self._ready = Ready()
        self._queries = Bucket(limits.dns_rate)
        self._asking = Bucket(limits.dns_lookup_rate)
        self._lost = 0
        self._tell_at = 0.0

    @property
    def limits(self) -> Limits:
        """The bounds, for who serves its sockets."""
        return self._limits

    async def answer(self, data: bytes, *, udp: bool = False) -> bytes | None:
        """Answer one message, or return ``None`` if it gets no answer."""
        begun = self.begin(data, udp=udp)
        if isinstance(begun, Lookup):
            return await self.finish(begun)
        await trio.lowlevel.checkpoint()
        return begun

    def begin(self, data: bytes, *, udp: bool) -> bytes | Lookup | None:
        """Answer one message if that needs nobody else; never waits and never raises.

        Args:
            data: the message.
            udp: it came in a datagram: the answer must fit one, and what is too much is lost, as on a network. Over TCP the
                client is told instead.

        Returns:
            The answer; a look-up, which must be finished; or ``None`` if there is no answer to give.
        """
        try:
            return self._begin(data, udp=udp)
        except Exception as error:  # noqa: BLE001 - one bad message must not end the answering of others
            self.report("a query", error)
            return None

    def report(self, what: str, error: BaseException) -> None:
        """Tell observers of a fault that ended no more than *what*: by its kind, for its text may quote what the program sent."""
        self._emit(
            Problem(sandbox=self._sandbox, flow=None, reason="internal-error", detail=f"{what} failed with {kinds(error)}")
        )

    def _begin(self, data: bytes, *, udp: bool) -> bytes | Lookup | None:
        now = trio.current_time()
        if not self._queries.take(now):
            return self._too_much(data, now, udp=udp)
        query = parse_query(data)
        if query is None:
            return None
        if isinstance(query, Unreadable):
            return self._unreadable(query)
        policy = self._policy()
        kept = self._ready.find(policy, query, now)
        if kept is not None:
            return self._tell(query, kept.outcome, udp=udp, age=int(now - kept.made))
        verdict = self._verdict(policy, query)
        if isinstance(verdict, Outcome):
            return self._tell(query, verdict, udp=udp)
        if self._pending >= self._limits.dns_pending or not self._asking.take(now):
            return self._too_much(data, now, udp=udp)
        self._pending += 1
        return Lookup(query, udp)

    async def finish(self, lookup: Lookup) -> bytes:
        """Carry out *lookup* and return the answer, at the latest when its time is up."""
        query = lookup.query
        made = trio.current_time()
        outcome = _failure("resolve-timeout")
        try:
            with trio.move_on_after(self._limits.dns_answer):
                async with self._lookups:
                    outcome, made = await self._ask(query)
        except* Exception as group:  # noqa: BLE001
            self.report("a look-up", group)  # a resolver of the embedder's may raise anything
            outcome = _failure("internal-error")
        finally:
            self._pending -= 1
        return self._tell(query, outcome, udp=lookup.udp, age=int(trio.current_time() - made))

    # -- what is answered at once

    def _verdict(self, policy: Policy, query: Query) -> Outcome | Allow:
        """Return the outcome if it needs nobody else, or that the name may be looked up."""
        verdict = decide(policy, query)
        match verdict:
            case Refuse() as refused:
                return _refusal(refused)
            case Allow(here=True):
                # A look-up could fail, for such a name need not exist, and would carry it out for nothing.
                records = (Record(None, A, ADDRESS_TTL, PLACEHOLDER.packed),) if query.rdtype == A else ()
                return _allowed(verdict, Answer(rcode=Rcode.NOERROR, records=records))
            case Allow():
                if not asks_for_address(query.rdtype):
                    if self._forwarder is None:
                        return _refusal(not_supported())
                    return self._private_reverse(policy, query) or verdict
                return verdict
            case _ as unreachable:
                assert_never(unreachable)

    def _private_reverse(self, policy: Policy, query: Query) -> Outcome | None:
        """Refuse to tell the name of an address that may not be reached: the host's name servers know the host's networks."""
        if query.rdtype != PTR or (address := reverse_address(query.name)) is None:
            return None
        denied = Reach(policy, 0, self._boundary).for_domain((address,))
        if not isinstance(denied, Deny):
            return None
        reason = str(denied.reason)
        return Outcome(Answer(rcode=Rcode.NXDOMAIN, ede=(Ede.BLOCKED, reason)), "deny", reason)

    def _unreadable(self, message: Unreadable) -> bytes:
        self._emit(
            DnsAnswered(
                sandbox=self._sandbox,
                name="",
                type="",
                rcode=message.rcode.name,
                answers=0,
                decision="deny",
                reason=str(Reason.BAD_REQUEST),
                rule=None,
            )
        )
        return render_unreadable(message)

    def _too_much(self, data: bytes, now: float, *, udp: bool) -> bytes | None:
        self._lost += 1
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY
            detail = f"{self._lost} DNS queries were not answered: too many at once"
            self._emit(Problem(sandbox=self._sandbox, flow=None, reason=str(Reason.LIMIT), detail=detail))
            self._lost = 0
        query = None if udp else parse_query(data)
        if not isinstance(query, Query):
            return None
        return render(query, _failure(str(Reason.LIMIT), Ede.OTHER).answer, udp=udp)

    def _tell(self, query: Query, outcome: Outcome, *, udp: bool, age: int = 0) -> bytes:
        answer = outcome.answer
        self._emit(
            DnsAnswered(
                sandbox=self._sandbox,
                name=shown_name(query),
                type=type_name(query.rdtype),
                rcode=answer.rcode.name,
                answers=len(answer.records),
                decision=outcome.decision,
                reason=outcome.reason,
                rule=outcome.rule,
                remedy=_remedy(query, outcome.reason),
            )
        )
        return render(query, answer, udp=udp, age=age)

    # -- what somebody is asked for

    async def _ask(self, query: Query) -> tuple[Outcome, float]:
        """Ask the resolver or the name servers, and judge the question again, and what came."""
        try:
            if asks_for_address(query.rdtype):
                assert query.hostname is not None
                addresses = await self._addresses(query.hostname)
                made = trio.current_time()
                answer = None
            else:
                assert self._forwarder is not None
                answer, made = await self._forwarder.ask(query.name, query.rdtype)
                addresses = None
        except UpstreamResolveError as error:
            return _failure(error.reason), trio.current_time()
        policy = self._policy()
        verdict = self._verdict(policy, query)
        if isinstance(verdict, Outcome):
            return verdict, made
        if answer is not None:
            answer = self._fit(policy, query, answer)
        elif addresses is None:
            answer = Answer(rcode=Rcode.NXDOMAIN)
        else:
            answer, denied = address_answer(policy, self._boundary, addresses, query.rdtype, ipv6=self._ipv6)
            if denied is not None:
                return Outcome(answer, "deny", denied, verdict.rule), made
        if answer.rcode is Rcode.NXDOMAIN:
            answer = Answer(rcode=no_such_name(policy, query.hostname), records=answer.records)
        outcome = _allowed(verdict, answer)
        self._ready.keep(policy, query, outcome, made)
        return outcome, made

    async def _addresses(self, name: Hostname) -> tuple[IPAddress, ...] | None:
        """Return the addresses of *name*, none if it has none, or ``None`` if it does not exist.

        Raises:
            UpstreamResolveError: it can't be told now.
        """
        try:
            return await self._resolver.resolve(name)
        except UpstreamNoAddressError:
            return ()
        except UpstreamResolveError as error:
            if error.reason == UpstreamResolveError.reason:
                return None
            raise

    def _fit(self, policy: Policy, query: Query, answer: Answer) -> Answer:
        """Make what the name servers said fit for the program."""
        if query.rdtype not in {SVCB, HTTPS}:
            return answer
        reach = Reach(policy, 0, self._boundary)

        def may_dial(address: IPAddress) -> bool:
            return not isinstance(reach.for_domain((address,)), Deny)

        records = []
        for record in answer.records:
            fitted: bytes | None = record.rdata
            if record.rdtype == query.rdtype:
                fitted = fit_svcb(record.rdata, may_dial=may_dial, may_resolve=policy.resolves, ipv6=self._ipv6)
            if fitted is not None:
                records.append(Record(record.owner, record.rdtype, record.ttl, fitted))
        return Answer(rcode=answer.rcode, records=tuple(records))


def _refusal(refused: Refuse) -> Outcome:
    return Outcome(refused.answer, "deny", refused.reason)


def _remedy(query: Query, reason: str) -> str | None:
    if query.hostname is None or reason not in {Reason.DOMAIN_NOT_ALLOWED, Reason.DENY_ALL}:
        return None
    return f'"allow": ["{query.hostname}"]'


def _allowed(verdict: Allow, answer: Answer) -> Outcome:
    return Outcome(answer, "allow", verdict.reason, verdict.rule)


def _failure(reason: str, ede: Ede = Ede.NO_REACHABLE_AUTHORITY) -> Outcome:
    return Outcome(Answer(rcode=Rcode.SERVFAIL, ede=(ede, reason)), "error", reason)
