"""A sandbox runtime puts the firewall round a child process: the whole of it in a dozen lines of Trio."""

import os

import trio

import sbxproxy


async def main() -> None:
    proxy = sbxproxy.Proxy(observers=[print])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("job-42", policy={"allow": ["pypi.org", "files.pythonhosted.org"]})
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(sandbox.serve, listeners)
        changes = sandbox.environment(proxy=listeners[0])
        environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
        await trio.run_process(["curl", "-sS", "https://example.com/"], env=environment, check=False)
        async with sandbox.scoped_policy("deny-all"):
            await trio.run_process(["curl", "-sS", "https://pypi.org/"], env=environment, check=False)
        await proxy.drain()


trio.run(main)
