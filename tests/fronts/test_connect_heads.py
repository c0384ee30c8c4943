"""What a CONNECT head meant is kept for the next one like it."""

from __future__ import annotations

import pytest
import trio.testing

from sbxproxy.errors import ClientProtocolError
from sbxproxy.fronts import http as module
from sbxproxy.fronts.http import open_http
from sbxproxy.net.peek import PeekedStream
from sbxproxy.settings import Limits

HEAD = b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\nUser-Agent: x\r\n\r\n"


@pytest.fixture(autouse=True)
def _nothing_kept():
    module._connect_wish.cache_clear()


async def wish(head: bytes, limits: Limits | None = None):
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(head)
    ask = await open_http(PeekedStream(near), limits or Limits(), None)
    return type(ask).__name__, str(ask.host), ask.port, ask.client.peeked


async def test_the_same_head_means_the_same_again_and_only_it_is_consumed():
    for _ in range(3):
        assert await wish(HEAD + b"\x16\x03") == ("ConnectAsk", "api.example", 443, b"\x16\x03")
    assert module._connect_wish.cache_info().hits == 2
    assert await wish(HEAD.replace(b"api.", b"other.")) == ("ConnectAsk", "other.example", 443, b"")
    assert (await wish(b"GET http://192.0.2.1/ HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"))[0] == "PlainAsk"


@pytest.mark.parametrize("name", [b"Proxy-Authorization", b"authorization", b"PROXY-AUTHORIZATION"])
async def test_s1_a_head_with_credentials_is_not_kept(name):
    """A secret must not stay in memory because a head had it."""
    head = HEAD[:-2] + name + b": Basic c2VjcmV0\r\n\r\n"
    assert await wish(head) == ("ConnectAsk", "api.example", 443, b"")
    assert module._connect_wish.cache_info().currsize == 0


async def test_a_long_head_is_not_kept():
    assert await wish(HEAD[:-2] + b"x: " + b"y" * 1000 + b"\r\n\r\n") == ("ConnectAsk", "api.example", 443, b"")
    assert module._connect_wish.cache_info().currsize == 0


async def test_h1_a_refused_head_is_refused_each_time():
    bad = HEAD.replace(b"Host: api", b"Host: evil")
    for _ in range(2):
        with pytest.raises(ClientProtocolError, match="Host is not the target"):
            await wish(bad)
    assert module._connect_wish.cache_info().currsize == 0


async def test_other_limits_ask_anew():
    assert await wish(HEAD)
    with pytest.raises(ClientProtocolError, match="too many header fields"):
        await wish(HEAD, Limits(header_fields=1))
