"""Connections that are out of step: what must not be used for another request, whoever is to blame."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from support.http_peers import OK, World, read_until, request
from support.tcp import tcp_pair

HEAD_END = b"\r\n\r\n"
EARLY = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
SIZE = 60_000  # one piece, and more than the small buffers of the test's sockets take


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d" % SIZE, bytes(SIZE)),
        (b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, bytes(SIZE))),
    ],
)
async def test_h18_an_early_response_to_a_half_sent_body_does_not_free_its_connection(nursery, framing, body):
    """Whatever the upstream still misses of that body, it would take from the next request, credential included."""
    leftovers = b""
    sending, drained = trio.Event(), trio.Event()

    async def upstream(stream):
        nonlocal leftovers
        head = await read_until(stream, HEAD_END)
        if b"/second" in head:
            await stream.send_all(OK)
            return
        await sending.wait()
        await stream.send_all(EARLY)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the second request is on its way, by whatever connection
        try:
            with trio.move_on_after(0.2):
                while chunk := await stream.receive_some():
                    leftovers += chunk
            await stream.send_all(OK)
        except trio.BrokenResourceError:
            pass
        drained.set()

    world = World(nursery, upstream, pair=lambda: tcp_pair(buffers=4096), client_pair=trio.testing.memory_stream_pair)
    client = world.client()
    await client.send_all(request(b"POST /first HTTP/1.1", framing))
    await trio.testing.wait_all_tasks_blocked()
    await client.send_all(body)
    await trio.testing.wait_all_tasks_blocked(0.05)  # the last piece is stuck in its send
    sending.set()
    await read_until(client, EARLY[-2:])
    await client.send_all(request(b"GET /second HTTP/1.1", b"Authorization: Bearer ours"))
    await read_until(client, OK[-2:])
    await drained.wait()
    assert b"Bearer" not in leftovers
    assert len(world.connects) == 2
    await client.aclose()
    await world.over.wait()
    await world.pool.aclose_all()
