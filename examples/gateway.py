"""A guest whose network ends in a gateway namespace, as a container's veth or a virtual machine's tap does. For root.

The rules are in the gateway, so the guest can't change them even if it is root in its own namespace: guest, veth pair, gateway. The
gateway has no other interface, so nothing can pass by the firewall.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import trio

import sbxproxy

SETUP = """
netns add {guest}
netns add {gateway}
link add eth0 netns {guest} type veth peer name guest0 netns {gateway}
-n {gateway} address add 10.0.2.1/24 dev guest0
-n {gateway} address add fd00:2::1/64 dev guest0 nodad
-n {gateway} link set guest0 up
-n {guest} address add 10.0.2.15/24 dev eth0
-n {guest} address add fd00:2::15/64 dev eth0 nodad
-n {guest} link set lo up
-n {guest} link set eth0 up
-n {guest} route add default via 10.0.2.1
-n {guest} route add default via fd00:2::1
"""

# What the guest sees instead of this machine's files: in a mount namespace of its own.
ENTER = 'while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; exec "$@"'


@contextmanager
def namespaces():
    """Make both, joined by a cable; yield their names; remove them."""
    names = {role: f"sbxproxy-{role}-{os.getpid()}" for role in ("guest", "gateway")}
    try:
        for line in SETUP.format(**names).strip().splitlines():
            subprocess.run(["ip", *line.split()], check=True)
        yield names["guest"], names["gateway"]
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False)


async def confine(sandbox: sbxproxy.Sandbox, command: list[str]) -> int:
    """Run *command* as the guest; returns its exit code."""
    mounts = [str(path) for target, source in sandbox.mounts().items() for path in (source, target)]
    environment = {k: v for k, v in {**os.environ, **sandbox.environment()}.items() if v is not None}
    with namespaces() as (guest, gateway):
        inside = ["ip", "netns", "exec", guest, "unshare", "-m", "sh", "-c", ENTER, "sh", *mounts, "--", *command]
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(sandbox.gateway, interface="guest0", netns=f"/run/netns/{gateway}"))
            done = await trio.run_process(inside, env=environment, check=False)
            nursery.cancel_scope.cancel()
    return done.returncode


async def main() -> None:
    proxy = sbxproxy.Proxy(observers=[print])
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("guest", policy={"allow": ["pypi.org"]})
        code = await confine(sandbox, sys.argv[1:] or ["curl", "-sS", "http://192.0.2.7/"])
        await proxy.drain()
    sys.exit(code)


if __name__ == "__main__":
    trio.run(main)
