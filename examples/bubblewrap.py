"""bubblewrap makes the sandbox, the firewall is its only way out. Needs ``bwrap``; no root needed.

bwrap tells by ``--info-fd`` whom it made, and ``--block-fd`` keeps the command waiting until its network is captured.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio

import sbxproxy

VIEW = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--tmpfs", "/tmp"]
APART = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--die-with-parent", "--new-session"]


def arguments(sandbox: sbxproxy.Sandbox) -> list[str]:
    """Say what the command sees of the sandbox: its trust in it, by files of the system and by variables."""
    found: list[str] = []
    for target, source in sandbox.mounts().items():
        found += ["--ro-bind", str(source), str(target)]
    directory = Path(sandbox.write_trust()[0]).parent
    found += ["--ro-bind", str(directory), str(directory)]
    for name, value in sandbox.environment().items():
        found += ["--unsetenv", name] if value is None else ["--setenv", name, value]
    return found


async def confine(sandbox: sbxproxy.Sandbox, command: list[str]) -> int:
    """Run *command*; returns its exit code."""
    told, info = os.pipe()
    block, go = os.pipe()
    argv = ["bwrap", *APART, *VIEW, *arguments(sandbox), "--info-fd", str(info), "--block-fd", str(block), "--", *command]
    # By Popen, in this thread: for --die-with-parent the parent is a thread, and Trio's would soon end.
    process = subprocess.Popen(argv, pass_fds=(info, block))
    os.close(info)
    os.close(block)
    try:
        async with trio.lowlevel.FdStream(told) as stream:
            description = b"".join([part async for part in stream])  # to the end: it comes in pieces
        child = json.loads(description)["child-pid"]
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(sandbox.capture, netns=f"/proc/{child}/ns/net"))
            os.write(go, b"!")
            code = await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        return code
    finally:
        process.kill()
        process.wait()
        os.close(go)


async def main() -> None:
    proxy = sbxproxy.Proxy(observers=[print])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("bubblewrap", policy={"allow": ["pypi.org"]})
        code = await confine(sandbox, sys.argv[1:] or ["curl", "-sS", "http://192.0.2.7/"])
        await proxy.drain()
    sys.exit(code)


if __name__ == "__main__":
    trio.run(main)
