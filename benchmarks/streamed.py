"""The workloads that go through a proxy: what one operation is, and which options make the load generator do it."""

from __future__ import annotations

__all__ = ["STREAMED", "Streamed", "connect_option"]

from dataclasses import dataclass

from benchmarks.figures import Sample
from benchmarks.plan import Plan
from benchmarks.process import cpu_seconds
from benchmarks.rig import FRESH, PIPELINED, Load, Rig, tunnel_name
from benchmarks.subjects import By, Running, Unavailable
from benchmarks.workload import Workload

_HOME = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Streamed(Workload):
    """One workload of the load generator.

    Attributes:
        mode: of the load generator.
        kind: the origin's port.
        concurrency: connections at a time.
        terminated: whether the proxy ends TLS; else it is a tunnel.
        fresh: another host each time.
    """

    mode: str
    kind: str
    concurrency: int
    terminated: bool = False
    fresh: bool = False
    unit: str = "tunnels/s"
    standing: bool = True

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:
        """Run the load once."""
        assert running is not None
        if self.terminated and running.terminated is None:
            raise Unavailable("doesn't terminate TLS")
        if self.fresh and not running.mints:
            raise Unavailable("doesn't mint certificates")
        load = self._load(rig, name, running, plan.seconds)
        process = running.process
        measured = rig.measure(load, (lambda: cpu_seconds(process)) if process else None)
        if self.fresh:
            rig.next_fresh[name] = load.first + measured.opened
        bulk = self.unit == "Gbit/s"
        cpu = None
        if measured.spent is not None and measured.count:
            cpu = measured.spent / measured.count * (2**30 if bulk else 1e6)
        return Sample(
            value=measured.rate * 8 / 1e9 if bulk else measured.rate,
            cpu=cpu,
            p50=measured.p50,
            p99=measured.p99,
            failures=measured.failures,
            why=measured.why,
        )

    def _load(self, rig: Rig, subject: str, running: Running, seconds: float) -> Load:
        origin = rig.ports[self.kind]
        by = running.terminated if self.terminated else running.tunnels
        name = "n%u.api.example" if self.fresh else PIPELINED if self.terminated else tunnel_name(self.kind)
        port = (self.terminated and running.terminated_port) or running.port or origin
        assert by is not None
        first = rig.next_fresh.get(subject, 0) if self.fresh else 0
        return Load(
            mode=self.mode,
            port=port,
            connect=connect_option(by, name, origin),
            name=f"{name}:{origin}",
            hello=rig.hello_files[self.kind],
            concurrency=min(self.concurrency, max(1, FRESH - first)) if self.fresh else self.concurrency,
            seconds=seconds,
            first=first,
            most=max(1, FRESH - first) if self.fresh else 0,
            expect="" if by is By.NOTHING else str(int(self.terminated)),
        )


def connect_option(by: By, name: str, port: int) -> str:
    """Return what is asked of a proxy in CONNECT; empty where nothing is."""
    return {By.NAME: f"{name}:{port}", By.ADDRESS: f"{_HOME}:{port}"}.get(by, "")


_W1 = "CONNECT, a TLS handshake with the origin through it, one request, close"
_W1B = "CONNECT, a real ClientHello of 517 bytes, one byte back, close"
_W3 = "one small request on a connection that stays: TLS ended on both sides, a header added"
_W3B = "CONNECT, TLS ended on both sides, one request with a header added, close"

STREAMED: tuple[Workload, ...] = (
    Streamed(id="W1 c32", about=_W1, mode="once", kind="tls", concurrency=32),
    Streamed(id="W1b c32", about=_W1B, mode="hello", kind="hello", concurrency=32),
    Streamed(id="W1b c256", about=_W1B, mode="hello", kind="hello", concurrency=256, in_quick=False),
    *(
        Streamed(
            id=f"W2 {direction} s{streams}",
            about=f"bytes {direction} through {streams} tunnel{'s' * (streams > 1)}",
            mode=direction,
            kind=direction,
            concurrency=streams,
            unit="Gbit/s",
            in_quick=streams == 1,
        )
        for direction in ("down", "up")
        for streams in (1, 16)
    ),
    Streamed(id="W3 c32", about=_W3, mode="kept", kind="tls", concurrency=32, terminated=True, unit="requests/s"),
    Streamed(
        id="W3 c256", about=_W3, mode="kept", kind="tls", concurrency=256, terminated=True, unit="requests/s", in_quick=False
    ),
    Streamed(id="W3b c32", about=_W3B, mode="once", kind="tls", concurrency=32, terminated=True, unit="connections/s"),
    Streamed(
        id="W3b new",
        about=f"{_W3B}; another host each time",
        mode="once",
        kind="tls",
        concurrency=32,
        terminated=True,
        fresh=True,
        unit="connections/s",
    ),
)
"""W1 to W3b."""
