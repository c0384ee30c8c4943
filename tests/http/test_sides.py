"""The two ends of an exchange: where the readers of a head disagree, and what a broken stream means."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.errors import ClientProtocolError
from sbxproxy.http.incoming import ClientGone
from sbxproxy.http.sides import ClientSide, UpstreamSide
from support.clock import until_stuck
from support.http_peers import OK, Upstream, World, limits, request
from support.tcp import tcp_pair


@pytest.mark.parametrize(
    ("given_to_h11", "read_strictly"),
    [
        (request(b"POST / HTTP/1.1", b"Content-Length: 5"), request(b"POST / HTTP/1.1")),
        (request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"), request(b"POST / HTTP/1.1", b"Content-Length: 0")),
        (request(b"POST / HTTP/1.1"), request(b"POST / HTTP/1.1", b"Content-Length: 5")),
        (request(b"POST / HTTP/1.1"), request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked")),
        (b"POST / HTTP/1.1\r\n\r\n", request(b"POST / HTTP/1.1")),
        (b"POST / HTTP/1.1\r\nX y\r\n\r\n", request(b"POST / HTTP/1.1")),
    ],
)
def test_h1_a_head_that_two_readers_read_differently_is_refused(given_to_h11, read_strictly):
    """They are given the same bytes; should one of them ever find another body in them, nothing goes on."""
    near, _ = trio.testing.memory_stream_pair()
    side = ClientSide(near, limits())
    with pytest.raises(ClientProtocolError) as caught:
        side.begin(given_to_h11, side.parse(read_strictly))
    assert caught.value.status == 400


async def test_a_client_whose_stream_broke_is_gone():
    near, far = trio.testing.memory_stream_pair()
    side = ClientSide(near, limits())
    await far.aclose()
    with pytest.raises(ClientGone):
        await side.send(b"x")
    assert side.broken_off


@pytest.mark.parametrize("broken", [True, False])
async def test_an_upstream_is_deaf_from_the_first_send_that_did_not_complete(broken):
    near, far = tcp_pair(buffers=4096)
    side = UpstreamSide(near, limits(), reused=False)
    await side.send(b"x")
    assert not side.deaf
    if broken:
        await near.aclose()
        await side.send(b"x")  # an early answer may still be had, so this is no error yet
    else:
        await until_stuck(side.send, bytes(10_000_000))
    assert side.deaf
    await near.aclose()
    await far.aclose()


# --- credentials: a property over what a client may say of a header that will be set ----------------------

NAMES = st.sampled_from(
    [
        b"Authorization",
        b"authorization",
        b"AUTHORIZATION",
        b"aUTHORIZATION",
        b"Connection",
        b"connection",
        b"X-Api-Key",
        b"x_api_key",
        b"X_API-KEY",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"Keep-Alive",
        b"TE",
        b"Upgrade",
        b"X",
    ]
)
VALUES = st.sampled_from(
    [
        b"theirs",
        b"theirs, theirs",
        b"authorization",
        b"close, Authorization",
        b"x-api-key",
        b"X_Api_Key,keep-alive",
        b"host",
        b"content-length, transfer-encoding",
        b"upgrade",
        b"websocket",
        b"",
        b"\xff\xfe",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from([b"GET", b"POST"]))
def test_c1_c2_a_set_header_arrives_exactly_once_whatever_the_client_says(fields, method):
    """No spelling shadows it, and no Connection field that arrives names it for the next hop to remove."""

    async def main() -> World:
        async with trio.open_nursery() as nursery:
            world = World(
                nursery,
                Upstream(OK),
                on_request=lambda sent: sent.with_header("authorization", "ours").with_header("x-api-key", "ours too"),
            )
            lines = [name + b": " + value for name, value in fields]
            body = b"abc" if method == b"POST" else b""
            lines += [b"Content-Length: 3"] if body else []
            await world.talk(request(method + b" / HTTP/1.1", *lines, body=body))
            await world.pool.aclose_all()
        return world

    world = trio.run(main)
    (seen,) = world.upstream.requests
    arrived = [(name.lower().replace(b"_", b"-"), value) for name, value in seen.headers]
    assert [value for name, value in arrived if name == b"authorization"] == [b"ours"]
    assert [value for name, value in arrived if name == b"x-api-key"] == [b"ours too"]
    assert {value.lower() for name, value in arrived if name == b"connection"} <= {b"upgrade"}
    assert seen.all(b"host") == [b"api.example.com"]
    assert seen.body == (b"abc" if method == b"POST" else b"")
