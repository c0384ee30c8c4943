"""WebSocket upgrades: bytes are HTTP until the upstream has said 101, and raw after."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sbxproxy.net import abort
from support.http_peers import OK, Upstream, World, read_all, read_until, request
from support.tcp import tcp_pair

UPGRADE = [b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw=="]
HANDSHAKE = request(b"GET /chat HTTP/1.1", *UPGRADE)
ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
)


@pytest.mark.parametrize("pair", [trio.testing.memory_stream_pair, tcp_pair])
async def test_h12_after_101_bytes_are_relayed_both_ways(nursery, pair):
    async def upstream(stream):
        head = await read_until(stream, b"\r\n\r\n")
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        assert b"Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n" in head
        await stream.send_all(ACCEPT + b"early")
        assert await read_until(stream, b"frame") == b"frame"
        await stream.send_all(b"reply")
        assert await read_all(stream) == b""

    world = World(nursery, upstream, pair=pair)
    client = world.client()
    await client.send_all(HANDSHAKE)
    assert await read_until(client, b"early") == ACCEPTED + b"early"
    await client.send_all(b"frame")
    assert await read_until(client, b"reply") == b"reply"
    await client.send_eof()
    assert await read_all(client) == b""
    await world.over.wait()
    assert world.ended.reason == "upgraded"
    record = world.records[0]
    assert (record.status, record.reason, record.bytes_up, record.bytes_down) == (101, "ok", 5, 10)
    assert len(world.pool) == 0
    await client.aclose()


async def test_h12_bytes_behind_the_request_wait_for_101(nursery):
    """Sent early they would reach an upstream that has not agreed to anything (CVE-2025-64763)."""
    early = b""

    async def upstream(stream):
        nonlocal early
        await read_until(stream, b"\r\n\r\n")
        with trio.move_on_after(0.05):
            early = await stream.receive_some()
        await stream.send_all(ACCEPT)
        assert await read_until(stream, b"frame") == b"frame"

    world = World(nursery, upstream)
    answer = await world.talk(HANDSHAKE + b"frame")
    assert answer == ACCEPTED
    assert early == b""
    assert world.records[0].bytes_up == 5


async def test_h12_without_101_the_bytes_stay_http_and_are_judged(nursery):
    world = World(nursery, Upstream(OK))
    answer = await world.talk(HANDSHAKE + request(b"GET /next HTTP/1.1") + request(host=b"evil.example"))
    assert answer.startswith(OK * 2 + b"HTTP/1.1 421 ")
    assert [judged.target for judged in world.requests] == ["/chat", "/next"]


@pytest.mark.parametrize(
    "raw",
    [
        request(b"POST /chat HTTP/1.1", *UPGRADE, b"Content-Length: 2", body=b"ab"),
        request(b"GET /chat HTTP/1.1", *UPGRADE, b"Content-Length: 2", body=b"ab"),
        request(b"GET /chat HTTP/1.0", *UPGRADE),
        request(b"GET /chat HTTP/1.1", b"Upgrade: websocket"),
        request(b"GET /chat HTTP/1.1", b"Connection: upgrade", b"Upgrade: h2c"),
    ],
)
async def test_h12_an_upgrade_that_is_none_is_a_plain_request(nursery, raw):
    world = World(nursery, Upstream(ACCEPT))
    answer = await world.talk(raw)
    assert b"pgrade" not in world.upstream.raw
    assert answer.startswith(b"HTTP/1.1 502 ")  # 101 that nobody asked for


@pytest.mark.parametrize("upgrade", [b"h2c", b"", b"websocketx"])
async def test_h12_a_switch_to_something_else_is_502(nursery, upgrade):
    accept = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: " + upgrade + b"\r\n\r\nraw"
    answer = await World(nursery, Upstream(accept)).talk(HANDSHAKE)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"raw" not in answer


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_x4_a_reset_of_one_side_resets_the_other(nursery, side):
    ready, gone = trio.Event(), trio.Event()

    async def upstream(stream):
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(ACCEPT)
        await ready.wait()
        if side == "upstream":
            await abort(stream)
        else:
            with pytest.raises(trio.BrokenResourceError):
                await read_all(stream)
            gone.set()

    world = World(nursery, upstream, pair=tcp_pair)
    async with world.client() as client:
        await client.send_all(HANDSHAKE)
        await read_until(client, ACCEPTED)
        ready.set()
        with trio.fail_after(30):
            if side == "upstream":
                with pytest.raises(trio.BrokenResourceError):
                    await read_all(client)
            else:
                await abort(client)
                await gone.wait()
            await world.over.wait()
