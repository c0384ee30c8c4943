"""Answers that are ready: those that a sandbox was given a moment ago, for as long as they may be told again.

Kept answers belong to one policy, and go when it goes. Denials are never kept: each is computed from the policy in force.
"""

from __future__ import annotations

__all__ = ["READY", "Kept", "Outcome", "Ready"]

from collections import OrderedDict
from dataclasses import dataclass

from sbxproxy.dns.message import CLASS_IN, Answer, Query, Rcode
from sbxproxy.policy.model import Policy

READY = 1024
"""Answers that a sandbox keeps ready: more names than a program uses in half a minute."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and what observers are told of it."""

    answer: Answer
    decision: str
    reason: str
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """An outcome, the moment that its records' lifetimes count from, and the end of the shortest."""

    outcome: Outcome
    made: float
    expires: float


class Ready:
    """What a sandbox was answered a moment ago; of what doesn't fit, those go that were asked for least lately."""

    __slots__ = ("_kept", "_policy")

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, int], Kept] = OrderedDict()
        self._policy: Policy | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, policy: Policy, query: Query, now: float) -> Kept | None:
        """Return what *query* was answered under *policy*, if that may be said again."""
        if policy is not self._policy:
            self._begin(policy)
        key = query.name, query.rdtype
        kept = self._kept.get(key)
        # Class and odd types are looked at before anything is kept, and all kept answers are of class IN.
        if kept is None or now >= kept.expires or query.rdclass != CLASS_IN:
            return None
        self._kept.move_to_end(key)
        return kept

    def keep(self, policy: Policy, query: Query, outcome: Outcome, made: float) -> None:
        """Keep what the policy allowed and somebody was asked for at *made*, unless there is nothing in it to keep."""
        if policy is not self._policy:
            self._begin(policy)
        records = outcome.answer.records
        if outcome.answer.rcode is not Rcode.NOERROR or not records:
            return
        expires = made + min(record.ttl for record in records)
        self._kept[query.name, query.rdtype] = Kept(outcome, made, expires)
        self._kept.move_to_end((query.name, query.rdtype))
        if len(self._kept) > READY:
            self._kept.popitem(last=False)

    def _begin(self, policy: Policy) -> None:
        """Forget what was answered under another policy."""
        self._kept.clear()
        self._policy = policy
