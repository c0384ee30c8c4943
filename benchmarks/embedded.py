"""sbxproxy embedded, for what ``serve`` has no option for: other limits, a plugin in a slot, DNS on loopback, updates that are timed.

``python -m benchmarks.embedded JSON`` takes the fields of ``Embedding``, prints its two ports, and serves until its standard input ends.
A line there is the path of a policy to put in force; what that took is printed as JSON.
"""

from __future__ import annotations

__all__ = ["SLOTS", "Embedding"]

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from trio.abc import Stream

from benchmarks.doors import open_doors, settings
from benchmarks.subjects.ours import SECRET, VARIABLE
from sbxproxy import EnvironmentSource, JsonLines, Limits, Pipeline, Policy, Proxy
from sbxproxy.events import Event
from sbxproxy.flow import Flow
from sbxproxy.http.message import Request
from sbxproxy.net import relay
from sbxproxy.policy import Decision, Handle, Relay
from sbxproxy.wire.result import Hint

SLOTS = ("nothing", "sniffer", "policy", "observer", "transform", "handler")
"""Where a part that does nothing may stand; a handler has to relay, which it leaves to the two-task relay."""

_BEAT = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What runs.

    Attributes:
        policy: a policy file.
        names: host names that are on loopback.
        upstream_ca: roots of upstreams besides the system's.
        authority: where the sandbox's CA is written.
        events: where events are written.
        limits: fields of ``Limits``.
        slot: where a part that does nothing stands.
    """

    policy: str
    names: Sequence[str]
    upstream_ca: str
    authority: str
    events: str
    limits: dict[str, Any] = field(default_factory=dict)
    slot: str = "nothing"


class Agree:
    """A policy stage that agrees."""

    async def decide(self, flow: Flow) -> Decision:
        assert flow.decision is not None
        return flow.decision


class Hand:
    """A policy stage that gives tunnels to a handler."""

    async def decide(self, flow: Flow) -> Decision:
        match flow.decision:
            case Relay(reason=reason, matched=matched, dial=dial):
                return Handle(name="carry", reason=reason, matched=matched, dial=dial)
            case decision:
                assert decision is not None
                return decision


class Carry:
    """A handler that relays."""

    async def handle(self, flow: Flow, client: Stream, upstream: Stream) -> None:
        await relay(client, upstream, idle=600, linger=5, count=flow)


class Pass:
    """A transform that changes nothing."""

    async def on_request(self, flow: Flow, request: Request) -> Request:  # noqa: ARG002
        return request


def _ignore(_event: Event) -> None:
    pass


def _pipeline(slot: str) -> Pipeline:
    match slot:
        case "sniffer":
            return Pipeline(sniffers=[lambda _data: Hint.NOT_MINE])
        case "policy":
            return Pipeline(policies=[Agree()])
        case "observer":
            return Pipeline(observers=[_ignore])
        case "transform":
            return Pipeline(transforms={"pass": Pass})
        case "handler":
            return Pipeline(policies=[Hand()], handlers={"carry": Carry()})
        case _:
            return Pipeline()


async def main(embedding: Embedding) -> None:
    """Serve until standard input ends."""
    with ExitStack() as stack:
        events = JsonLines(stack.enter_context(Path(embedding.events).open("a", encoding="utf-8")))
        stack.callback(events.close)
        limits = Limits(**embedding.limits)
        proxy = Proxy(
            settings(embedding.names, embedding.upstream_ca, limits), pipeline=_pipeline(embedding.slot), observers=[events]
        )
        secrets = {"bench": EnvironmentSource(VARIABLE, SECRET)}
        sandbox = proxy.create_sandbox("bench", policy=json.loads(Path(embedding.policy).read_text()), secrets=secrets)
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            print(*await open_doors(nursery, sandbox, embedding.authority, backlog=4096), flush=True)
            while path := (await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)).strip():
                print(json.dumps(await _update(sandbox.update_policy, Path(path))), flush=True)
            nursery.cancel_scope.cancel(reason="standard input has ended")


async def _update(update: Callable[[object], Any], path: Path) -> dict[str, float]:
    """Read a policy in a thread and put it in force, as ``serve`` does with a changed file; returns milliseconds."""
    figures: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        pulse = _Pulse()
        nursery.start_soon(pulse.run)
        await trio.sleep(0.05)
        pulse.longest = 0.0
        started = time.perf_counter()
        policy = await trio.to_thread.run_sync(lambda: Policy.from_json(path.read_text()))
        figures["load"] = (time.perf_counter() - started) * 1e3
        await trio.sleep(2 * _BEAT)
        figures["load_hold"], pulse.longest = pulse.longest * 1e3, 0.0
        started = time.perf_counter()
        changed = await update(policy)
        figures["update"] = (time.perf_counter() - started) * 1e3
        await trio.sleep(2 * _BEAT)
        figures["update_hold"] = pulse.longest * 1e3
        figures["kept"], figures["cut"] = changed.kept, len(changed.cut)
        nursery.cancel_scope.cancel(reason="measured")
    return figures


class _Pulse:
    """A task that wants to run every millisecond, and notes how late it was."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.perf_counter()
        while True:
            await trio.sleep(_BEAT)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last - _BEAT)
            last = now


if __name__ == "__main__":
    trio.run(main, Embedding(**json.loads(sys.argv[1])))
