"""A download that never ends, for what happens in the middle of one."""

from __future__ import annotations

from pathlib import Path

import trio

from support.firewall import Firewall
from support.origin import Origin
from support.talk import connect, exactly, handshake


async def stream_for_ever(stream: trio.abc.Stream) -> None:
    """Answer any request with a body that never ends."""
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    while True:
        await stream.send_all(b"x" * 16384)
        await trio.sleep(0.001)


async def download(
    firewall: Firewall, origin: Origin, name: str, *, trust: bytes = b"", root: Path | None = None
) -> trio.SSLStream:
    """Begin one from *origin* as *name*, by the sandbox's authority or the origin's own, and read the first of it."""
    stream = await firewall.open()
    assert (await connect(stream, f"{name}:{origin.port}"))[0] == 200
    tls = await handshake(stream, name, *([root] if root else []), trust=trust)
    await tls.send_all(f"GET /big HTTP/1.1\r\nHost: {name}:{origin.port}\r\n\r\n".encode())
    assert (await exactly(tls, 100_000)).startswith(b"HTTP/1.1 200 ")
    return tls
