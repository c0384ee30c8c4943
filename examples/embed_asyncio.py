"""A host that runs asyncio keeps the proxy in a thread of its own, behind anyio's portal with the Trio backend."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal

import sbxproxy


@asynccontextmanager
async def firewall(policy: object) -> AsyncIterator[tuple[BlockingPortal, sbxproxy.Sandbox, dict[str, str | None]]]:
    """Run a proxy with one sandbox; every call on the sandbox goes through the portal."""
    proxy = sbxproxy.Proxy()
    with start_blocking_portal("trio") as portal:
        running, _ = portal.start_task(run_started, proxy)
        sandbox = portal.call(lambda: make_sandbox(proxy, policy))
        listeners = portal.call(lambda: trio.open_tcp_listeners(0, host="127.0.0.1"))
        serving, _ = portal.start_task(serve_started, sandbox, listeners)
        environment = portal.call(lambda: environment_of(sandbox, listeners[0]))
        try:
            yield portal, sandbox, environment
        finally:
            await asyncio.to_thread(portal.call, proxy.drain)
            await asyncio.to_thread(lambda: (serving.result(), running.result()))


async def run_started(proxy: sbxproxy.Proxy, *, task_status: trio.TaskStatus[None]) -> None:
    await proxy.run(task_status=task_status)


async def serve_started(sandbox: sbxproxy.Sandbox, listeners: list, *, task_status: trio.TaskStatus[None]) -> None:
    await sandbox.serve(listeners, task_status=task_status)


async def make_sandbox(proxy: sbxproxy.Proxy, policy: object) -> sbxproxy.Sandbox:
    return proxy.create_sandbox("job-42", policy=policy)


async def environment_of(sandbox: sbxproxy.Sandbox, listener: trio.SocketListener) -> dict[str, str | None]:
    return sandbox.environment(proxy=listener)


async def main() -> None:
    async with firewall({"allow": ["pypi.org"]}) as (portal, sandbox, changes):
        environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
        child = await asyncio.create_subprocess_exec("curl", "-sS", "https://example.com/", env=environment)
        print("curl ended with", await child.wait())
        changed = await asyncio.to_thread(portal.call, sandbox.update_policy, "deny-all")
        print("policy is now", changed.mode)


asyncio.run(main())
