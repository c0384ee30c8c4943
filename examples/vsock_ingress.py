"""Connections of a virtual machine that come by vsock, as Firecracker hands them over. Runs anywhere.

A guest's connection to port N of the host (CID 2) arrives at the Unix socket ``<uds_path>_N``. Two ways are shown. On port 5000 an
agent in the guest, which takes the place of its network, begins each connection with a PROXY v2 header that names its destination.
On port 5001 there is no header: the port itself stands for one target. What stands in for the machine here is its end of the two
Unix sockets, opened by this program; everything on the host's side is as it would be.
"""

import sys
import tempfile
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import trio

import sbxproxy
from sbxproxy.net import open_unix_listener
from sbxproxy.wire.proxy_protocol import build_proxy

REQUEST = b"GET / HTTP/1.1\r\nHost: 192.0.2.7\r\nConnection: close\r\n\r\n"


async def ingress(sandbox: sbxproxy.Sandbox, uds_path: Path, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
    """Serve the machine whose vsock device has *uds_path*, until cancelled."""
    with_header = open_unix_listener(f"{uds_path}_5000")
    one_target = open_unix_listener(f"{uds_path}_5001")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(sandbox.serve, [with_header], trusted_proxies=["unix"]))
        handle = partial(sandbox.handle, target=("192.0.2.7", 80))
        await nursery.start(trio.serve_listeners, handle, [one_target])
        task_status.started()


async def guest(uds_path: Path, port: int, header: bytes = b"") -> bytes:
    """Stand in for the machine: connect, ask, and read to the end."""
    async with await trio.open_unix_socket(f"{uds_path}_{port}") as stream:
        await stream.send_all(header + REQUEST)
        return b"".join([part async for part in stream])


async def main() -> None:
    proxy = sbxproxy.Proxy(observers=[lambda event: print(event, file=sys.stderr)])
    with tempfile.TemporaryDirectory() as directory:
        uds_path = Path(directory, "v.sock")
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            sandbox = proxy.create_sandbox("machine", policy={"allow": ["pypi.org"]})
            await nursery.start(ingress, sandbox, uds_path)
            header = build_proxy((ip_address("10.0.2.15"), 40000), (ip_address("192.0.2.7"), 80))
            for answer in (await guest(uds_path, 5000, header), await guest(uds_path, 5001)):
                print(answer.partition(b"\r\n")[0].decode())
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
