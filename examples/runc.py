"""runc makes the container, the firewall is its only way out: create, attach, start. Works for root, and rootless.

Any runtime of the OCI kind goes like this; where an engine drives it (``--network none``), the same belongs into a
``createRuntime`` hook. The root file system is put together from this machine's ``/usr`` and ``/etc``, read-only.
"""

import json
import os
import subprocess
import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path

import trio

import sbxproxy

LINKS = ("bin", "sbin", "lib", "lib64")


def mount(target: Path | str, source: Path | str, kind: str = "none", *options: str) -> dict[str, object]:
    return {"destination": str(target), "source": str(source), "type": kind, "options": list(options)}


def make_bundle(bundle: Path, sandbox: sbxproxy.Sandbox, command: list[str]) -> None:
    """Write a bundle whose container sees the sandbox's trust files and variables."""
    root = bundle / "rootfs"
    root.mkdir()
    for name in LINKS:
        (root / name).symlink_to(f"usr/{name}")
    directory = sandbox.write_trust()[0].parent
    seen = [("/usr", "/usr"), ("/etc", "/etc"), *sandbox.mounts().items(), (directory, directory)]
    changes = sandbox.environment()
    user, group = os.geteuid(), os.getegid()
    kinds = ["pid", "network", "ipc", "uts", "mount"]
    maps = {}
    if user != 0:
        kinds.append("user")
        maps = {
            "uidMappings": [{"containerID": 0, "hostID": user, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": group, "size": 1}],
        }
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "args": command,
            "cwd": "/",
            "env": [f"{k}={v}" for k, v in {"PATH": "/usr/bin:/bin", **changes}.items() if v is not None],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
        },
        "mounts": [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755"),
            mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev"),
            *(mount(target, source, "none", "rbind", "ro") for target, source in seen),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in kinds], **maps},
    }
    (bundle / "config.json").write_text(json.dumps(config))


async def confine(sandbox: sbxproxy.Sandbox, command: list[str]) -> None:
    """Run *command* and wait for its end."""
    name = f"sbxproxy-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory)
        make_bundle(bundle, sandbox, command)
        runc = ["runc", "--root", f"{bundle}/state"]
        # The container's first process keeps these streams, so none may be a pipe that anybody reads to its end.
        await trio.run_process([*runc, "create", "--bundle", directory, name], stdin=subprocess.DEVNULL)
        try:
            pid = json.loads((await trio.run_process([*runc, "state", name], capture_stdout=True)).stdout)["pid"]
            process = os.pidfd_open(pid)
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(sandbox.capture, netns=f"/proc/{pid}/ns/net"))
                await trio.run_process([*runc, "start", name])
                await trio.lowlevel.wait_readable(process)
                os.close(process)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.run_process([*runc, "delete", "--force", name])


async def main() -> None:
    proxy = sbxproxy.Proxy(observers=[print])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("runc", policy={"allow": ["pypi.org"]})
        await confine(sandbox, sys.argv[1:] or ["curl", "-sS", "http://192.0.2.7/"])
        await proxy.drain()


if __name__ == "__main__":
    trio.run(main)
