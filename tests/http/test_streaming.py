"""Bodies on their way: both directions at once, bounded in memory, and 100-continue end to end."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sbxproxy.http import Denied, Response
from support.http_peers import OK, Upstream, World, limits, read_all, read_until, request
from support.tcp import tcp_pair

HEAD_END = b"\r\n\r\n"
EXPECT = b"Expect: 100-continue"


def has_head(got: bytes) -> bool:
    """A body may come along with its head."""
    return HEAD_END in got


async def test_an_event_passes_before_the_next_is_sent(nursery):
    """Server-sent events: each is of use now, not when a buffer is full."""
    client_got = trio.Event()

    async def upstream(stream):
        nonlocal client_got
        await read_until(stream, has_head)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(5):
            await stream.send_all(b"data: %d\n\n" % number)
            await client_got.wait()
            client_got = trio.Event()

    world = World(nursery, upstream, pair=trio.testing.lockstep_stream_pair)
    client = world.client()
    await client.send_all(request())
    with trio.fail_after(30):
        await read_until(client, HEAD_END)
        for number in range(5):
            await read_until(client, b"data: %d\n\n\r\n" % number)
            client_got.set()
            await trio.testing.wait_all_tasks_blocked()
        await read_until(client, b"0\r\n\r\n")
    await client.aclose()


async def test_an_upload_reaches_the_upstream_piece_by_piece(nursery):
    pieces = []

    async def upstream(stream):
        await read_until(stream, has_head)
        for _ in range(3):
            pieces.append(await stream.receive_some())
            await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(OK)

    world = World(nursery, upstream, pair=trio.testing.lockstep_stream_pair)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 6"))
    for piece in (b"ab", b"cd", b"ef"):
        await client.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()
        assert pieces[-1] == piece
    assert await read_until(client, b"ok") == OK
    await client.aclose()


async def test_both_bodies_move_at_once(nursery):
    """A response may begin, and go on, while the request still comes."""

    async def echo(stream):
        await read_until(stream, has_head)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n")
        for _ in range(3):
            await stream.send_all(await read_until(stream, lambda got: len(got) == 10))

    world = World(nursery, echo)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 30"))
    head = await read_until(client, HEAD_END)
    assert b"Connection: close" in head
    for letter in (b"a", b"b", b"c"):
        await client.send_all(letter * 10)
        assert await read_until(client, letter * 10) == letter * 10
    assert await read_all(client) == b""
    assert world.ended.reason == "closed"
    assert world.records[0].bytes_up == 30


async def test_h18_an_early_response_ends_the_upload_and_the_connection(nursery):
    """What the client still sends is not read as its next request."""

    async def refuse(stream):
        await read_until(stream, has_head)
        await stream.send_all(b"HTTP/1.1 413 x\r\nContent-Length: 3\r\n\r\nbig")
        await read_all(stream)

    world = World(nursery, refuse)
    smuggled = request(b"GET /smuggled HTTP/1.1")
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 1000"))
    answer = await read_until(client, b"big")
    await client.send_all(smuggled)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer
    await client.send_eof()
    assert await read_all(client) == b""
    await world.over.wait()
    assert len(world.requests) == 1
    assert len(world.pool) == 0


async def test_h18_an_early_response_survives_an_upstream_that_resets(nursery):
    """A server that refuses an upload answers and closes without reading; the answer counts, not the reset."""

    async def refuse(stream):
        await read_until(stream, has_head)
        await stream.send_all(b"HTTP/1.1 413 x\r\nContent-Length: 3\r\n\r\nbig")

    world = World(nursery, refuse, pair=trio.testing.memory_stream_pair, client_pair=tcp_pair)
    async with world.client() as client, trio.open_nursery() as sending:

        async def upload():
            try:
                await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 900000") + bytes(900_000))
            except trio.BrokenResourceError:
                pass

        sending.start_soon(upload)
        answer = await read_all(client)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"big")


async def test_an_upstream_that_resets_an_upload_without_an_answer_is_502(nursery):
    async def leave(stream):
        await read_until(stream, has_head)

    world = World(nursery, leave)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 1000", body=b"part"))
    answer = await read_until(client, b"}\n")
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"upstream-cut" in answer
    await client.aclose()
    await world.over.wait()


async def test_a_malformed_chunk_in_the_middle_is_400_and_the_upstream_sees_no_end(nursery):
    got = b""
    broke = trio.Event()

    async def upstream(stream):
        nonlocal got
        try:
            while True:
                chunk = await stream.receive_some()
                got += chunk
                assert chunk, "a clean end"
        except trio.BrokenResourceError:
            broke.set()

    world = World(nursery, upstream, pair=tcp_pair, client_pair=trio.testing.memory_stream_pair)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"))
    await trio.testing.wait_all_tasks_blocked()
    await client.send_all(b"zz\r\n")
    await client.send_eof()
    answer = await read_all(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    with trio.fail_after(30):
        await broke.wait()
        await world.over.wait()
    assert b"0\r\n\r\n" not in got
    assert world.records[0].bytes_up == 3


async def test_a_malformed_chunk_after_the_response_began_resets(nursery):
    async def upstream(stream):
        await read_until(stream, has_head)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await read_all(stream)

    world = World(nursery, upstream, client_pair=tcp_pair)
    async with world.client() as client:
        await client.send_all(request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"))
        await read_until(client, b"part")
        await client.send_all(b"zz\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)
    await world.over.wait()
    assert world.ended.reason == "bad-request"


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_x5_two_hundred_megabytes_hold_no_more_than_a_few_pieces(nursery, direction):
    """What is between the sender's send and the receiver's receive is all that the exchange holds."""
    total, piece = 200 * 1024 * 1024, bytes(256 * 1024)
    sent = received = peak = 0

    async def pour(stream):
        nonlocal sent, peak
        while sent < total:
            await stream.send_all(piece)
            sent += len(piece)
            peak = max(peak, sent - received)

    async def drain(stream, size):
        nonlocal received, peak
        while received < size:
            received += len(await stream.receive_some(64 * 1024))
            peak = max(peak, sent - received)

    async def upstream(stream):
        await read_until(stream, has_head)
        if direction == "down":
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
            await pour(stream)
        else:
            await drain(stream, total)
            await stream.send_all(OK)

    world = World(nursery, upstream, pair=trio.testing.lockstep_stream_pair)
    client = world.client()
    if direction == "up":
        await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: %d" % total))
        await pour(client)
        await read_until(client, b"ok")
        assert received == total
    else:
        await client.send_all(request())
        await read_until(client, HEAD_END)
        await drain(client, total)
    assert peak <= 4 * len(piece)
    await client.aclose()
    await world.over.wait()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_x5_nothing_is_read_for_one_that_does_not_read(nursery, direction):
    sent = 0

    async def pour(stream):
        nonlocal sent
        while True:
            await stream.send_all(bytes(64 * 1024))
            sent += 64 * 1024

    async def upstream(stream):
        await read_until(stream, has_head)
        if direction == "down":
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            await pour(stream)
        await trio.sleep_forever()

    world = World(nursery, upstream, pair=trio.testing.lockstep_stream_pair)
    client = world.client()
    if direction == "up":
        await client.send_all(request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"))

        async def chunks():
            nonlocal sent
            while True:
                await client.send_all(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536

        nursery.start_soon(chunks)
    else:
        await client.send_all(request())
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sent <= 4 * 64 * 1024
    nursery.cancel_scope.cancel()


# --- 100-continue ----------------------------------------------------------------------------------------


async def test_h24_continue_is_asked_and_answered_end_to_end(nursery):
    async def upstream(stream):
        head = await read_until(stream, has_head)
        assert b"Expect: 100-continue\r\n" in head
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await read_until(stream, b"body") == b"body"
        await stream.send_all(OK)

    world = World(nursery, upstream)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 4", EXPECT))
    assert await read_until(client, HEAD_END) == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send_all(b"body")
    assert await read_until(client, b"ok") == OK
    await client.aclose()


async def test_h24_a_final_answer_instead_of_continue_ends_the_connection(nursery):
    async def upstream(stream):
        await read_until(stream, has_head)
        await stream.send_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await read_all(stream)

    world = World(nursery, upstream)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 4", EXPECT))
    answer = await read_until(client, HEAD_END)
    await client.send_eof()
    assert await read_all(client) == b""
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in answer


async def test_h24_a_client_that_does_not_wait_is_served(nursery):
    world = World(nursery, Upstream(b"HTTP/1.1 100 Continue\r\n\r\n" + OK))
    answer = await world.talk(request(b"POST / HTTP/1.1", b"Content-Length: 4", EXPECT, body=b"body") + request())
    assert answer.endswith(OK)
    assert world.upstream.requests[0].body == b"body"
    assert len(world.upstream.requests) == 2


async def test_h24_an_upstream_that_says_nothing_does_not_hang_the_client_for_ever(nursery, autojump_clock):
    async def silent(stream):
        await read_all(stream)

    world = World(nursery, silent, limits=limits(request_idle=20.0))
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 4", EXPECT))
    begun = trio.current_time()
    answer = await read_until(client, b"}\n")
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert 20 <= trio.current_time() - begun <= 22


async def test_h24_a_body_wanted_by_a_transform_is_asked_for_by_us(nursery):
    """And an answer to the Expect that was not forwarded is not passed on."""
    world = World(nursery, Upstream(b"HTTP/1.1 100 Continue\r\n\r\n" + OK), body_limit=100)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 4", EXPECT))
    assert await read_until(client, HEAD_END) == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send_all(b"body")
    assert await read_until(client, b"ok") == OK
    assert world.upstream.requests[0].all(b"expect") == []
    await client.aclose()
    await world.over.wait()


@pytest.mark.parametrize("answer", [Denied("domain-not-allowed", "no"), Response(status=200, body=b"rule")])
async def test_h24_a_request_answered_here_does_not_ask_for_its_body(nursery, answer):
    world = World(nursery, on_request=lambda _: answer)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 4", EXPECT))
    await client.send_eof()
    got = await read_all(client)
    assert b" 100 " not in got
    assert b"Connection: close" in got


async def test_h24_expectation_without_a_body_is_dropped(nursery):
    world = World(nursery)
    assert await world.talk(request(b"GET / HTTP/1.1", EXPECT) * 2) == OK * 2
    assert b"xpect" not in world.upstream.raw


async def test_h24_http_1_0_expects_nothing_and_gets_no_interim_response(nursery):
    world = World(nursery, Upstream(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK))
    answer = await world.talk(request(b"POST / HTTP/1.0", b"Content-Length: 4", EXPECT, body=b"body"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"xpect" not in world.upstream.raw


async def test_h24_other_expectations_are_417(nursery):
    world = World(nursery)
    answer = await world.talk(request(b"POST / HTTP/1.1", b"Content-Length: 4", b"Expect: 200-ok", body=b"body"))
    assert answer.startswith(b"HTTP/1.1 417 ")
    assert world.upstream.raw == b""
