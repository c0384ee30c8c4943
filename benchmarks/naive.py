"""The proxy one would write first with Trio: CONNECT, two copies in a nursery, no policy, no limits, no time-outs.

``python -m benchmarks.naive`` prints its port and serves until it is killed.
"""

from __future__ import annotations

import contextlib

import trio


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for chunk in source:
        await sink.send_all(chunk)
    await sink.send_eof()


async def handle(client: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = await client.receive_some(65536)
            if not chunk:
                return
            head += chunk
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as upstream:
            await client.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(copy, client, upstream)
                    nursery.start_soon(copy, upstream, client)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


async def main() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(handle, listeners)


if __name__ == "__main__":
    trio.run(main)
