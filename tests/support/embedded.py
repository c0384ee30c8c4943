"""An embedder's program: it confines a command by the library alone, under a policy. Orders are JSON on standard input.

Orders: ``policy`` and ``argv``; with ``then``, another policy, ``argv`` is run again under that.
"""

import json
import os
import sys
from pathlib import Path

import trio

import sbxproxy
from sbxproxy.capture import Plan, launch
from sbxproxy.events import DnsAnswered, FlowClosed


async def run(proxy: sbxproxy.Proxy, sandbox: sbxproxy.Sandbox, argv: list[str]) -> tuple[int, str]:
    """Run *argv* in *sandbox*; its exit code and output."""
    read, write = os.pipe()
    environment = {key: value for key, value in {**os.environ, **sandbox.environment()}.items() if value is not None}
    try:
        plan = Plan(argv=argv, environment=environment, directory=Path("/"), stdout=write, binds=sandbox.mounts())
        async with await launch(plan) as confined, trio.open_nursery() as nursery:
            os.close(write)
            write = -1
            await nursery.start(sandbox.serve_captured, confined)
            await confined.go()
            output = b""
            while True:
                await trio.lowlevel.wait_readable(read)
                data = os.read(read, 65536)
                if not data:
                    break
                output += data
            code = await confined.wait()
            nursery.cancel_scope.cancel()
        return code, output.decode()
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


async def main() -> None:
    orders = json.load(sys.stdin)
    dns, flows = [], []

    def observe(event: sbxproxy.Event) -> None:
        if isinstance(event, DnsAnswered):
            dns.append([event.name, event.rcode, event.decision, event.reason])
        elif isinstance(event, FlowClosed):
            flows.append([str(event.decision), event.reason])

    proxy = sbxproxy.Proxy(observers=[observe])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("embedded", policy=orders["policy"])
        outputs = [await run(proxy, sandbox, orders["argv"])]
        if "then" in orders:
            await sandbox.update_policy(orders["then"])
            dns.clear(), flows.clear()
            outputs.append(await run(proxy, sandbox, orders["argv"]))
        await sandbox.aclose()
        nursery.cancel_scope.cancel()
    json.dump({"outputs": outputs, "dns": dns, "flows": flows}, sys.stdout)


if __name__ == "__main__":
    trio.run(main)
