"""What the judge has just said, kept for a moment.

Connections of one program ask alike: a flow asks up to four times itself, and the next one to the same place asks the
same again. The judge is a pure function of policy, facts and boundary, and so its answer may be given again while none of
them has changed. What is surprising is what of them can change unseen: the machine's own addresses, which the boundary
itself notices a second late. So nothing is kept for longer than that.
"""

from __future__ import annotations

__all__ = ["Verdicts"]

import time
from collections.abc import Callable

from sbxproxy.policy.decision import Decision, Facts, Need
from sbxproxy.policy.judge import Boundary, judge
from sbxproxy.policy.model import Policy

KEEP = 1.0
"""Seconds that answers are given again."""

MOST = 1024
"""Answers kept. Whoever asks differently each time only has all of them forgotten."""

MOST_ALPN = 8
"""Protocols in a ClientHello beyond which its verdict is not kept: how large it is was up to the client."""


class Verdicts:
    """Asks the judge for one sandbox."""

    __slots__ = ("_boundary", "_clock", "_epoch", "_era", "_kept", "_policy", "_until")

    def __init__(self, boundary: Boundary, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep nothing yet.

        Args:
            boundary: what holds for every policy.
            clock: seconds.
        """
        self._boundary = boundary
        self._clock = clock
        self._policy: Policy | None = None
        self._epoch = 0
        self._until = 0.0
        self._era = object()
        self._kept: dict[Facts, Decision | Need] = {}

    def era(self, policy: Policy) -> object:
        """Return what stays the same object for as long as answers may be given again; it holds none of them."""
        now, epoch = self._clock(), self._boundary.epoch()
        if policy is not self._policy or epoch != self._epoch or now >= self._until or len(self._kept) >= MOST:
            self._kept = {}
            self._era = object()
            self._policy, self._epoch, self._until = policy, epoch, now + KEEP
        return self._era

    def judge(self, policy: Policy, facts: Facts) -> Decision | Need:
        """Decide as ``policy.judge.judge`` does."""
        self.era(policy)
        kept = self._kept
        found = kept.get(facts)
        if found is None:
            found = judge(policy, facts, self._boundary)
            if len(facts.alpn) <= MOST_ALPN:
                kept[facts] = found
        return found
