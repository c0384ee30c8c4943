"""Replies of ours to clients whose request is broken further on, or who leave."""

from __future__ import annotations

import pytest
import trio

from sbxproxy.http import Denied, Response
from sbxproxy.net import abort
from support.http_peers import ResponseParser, World, limits, read_until, request
from support.tcp import tcp_pair

ANSWERS = [Denied("domain-not-allowed", "not this one"), Response(status=403, body=b"rule")]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Transfer-Encoding: chunked", b"3\r\nabc\r\nzz\r\n"),
        (b"Transfer-Encoding: chunked", b"3\r\nabcXX0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n"),
        (b"Content-Length: 1000000", b"abc"),
    ],
)
async def test_h17_behind_a_broken_body_there_is_no_next_request(nursery, answer, framing, body):
    """The refusal stands, it says that it is the last, and what follows is not read as a request."""
    world = World(nursery, on_request=lambda _: answer, limits=limits(linger=0.01))
    got = await world.talk(request(b"POST / HTTP/1.1", framing, body=body) + request(b"GET /next HTTP/1.1"))
    parser = ResponseParser()
    parser.feed(got)
    assert [status for status, _, _ in parser.complete] == [403]
    assert b"Connection: close\r\n" in got
    assert [judged.target for judged in world.requests] == ["/"]


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_body_that_ends_early_behind_a_reply_ends_the_connection(nursery, answer):
    world = World(nursery, on_request=lambda _: answer)
    got = await world.talk(request(b"POST / HTTP/1.1", b"Content-Length: 10", body=b"part"))
    assert got.startswith(b"HTTP/1.1 403 ")
    assert got.count(b"HTTP/1.1") == 1
    assert world.ended.reason != "eof"


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_after_a_last_reply_ends_quietly(nursery, reset):
    world = World(nursery, client_pair=tcp_pair)
    client = world.client()
    await client.send_all(b"junk\r\n")
    await read_until(client, b"}\n")
    await (abort(client) if reset else client.aclose())
    with trio.fail_after(30):
        await world.over.wait()
    assert world.ended.reason == "bad-request"


async def test_a_client_that_stays_after_a_last_reply_is_left_after_a_while(nursery, autojump_clock):
    world = World(nursery)
    client = world.client()
    begun = trio.current_time()
    await client.send_all(b"junk\r\n")
    await read_until(client, b"}\n")
    await world.over.wait()
    assert trio.current_time() - begun == pytest.approx(limits().linger, abs=0.5)
    await client.aclose()
