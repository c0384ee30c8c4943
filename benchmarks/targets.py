"""What sbxproxy must reach, as ratios within one run or as bounds, and whether a run has it."""

from __future__ import annotations

__all__ = ["TARGETS", "Target", "Verdict", "judge_targets"]

import enum
from dataclasses import dataclass

from benchmarks.figures import Figures

OURS = "sbxproxy"
_SMALLER_WHEN_QUICK = ("idle", "update")


class Verdict(enum.Enum):
    """Whether a target is reached."""

    MET = "met"
    MISSED = "**missed**"
    OPEN = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One line of the table: at least *least* times a peer's figure, or at most *most* of the unit.

    Attributes:
        workload: its id.
        peer: whose figure ours is divided by; ``None`` for a bound on ours.
        least: the ratio, or the figure, to reach.
        most: the figure not to exceed.
    """

    workload: str
    peer: str | None = None
    least: float | None = None
    most: float | None = None

    @property
    def text(self) -> str:
        if self.peer:
            return f"≥ {self.least:g} × {self.peer}"  # noqa: RUF001 - a times sign is meant
        return f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"

    def reached(self, figures: Figures) -> tuple[float | None, Verdict]:
        """Return our ratio or figure, and what it means."""
        ours = figures.median(self.workload, OURS)
        smaller = figures.plan.get("quick") and self.workload.startswith(_SMALLER_WHEN_QUICK)
        if ours is None or smaller:
            return None, Verdict.OPEN
        if self.peer is not None:
            theirs = figures.median(self.workload, self.peer)
            if not theirs:
                return None, Verdict.OPEN
            ours /= theirs
        good = ours >= self.least if self.least is not None else self.most is not None and ours <= self.most
        return ours, Verdict.MET if good else Verdict.MISSED


def _ratios(workload: str, **peers: float) -> list[Target]:
    names = {"proxy_py": "proxy.py", "squid": "Squid", "haproxy": "HAProxy"}
    return [Target(workload=workload, peer=names.get(peer, peer), least=least) for peer, least in peers.items()]


TARGETS = (
    *_ratios("W1b c32", pproxy=1.8, proxy_py=2, mitmproxy=15, naive=2.5, smokescreen=1.3),
    *_ratios("W1b c256", pproxy=1.8, proxy_py=2, mitmproxy=15, naive=2.5, smokescreen=1.3),
    *(target for way in ("down", "up") for n in (1, 16) for target in _ratios(f"W2 {way} s{n}", haproxy=1.5, smokescreen=1.1)),
    *_ratios("W3 c32", proxy_py=1.5, squid=1.2, mitmproxy=15),
    *_ratios("W3 c256", proxy_py=1.5, squid=1.2, mitmproxy=15),
    *_ratios("W3b c32", mitmproxy=4, proxy_py=4),
    *_ratios("W3b new", squid=2, mitmproxy=2),
    Target(workload="idle 1,000", most=8),
    Target(workload="idle 5,000", most=8),
    Target(workload="idle 20,000", most=8),
    Target(workload="start", most=250),
    Target(workload="policy decision 100,000", most=5),
    Target(workload="update", most=250),
    Target(workload="update hold", most=20),
    Target(workload="update load-hold", most=20),
    Target(workload="dns cached", least=5000),
)


def judge_targets(figures: Figures) -> list[tuple[Target, float | None, Verdict]]:
    """Return each target that the run's workloads touch with what was reached."""
    measured = set(figures.workloads)
    return [(target, *target.reached(figures)) for target in TARGETS if target.workload in measured]
