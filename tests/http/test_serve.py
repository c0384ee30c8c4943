"""The loop over requests, and serving as a plain HTTP proxy."""

from __future__ import annotations

import pytest
import trio

from sbxproxy.http import Origin
from support.http_peers import OK, World, read_all, read_until, request

PLAIN = Origin("api.example.com", 80, "http")


def proxied(target: bytes, host: bytes = b"api.example.com", method: bytes = b"GET", *fields: bytes) -> bytes:
    return request(method + b" " + target + b" HTTP/1.1", *fields, host=host)


async def test_bytes_read_before_come_first(nursery):
    world = World(nursery)
    client = world.client(initial=request()[:10])
    await client.send_all(request()[10:])
    assert await read_until(client, OK) == OK
    await client.send_eof()
    assert await read_all(client) == b""
    assert world.ended.reason == "eof"


async def test_a_client_that_is_reset_between_requests_ends_quietly(nursery):
    from sbxproxy.net import abort
    from support.tcp import tcp_pair

    world = World(nursery, client_pair=tcp_pair, pair=trio.testing.memory_stream_pair)
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    await abort(client)
    await world.over.wait()
    assert world.ended.reason == "client-gone"
    assert len(world.records) == 1


async def test_a_proxied_request_is_sent_in_origin_form(nursery):
    world = World(nursery, origin=PLAIN, proxying=True)
    answer = await world.talk(
        proxied(b"http://api.example.com/a?b", b"api.example.com", b"GET", b"Proxy-Connection: keep-alive")
        + proxied(b"http://API.example.com:80", b"api.example.com:80")
    )
    assert answer == OK * 2
    assert [seen.url for seen in world.upstream.requests] == [b"/a?b", b"/"]
    assert all(seen.all(b"host") == [b"api.example.com"] for seen in world.upstream.requests)
    assert b"Proxy" not in world.upstream.raw
    assert [record.path for record in world.records] == ["/a", "/"]


@pytest.mark.parametrize(
    "other",
    [
        proxied(b"http://other.example.com/", b"other.example.com") + b"more",
        proxied(b"http://api.example.com:8080/", b"api.example.com:8080"),
        proxied(b"https://api.example.com/", b"api.example.com"),
        proxied(b"other.example.com:443", b"other.example.com:443", b"CONNECT") + b"\x16\x03\x01",
    ],
)
async def test_a_request_for_elsewhere_is_handed_back_whole(nursery, other):
    """With it the caller begins a flow of its own, judged on its own."""
    world = World(nursery, origin=PLAIN, proxying=True)
    assert await world.talk(proxied(b"http://api.example.com/") + other) == OK
    assert world.ended.reason == "elsewhere"
    assert world.ended.leftover == other
    assert len(world.records) == 1
    assert "leftover" not in repr(world.ended)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (proxied(b"/origin-form"), 400),
        (proxied(b"http://api.example.com/", b"other.example.com"), 421),
        (proxied(b"http://evil@api.example.com/"), 400),
        (proxied(b"*", method=b"OPTIONS"), 400),
        (b"GET http://api.example.com/ HTTP/1.0\r\n\r\n", 400),
    ],
)
async def test_a_proxied_request_that_is_ambiguous_is_refused(nursery, raw, status):
    world = World(nursery, origin=PLAIN, proxying=True)
    answer = await world.talk(raw)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert world.upstream.raw == b""


async def test_an_address_may_be_the_target(nursery):
    world = World(nursery, origin=Origin("2606:4700::1111", 80, "http"), proxying=True)
    await world.talk(proxied(b"http://[2606:4700:0::1111]/", b"[2606:4700::1111]"))
    assert world.upstream.requests[0].all(b"host") == [b"[2606:4700::1111]"]


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        (Origin("a.example", 443), "a.example"),
        (Origin("a.example", 80), "a.example:80"),
        (Origin("a.example", 80, "http"), "a.example"),
        (Origin("::1", 443), "[::1]"),
        (Origin("::1", 8443), "[::1]:8443"),
    ],
)
def test_an_authority_leaves_the_default_port_out(origin, authority):
    assert origin.authority == authority
