"""Workloads that start what they measure: memory of idle tunnels, start, DNS, what pipeline slots cost."""

from __future__ import annotations

__all__ = ["ALONE"]

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.embedded import SLOTS
from benchmarks.figures import Sample
from benchmarks.plan import Plan
from benchmarks.process import cpu_seconds, memory_bytes, spawn
from benchmarks.rig import HELLO_NAME, Load, Rig
from benchmarks.rules import RULES
from benchmarks.standing import hold, room, start_embedded
from benchmarks.streamed import STREAMED
from benchmarks.subjects import SUBJECTS, Running, Unavailable
from benchmarks.subjects.debian_peers import find
from benchmarks.subjects.ours import policy, start_serve
from benchmarks.workload import Workload

OURS = "sbxproxy"
_SERVE_FLOWS = 4000
"""Tunnels that ``serve`` holds: it has a limit of 4,096 a sandbox and no option for it."""


@dataclass(frozen=True, kw_only=True)
class Idle(Workload):
    """Resident memory that an idle tunnel adds.

    Attributes:
        count: tunnels.
    """

    count: int
    unit: str = "KiB/tunnel"
    less_is_better: bool = True
    most_rounds: int = 2

    def rows(self, subjects: Sequence[str]) -> Sequence[str]:
        return [name for name in subjects if name != "direct"]

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:
        count = 200 if plan.quick and self.count == 1_000 else self.count
        room(rig, count)
        with ExitStack() as stack:
            if name == OURS and count > _SERVE_FLOWS:
                running, _ = start_embedded(stack, rig, flows_per_sandbox=count + 100)
            else:
                running = next(subject for subject in SUBJECTS if subject.name == name).start(stack, rig)
            assert running.process is not None
            with ExitStack() as few:  # what the first connections make stays
                hold(few, rig, running, 100)
            time.sleep(0.5)
            before = memory_bytes(running.process)
            hold(stack, rig, running, count)
            time.sleep(0.2)
            return Sample(value=(memory_bytes(running.process) - before) / 1024 / count)


@dataclass(frozen=True, kw_only=True)
class Start(Workload):
    """From starting the process to the first connection taken."""

    unit: str = "ms"
    less_is_better: bool = True

    def rows(self, subjects: Sequence[str]) -> Sequence[str]:
        return [name for name in subjects if name != "direct"]

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:  # noqa: ARG002
        with ExitStack() as stack:
            if name == OURS:  # without the names that only "W3b new" needs
                rules = rig.directory / "start.json"
                rules.write_text(json.dumps(policy()))
                options = ["--policy", str(rules), "--events", str(rig.directory / "start.jsonl")]
                compiled = rig.directory / "bytecode"
                if not compiled.exists():  # as an installed package has it, whatever the environment says of writing it
                    with ExitStack() as first:
                        start_serve(first, rig, options, "start", bytecode=compiled)
                running = start_serve(stack, rig, options, "start", bytecode=compiled)
            else:
                running = next(subject for subject in SUBJECTS if subject.name == name).start(stack, rig)
            assert running.process is not None
            return Sample(value=(time.perf_counter() - running.process.born) * 1e3)


@dataclass(frozen=True, kw_only=True)
class Dns(Workload):
    """Answers a second over UDP from one process, from what it knows."""

    unit: str = "answers/s"

    def rows(self, subjects: Sequence[str]) -> Sequence[str]:
        return [OURS, "dnsmasq"] if OURS in subjects else []

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:  # noqa: ARG002
        with ExitStack() as stack:
            if name == OURS:  # its limit of 10,000 a second and sandbox would be what is measured
                ours, port = start_embedded(stack, rig, dns_rate=10_000_000, dns_lookup_rate=10_000_000)
                process = ours.process
                assert process is not None
            else:
                port = 5300 + rig.ports["hello"] % 1000
                record = f"--host-record={HELLO_NAME},127.0.0.1"
                options = ["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file=", "--user=root"]
                argv = [find("dnsmasq"), *options, f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", record]
                process = spawn(stack, argv, log=rig.directory / "dnsmasq.log", cpu=rig.subject_cpu)
                time.sleep(0.3)
            load = Load(mode="", port=port, name=HELLO_NAME, concurrency=64, seconds=plan.seconds)
            measured = rig.measure(load, partial(cpu_seconds, process), "dns")
        cpu = measured.spent / measured.count * 1e6 if measured.spent is not None and measured.count else None
        return Sample(
            value=measured.rate, cpu=cpu, p50=measured.p50, p99=measured.p99, failures=measured.failures, why=measured.why
        )


@dataclass(frozen=True, kw_only=True)
class Slots(Workload):
    """Processor time of one operation with a part that does nothing in one slot; ``nothing`` is without.

    Attributes:
        like: the workload that is run.
        slots: those that it goes through.
    """

    like: str
    slots: Sequence[str]
    unit: str = "CPU µs"
    less_is_better: bool = True
    in_quick: bool = False

    def rows(self, subjects: Sequence[str]) -> Sequence[str]:
        return self.slots if OURS in subjects else []

    def measure(self, rig: Rig, name: str, running: Running | None, plan: Plan) -> Sample:
        work = next(one for one in STREAMED if one.id == self.like)
        with ExitStack() as stack:
            running, _ = start_embedded(stack, rig, slot=name)
            sample = work.measure(rig, f"slot {name}", running, plan)
        if sample.cpu is None:
            raise Unavailable(sample.why or "nothing was done")
        return Sample(value=sample.cpu, p50=sample.p50, p99=sample.p99, failures=sample.failures, why=sample.why)


ALONE: tuple[Workload, ...] = (
    *(
        Idle(id=f"idle {count:,}", about=f"memory of each of {count:,} tunnels held open", count=count, in_quick=count == 1_000)
        for count in (1_000, 5_000, 20_000)
    ),
    Start(id="start", about="from starting the process to listening; sbxproxy with 1,003 rules"),
    *RULES,
    Dns(id="dns cached", about="answers to one question that is known, 64 open at a time"),
    Slots(id="slots flow", about="a tunnel as in W1b c32", like="W1b c32", slots=[slot for slot in SLOTS if slot != "transform"]),
    Slots(
        id="slots request",
        about="a request as in W3 c32",
        like="W3 c32",
        slots=["nothing", "sniffer", "policy", "observer", "transform"],
    ),
)
