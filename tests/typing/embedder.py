"""What an embedder writes, held to mypy's strict mode."""

from __future__ import annotations

import sys
from functools import partial

import trio
import trio.testing

from sbxproxy import (
    CallableSource,
    EnvironmentSource,
    Event,
    JsonLines,
    Limits,
    ListenerAuth,
    Policy,
    PolicyChanged,
    PolicyError,
    Proxy,
    Settings,
)
from sbxproxy.address import parse_network


async def look_up(name: str) -> str:
    return name


async def main() -> None:
    events: list[Event] = []
    settings = Settings(private_networks=[parse_network("10.0.0.0/8")], limits=Limits(flows_per_sandbox=100, idle=None))
    proxy = Proxy(settings, observers=[events.append, JsonLines(sys.stdout)])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        try:
            sandbox = proxy.create_sandbox(
                "job-42",
                policy={"allow": {"api.github.com": []}},
                secrets={"github": EnvironmentSource("GH_TOKEN"), "vault": CallableSource(look_up), "literal": "x"},
            )
        except PolicyError as error:
            print([problem.place for problem in error.problems])
            return
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        auth = ListenerAuth(user="job", password="x")
        await nursery.start(partial(sandbox.serve, listeners, auth=auth))
        environment: dict[str, str | None] = sandbox.environment(proxy=listeners[0], auth=auth)
        change: PolicyChanged = await sandbox.update_policy(Policy.parse("deny-all"))
        async with sandbox.scoped_policy("allow-all") as scoped:
            print(environment, change.cut, scoped.kept, [flow.facts.server_name for flow in sandbox.flows])
        stream, other = trio.testing.memory_stream_pair()
        await other.aclose()
        await sandbox.handle(stream, ("203.0.113.7", 443))
        await proxy.drain(grace=1.0)


if __name__ == "__main__":
    trio.run(main)
