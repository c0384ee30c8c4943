"""Fairness: what one tunnel's exchange takes while other traffic has the proxy's processor."""

from __future__ import annotations

__all__ = ["FAIRNESS"]

from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.figures import Sample
from benchmarks.plan import Plan
from benchmarks.rig import PIPELINED, Load, Rig, read_line, tunnel_name
from benchmarks.streamed import connect_option
from benchmarks.subjects import Running
from benchmarks.workload import Workload

_PATIENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class Fairness(Workload):
    """The time of 64 bytes there and back through a tunnel that stands, beside other load.

    Attributes:
        beside: ``""`` for nothing, ``down`` for one tunnel at full speed, ``once`` for new connections, 32 at a time.
    """

    beside: str
    unit: str = "ms, p99"
    less_is_better: bool = True
    standing: bool = True

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:  # noqa: ARG002
        """Measure the exchanges while the other load runs."""
        assert running is not None
        with ExitStack() as stack:
            if self.beside:
                other = rig.start(stack, self._other(rig, running, plan.seconds * 10 + _PATIENCE))
                read_line(other, _PATIENCE)
            measured = rig.measure(self._load(rig, running, "echo", Load(mode="ping", port=0, seconds=plan.seconds)))
        return Sample(value=measured.p99 / 1e3, p50=measured.p50, p99=measured.p99, failures=measured.failures, why=measured.why)

    def _other(self, rig: Rig, running: Running, seconds: float) -> Load:
        if self.beside == "down":
            return self._load(rig, running, "down", Load(mode="down", port=0, seconds=seconds))
        flood = Load(mode="once", port=0, seconds=seconds, concurrency=32)
        if running.terminated is None:
            return self._load(rig, running, "tls", flood)
        port, origin = running.terminated_port or running.port or rig.ports["tls"], rig.ports["tls"]
        name = f"{PIPELINED}:{origin}"
        connect = connect_option(running.terminated, PIPELINED, origin)
        return Load(mode="once", port=port, connect=connect, name=name, seconds=seconds, concurrency=32)

    def _load(self, rig: Rig, running: Running, kind: str, load: Load) -> Load:
        """Return *load* through the subject's tunnel to an origin's port."""
        origin, name = rig.ports[kind], tunnel_name(kind)
        return Load(
            mode=load.mode,
            port=running.port or origin,
            connect=connect_option(running.tunnels, name, origin),
            name=f"{name}:{origin}",
            hello=rig.hello_files[kind],
            seconds=load.seconds,
            concurrency=load.concurrency,
        )


_EXCHANGE = "64 bytes there and back through a tunnel"

FAIRNESS = (
    Fairness(id="fair alone", about=f"{_EXCHANGE}, with nothing beside it", beside="", in_quick=False),
    Fairness(id="fair bulk", about=f"{_EXCHANGE}, beside another at full speed", beside="down"),
    Fairness(
        id="fair handshakes", about=f"{_EXCHANGE}, beside 32 clients that connect, shake hands, ask once and close", beside="once"
    ),
)
