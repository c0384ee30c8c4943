"""The smallest sandbox there is, ``unshare -Urn``, with the firewall as its only way out. Linux; no root needed.

The command waits at a gate until its network is captured. Nothing is mounted, so programs that heed no variable don't trust the
sandbox's certificates; TLS that is only relayed needs no trust.
"""

import os
import subprocess
import sys
from functools import partial

import trio

import sbxproxy

GATE = 'echo; read gate && exec "$@" </dev/null >&2'  # the first line tells that the namespace is there


async def confine(sandbox: sbxproxy.Sandbox, command: list[str]) -> int:
    """Run *command*, whose output all goes to standard error; returns its exit code."""
    environment = {k: v for k, v in {**os.environ, **sandbox.environment()}.items() if v is not None}
    argv = ["unshare", "-Urn", "sh", "-c", GATE, "sh", *command]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            await trio.to_thread.run_sync(process.stdout.read, 1, abandon_on_cancel=True)
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(sandbox.capture, netns=f"/proc/{process.pid}/ns/net"))
                process.stdin.write(b"go\n")
                process.stdin.close()
                code = await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
                nursery.cancel_scope.cancel()
            return code
        finally:
            process.kill()


async def main() -> None:
    proxy = sbxproxy.Proxy(observers=[print])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("unshare", policy={"allow": ["pypi.org"]})
        code = await confine(sandbox, sys.argv[1:] or ["curl", "-sS", "http://192.0.2.7/"])
        await proxy.drain()
    sys.exit(code)


if __name__ == "__main__":
    trio.run(main)
