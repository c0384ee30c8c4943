"""What policies cost: to read one, to decide by it, to put another in force while tunnels stand."""

from __future__ import annotations

__all__ = ["RULES"]

import json
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Sample
from benchmarks.plan import Plan
from benchmarks.policy import document
from benchmarks.process import Process, spawn
from benchmarks.rig import Rig, read_line
from benchmarks.standing import hold, start_embedded
from benchmarks.subjects import Running, Unavailable
from benchmarks.workload import Workload

OURS = "sbxproxy"


@dataclass(frozen=True, kw_only=True)
class Shared(Workload):
    """One of several figures that come from one measurement.

    Attributes:
        key: of this figure.
        group: where the others are: what was measured and isn't taken yet, by key.
    """

    key: str
    group: dict[str, deque[float]]
    less_is_better: bool = True

    def rows(self, subjects: Sequence[str]) -> Sequence[str]:
        return [name for name in subjects if name == OURS]

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:  # noqa: ARG002
        if not self.group[self.key]:
            for key, value in self.together(rig, plan).items():
                self.group[key].append(value)
        return Sample(value=self.group[self.key].popleft())

    def together(self, rig: Rig, plan: Plan) -> dict[str, float]:
        """Measure all figures of the group."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Decision(Shared):
    """Loading a policy and deciding by it, in a process of its own.

    Attributes:
        size: rules.
    """

    size: int
    most_rounds: int = 3

    def together(self, rig: Rig, plan: Plan) -> dict[str, float]:
        batch = "64" if plan.quick else "6400"
        argv = [sys.executable, "-m", "benchmarks.policy", "--size", str(self.size), "--batch", batch]
        with ExitStack() as stack:
            line = read_line(spawn(stack, argv, log=rig.directory / "policy.log", cpu=rig.subject_cpu), 120)
        if not line:
            raise Unavailable("the policy benchmark failed")
        told = json.loads(line)
        return {"load": told["load_ms"], "decision": max(told["allowed_us"], told["denied_us"], told["range_us"])}


@dataclass(frozen=True, kw_only=True)
class Update(Shared):
    """A new policy of 100,000 rules while tunnels stand."""

    unit: str = "ms"
    most_rounds: int = 5

    def together(self, rig: Rig, plan: Plan) -> dict[str, float]:
        flows, rules = (500, 1_000) if plan.quick else (min(10_000, (rig.descriptors - 1000) // 2), 100_000)
        paths = [rig.directory / f"update-{index}.json" for index in range(2)]
        for index, path in enumerate(paths):
            if not path.exists():
                content = json.loads(document(rules - index))
                content["allow"] += ["*.tunnel.example"]
                path.write_text(json.dumps(content))
        with ExitStack() as stack:
            running, _ = start_embedded(stack, rig, flows_per_sandbox=flows + 100)
            hold(stack, rig, running, flows)
            assert running.process is not None
            self._update(running.process, paths[1])  # the first touches memory that no later one does
            told = self._update(running.process, paths[0])
        if told["kept"] < flows:
            raise Unavailable(f"only {told['kept']:,.0f} of {flows:,} tunnels were kept")
        return told

    def _update(self, process: Process, path: Path) -> dict[str, float]:
        assert process.stdin is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        line = read_line(process, 120)
        if not line:
            raise Unavailable("no answer to the update")
        told: dict[str, float] = json.loads(line)
        return told


def _group() -> dict[str, deque[float]]:
    return defaultdict(deque)


_UPDATE = _group()
_DECISIONS = {size: _group() for size in (10, 1_000, 100_000)}

RULES: tuple[Workload, ...] = (
    *(
        Decision(id=f"policy {key} {size:,}", about=about, key=key, group=group, size=size, unit=unit, in_quick=size < 100_000)
        for key, unit, about in (
            ("decision", "µs", "one decision on complete facts, the slowest of allowed, denied and by range"),
            ("load", "ms", "reading a policy from JSON"),
        )
        for size, group in _DECISIONS.items()
    ),
    Update(id="update", about="a policy put in force, every flow judged again", key="update", group=_UPDATE),
    Update(id="update hold", about="the longest that the event loop was held meanwhile", key="update_hold", group=_UPDATE),
    Update(id="update load", about="reading that policy, in a thread", key="load", group=_UPDATE),
    Update(id="update load-hold", about="the longest that the event loop was held meanwhile", key="load_hold", group=_UPDATE),
)
