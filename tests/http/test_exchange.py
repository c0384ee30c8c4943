"""Whole exchanges over scripted peers: what goes up, what comes down, and what never does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from sbxproxy.errors import UpstreamConnectError, UpstreamError
from sbxproxy.http import Denied, Forward, Headers, Origin, Request, Response
from sbxproxy.net import abort
from support.http_peers import OK, ORIGIN, ResponseParser, Upstream, World, limits, read_all, read_until, request
from support.tcp import tcp_pair


async def test_a_plain_request_is_written_anew(nursery):
    """Request line and Host are ours, other fields keep their order and spelling."""
    world = World(nursery)
    answer = await world.talk(request(b"GET /a?b=c HTTP/1.1", b"X-One: 1", b"accept: */*"))
    assert world.upstream.raw == (b"GET /a?b=c HTTP/1.1\r\nHost: api.example.com\r\nX-One: 1\r\naccept: */*\r\n\r\n")
    assert answer == OK
    assert world.ended.reason == "eof"


async def test_the_story_of_a_request_leaves_its_query_out(nursery):
    world = World(nursery)
    await world.talk(request(b"POST /p?key=s3cret HTTP/1.1", b"Content-Length: 3", body=b"abc"))
    record = world.records[0]
    assert (record.method, record.path, record.status, record.reason) == ("POST", "/p", 200, "ok")
    assert (record.bytes_up, record.bytes_down) == (3, 2)
    assert "s3cret" not in repr(record)


async def test_pipelined_requests_are_served_in_order_over_one_upstream_connection(nursery):
    world = World(nursery)
    answer = await world.talk(request(b"GET /1 HTTP/1.1") + request(b"GET /2 HTTP/1.1") * 2)
    assert [seen.url for seen in world.upstream.requests] == [b"/1", b"/2", b"/2"]
    assert answer == OK * 3
    assert len(world.connects) == 1


async def test_x3_a_client_that_ended_sending_still_gets_a_large_answer(nursery):
    body = bytes(1_000_000)
    world = World(nursery, Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + body))
    answer = await world.talk(request())
    assert answer.endswith(body)
    assert world.records[0].bytes_down == 1_000_000


async def test_without_a_pool_the_upstream_is_told_that_the_connection_ends(nursery):
    world = World(nursery, pool=False)
    assert await world.talk(request() * 2) == OK * 2
    assert len(world.connects) == 2
    assert world.upstream.requests[0].all(b"connection") == [b"close"]


# --- response framing ------------------------------------------------------------------------------------


async def test_a_chunked_response_is_chunked_anew_without_extensions_and_trailers(nursery):
    upstream = Upstream(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2;ext=1\r\nab\r\n1\r\nc\r\n0\r\nX-Sum: 9\r\n\r\n"
    )
    answer = await World(nursery, upstream).talk(request())
    parser = ResponseParser()
    parser.feed(answer)
    assert parser.complete[0][2] == b"abc"
    assert b"ext" not in answer
    assert b"X-Sum" not in answer


async def test_a_body_until_close_is_chunked_for_the_client_and_its_connection_goes_on(nursery):
    upstream = Upstream(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", close=True)
    world = World(nursery, upstream)
    answer = await world.talk(request() * 2)
    parser = ResponseParser()
    parser.feed(answer)
    assert [body for _, _, body in parser.complete] == [b"until the end"] * 2
    assert len(world.connects) == 2


async def test_an_http_1_0_client_gets_no_chunks_and_its_end_by_close(nursery):
    upstream = Upstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
    world = World(nursery, upstream)
    answer = await world.talk(request(b"GET / HTTP/1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"ab"
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert world.upstream.requests[0].version == "1.1"
    assert world.ended.reason == "closed"


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    ],
)
async def test_responses_without_a_body_end_with_their_head(nursery, method, head):
    world = World(nursery, Upstream(head, OK))
    answer = await world.talk(request(method + b" / HTTP/1.1") + request())
    assert answer == head + OK
    assert len(world.connects) == 1


async def test_a_204_says_no_length(nursery):
    """RFC 9110 section 8.6 forbids it."""
    world = World(nursery, Upstream(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"))
    assert await world.talk(request()) == b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_bytes_behind_a_response_are_never_the_next_response(nursery):
    """A response nobody asked for would otherwise answer the next request on that connection."""
    world = World(nursery, Upstream(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK))
    assert await world.talk(request() * 2) == OK * 2
    assert len(world.connects) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshortXX0\r\n\r\n",
    ],
)
async def test_a_cut_response_resets_the_client(nursery, answer):
    """A client must be able to tell a whole response from a part of one, even one delimited by close."""
    for version in (b"1.0", b"1.1"):
        world = World(nursery, Upstream(answer, close=True), client_pair=tcp_pair)
        async with world.client() as client:
            await client.send_all(request(b"GET / HTTP/" + version))
            with pytest.raises(trio.BrokenResourceError):
                await read_all(client)
        await world.over.wait()
        assert world.records[0].reason == "upstream-protocol"


class Truncated(trio.abc.HalfCloseableStream):
    """A TLS stream whose peer ended without close_notify."""

    def __init__(self, inner):
        self.inner = inner
        self.truncated = False

    async def receive_some(self, max_bytes=None):
        chunk = await self.inner.receive_some(max_bytes)
        self.truncated = not chunk
        return chunk

    async def send_all(self, data):
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self):
        await self.inner.wait_send_all_might_not_block()

    async def send_eof(self):
        await self.inner.send_eof()

    async def aclose(self):
        await self.inner.aclose()


async def test_a_body_until_close_without_close_notify_is_cut(nursery):
    """An attacker on the path can end a TCP connection, but can't make a close_notify."""

    def pair():
        near, far = trio.testing.memory_stream_pair()
        return Truncated(near), far

    world = World(nursery, Upstream(b"HTTP/1.1 200 OK\r\n\r\npart", close=True), pair=pair, client_pair=tcp_pair)
    async with world.client() as client:
        await client.send_all(request())
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)
    await world.over.wait()
    assert world.records[0].reason == "upstream-cut"


# --- failures and replies of our own ---------------------------------------------------------------------


async def test_c10_replies_of_ours_hold_nothing_of_the_request(nursery):
    """Squid once put the Authorization header into an error page (CVE-2025-62168)."""
    canary = b"c4n4ry"
    soup = [b"Authorization: Bearer " + canary, b"X-" + canary + b": 1"]
    bad = [
        request(b"GET /" + canary + b" HTTP/1.1", *soup, b"bad line " + canary),
        request(b"TRACE /" + canary + b" HTTP/1.1", *soup),
        request(b"GET /" + canary + b" HTTP/1.1", *soup, host=canary + b".example"),
        request(b"GET /" + canary + b" HTTP/1.1", *soup),
        request(b"POST /" + canary + b" HTTP/1.1", *soup, b"Transfer-Encoding: chunked", body=canary + b"\r\n"),
    ]
    for raw in bad:
        world = World(nursery, connect_error=UpstreamConnectError("no address accepted a connection"))
        answer = await world.talk(raw)
        assert answer[9:10] in b"45"
        assert canary not in answer
        assert b"no-store" in answer
        assert canary.decode() not in repr(world.records[0].reason)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UpstreamConnectError("refused", reason="connect-refused"), 502, b"connect-refused"),
        (UpstreamError("too slow", reason="connect-timeout", status=504), 504, b"connect-timeout"),
        (Denied("address-denied", "the address is not allowed"), 403, b"address-denied"),
    ],
)
async def test_a_failed_connect_is_told_and_the_client_may_go_on(nursery, error, status, reason):
    world = World(nursery, connect_error=error)
    client = world.client()
    for _ in range(2):
        await client.send_all(request())
        answer = await read_until(client, b"}\n")
        assert int(answer[9:12]) == status
        assert b'"error": "' + reason + b'"' in answer
        assert (b"x-sbxproxy-deny: " + reason in answer) is (status == 403)
        assert b"close" not in answer
    await client.aclose()
    await world.over.wait()


async def test_l9_a_raising_handler_fails_its_own_request_only(nursery, caplog):
    """The text of the exception may hold a secret: neither the client nor the log gets it."""

    def respond(request):
        if request.path == "/bad":
            raise ValueError("s3cret")
        return request

    world = World(nursery, on_request=respond)
    answer = await world.talk(request(b"GET /bad HTTP/1.1") + request(b"GET /good HTTP/1.1"))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"x-sbxproxy-deny: stage-failed" in answer
    assert answer.endswith(OK)
    assert [seen.url for seen in world.upstream.requests] == [b"/good"]
    assert b"s3cret" not in answer
    assert "s3cret" not in caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("hook", ["on_response", "connect", "body_limit", "done"])
async def test_l9_every_hook_may_raise(nursery, hook):
    world = World(nursery)
    served = getattr(world, hook)

    def fail_once(*args):
        setattr(world, hook, served)
        raise RuntimeError("s3cret")

    async def fail_once_async(*args):
        fail_once()

    setattr(world, hook, fail_once if hook in {"body_limit", "done"} else fail_once_async)
    answer = await world.talk(request() * 2)
    parser = ResponseParser()
    parser.feed(answer)
    assert [status for status, _, _ in parser.complete] == [200 if hook == "done" else 502, 200]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "Forward",
        Response(status=200),
        Response(status=99, body=b""),
        Forward(request=Request(method="GET", target="nowhere", host="x"), origin=ORIGIN),
        Forward(request=Request(method="GET", target="/a b", host="x"), origin=ORIGIN),
        Forward(request=Request(method="PUT", target="/", host="x"), origin=ORIGIN),
    ],
)
async def test_an_answer_that_is_none_is_a_failure(nursery, answer):
    """Fail closed: whatever a handler returns by mistake, nothing goes out."""
    world = World(nursery, on_request=lambda _: answer)
    assert (await world.talk(request())).startswith(b"HTTP/1.1 502 ")
    assert world.connects == []


async def test_a_denial_may_be_returned_or_raised(nursery):
    def respond(request):
        if request.path == "/raise":
            raise Denied("domain-not-allowed", "not this one")
        return Denied("domain-not-allowed", "not this one", status=451)

    world = World(nursery, on_request=respond)
    answer = await world.talk(request(b"GET /raise HTTP/1.1") + request())
    parser = ResponseParser()
    parser.feed(answer)
    assert [status for status, _, _ in parser.complete] == [403, 451]
    assert world.upstream.raw == b""
    assert [record.reason for record in world.records] == ["domain-not-allowed"] * 2


async def test_a_denial_with_an_odd_reason_still_denies(nursery):
    """The reason may be a plugin's; it can't break the header that it stands in."""
    world = World(nursery, on_request=lambda _: Denied("evil\r\nx: y", "no"))
    answer = await world.talk(request())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"\r\nx: y" not in answer


async def test_a_denied_upload_is_answered_at_once_and_the_client_reads_it(nursery):
    """Closing with unread bytes makes the kernel send a reset, which overtakes the reply."""
    world = World(nursery, on_request=lambda _: Denied("domain-not-allowed", "no"), client_pair=tcp_pair)
    async with world.client() as client:
        await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 500000") + bytes(500_000))
        answer = await read_all(client)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"Connection: close" in answer
    await world.over.wait()


@pytest.mark.parametrize("framing", [[b"Content-Length: 5"], [b"Transfer-Encoding: chunked"]])
async def test_a_small_body_of_an_answered_request_is_not_the_next_request(nursery, framing):
    world = World(nursery, on_request=lambda _: Response(status=200, body=b"rule"))
    body = b"hello" if b"Length" in framing[0] else b"5\r\nhello\r\n0\r\n\r\n"
    answer = await world.talk(request(b"POST / HTTP/1.1", *framing, body=body) + request())
    parser = ResponseParser()
    parser.feed(answer)
    assert [(status, body) for status, _, body in parser.complete] == [(200, b"rule")] * 2


async def test_a_small_body_that_is_still_to_come_is_discarded_after_the_answer(nursery):
    world = World(nursery, on_request=lambda _: Response(status=200, body=b"rule"))
    client = world.client()
    for _ in range(2):
        await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 5"))
        answer = await read_until(client, b"rule")
        assert b"close" not in answer
        await client.send_all(b"hello")
    await client.aclose()
    await world.over.wait()


async def test_a_response_of_a_rule_to_head_has_a_length_and_no_body(nursery):
    made = Response(status=200, headers=Headers.of([("content-type", "text/plain")]), body=b"rule")
    world = World(nursery, on_request=lambda _: made)
    answer = await world.talk(request(b"HEAD / HTTP/1.1") + request())
    assert answer.count(b"Content-Length: 4\r\n") == 2
    assert answer.count(b"rule") == 1


# --- transforms ------------------------------------------------------------------------------------------


async def test_c1_a_set_header_stands_exactly_once(nursery):
    world = World(nursery, on_request=lambda request: request.with_header("authorization", "Bearer ours"))
    await world.talk(
        request(
            b"GET / HTTP/1.1",
            b"Authorization: a, b",
            b"AUTHORIZATION: c",
            b"authorization: d",
        )
    )
    assert world.upstream.requests[0].all(b"authorization") == [b"Bearer ours"]


async def test_h14_an_underscore_does_not_shadow_a_set_header(nursery):
    """Behind WSGI or CGI, X_Api_Key and X-Api-Key are one variable."""
    world = World(nursery, on_request=lambda request: request.with_header("x-api-key", "ours"))
    await world.talk(request(b"GET / HTTP/1.1", b"X_Api_Key: theirs", b"x-api_key: theirs"))
    assert b"theirs" not in world.upstream.raw


async def test_c2_connection_can_not_remove_a_set_header(nursery):
    world = World(nursery, on_request=lambda request: request.with_header("authorization", "ours"))
    await world.talk(request(b"GET / HTTP/1.1", b"Connection: close, Authorization, X-Mine", b"X-Mine: 1", b"X_Mine: 2"))
    seen = world.upstream.requests[0]
    assert seen.all(b"authorization") == [b"ours"]
    assert seen.all(b"connection") == []
    assert not any(name.lower() in {b"x-mine", b"x_mine"} for name, _ in seen.headers)


@pytest.mark.parametrize("bad", [("x-a", "v\r\nx: y"), ("x-a", "v\0"), ("x a", "v"), ("", "v"), ("x-a", "v\n"), ("x-a", " v")])
async def test_c3_a_malformed_header_of_a_transform_never_leaves(nursery, bad):
    def respond(request):
        return replace(request, headers=Headers((*request.headers, (bad[0].encode(), bad[1].encode()))))

    world = World(nursery, on_request=respond)
    answer = await world.talk(request())
    assert b"stage-failed" in answer
    assert world.connects == []


async def test_a_transform_has_no_say_in_framing_or_host(nursery):
    def respond(request):
        mine = [("Host", "evil"), ("Content_Length", "9"), ("Transfer-Encoding", "chunked"), ("Connection", "x")]
        return replace(request, host="evil", headers=Headers.of(mine))

    world = World(nursery, on_request=respond)
    await world.talk(request(b"POST / HTTP/1.1", b"Content-Length: 1", body=b"a"))
    assert world.upstream.raw == b"POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 1\r\n\r\na"


async def test_host_is_made_from_the_origin_that_is_dialled(nursery):
    """forwardURL sends a request elsewhere; its Host and its verified certificate are one name."""
    elsewhere = Origin("collector.example", 8443)
    world = World(nursery, on_request=lambda request: Forward(request=request, origin=elsewhere))
    await world.talk(request())
    assert world.upstream.requests[0].all(b"host") == [b"collector.example:8443"]
    assert world.connects == [elsewhere]


async def test_a_transform_sees_the_whole_body_and_may_replace_it(nursery):
    world = World(nursery, body_limit=100, on_request=lambda request: replace(request, body=request.body.upper()))
    await world.talk(
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        + request(b"POST / HTTP/1.1", b"Content-Length: 0")
        + request()
    )
    bodies = [(seen.body, seen.all(b"content-length")) for seen in world.upstream.requests]
    assert bodies == [(b"ABC", [b"3"]), (b"", [b"0"]), (b"", [])]
    assert [seen.body for seen in world.requests] == [b"abc", b"", b""]


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([b"Content-Length: 101"], bytes(101)),
        ([b"Transfer-Encoding: chunked"], b"65\r\n" + bytes(101) + b"\r\n0\r\n\r\n"),
        ([b"Content-Length: 1000000000000"], b""),
    ],
)
async def test_a_body_too_large_for_a_transform_is_413(nursery, fields, body):
    world = World(nursery, body_limit=100)
    answer = await world.talk(request(b"POST / HTTP/1.1", *fields, body=body))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer
    assert world.upstream.raw == b""


async def test_a_body_replaced_unseen_is_sent_instead_and_the_client_told_to_stop(nursery):
    world = World(nursery, on_request=lambda request: replace(request, body=b"ours"))
    answer = await world.talk(request(b"POST / HTTP/1.1", b"Content-Length: 100000", body=b"theirs"))
    assert world.upstream.requests[0].body == b"ours"
    assert b"Connection: close" in answer


async def test_a_response_may_be_changed_or_replaced(nursery):
    def rewrite(request, response):
        if request.path == "/replace":
            return Response(status=418, body=b"instead")
        return response.with_header("x-new", "1").without_header("server")

    upstream = Upstream(b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 2\r\n\r\nok")
    world = World(nursery, upstream, on_response=rewrite)
    answer = await world.talk(request() + request(b"GET /replace HTTP/1.1"))
    parser = ResponseParser()
    parser.feed(answer)
    (first, headers, body), (second, _, replaced) = parser.complete
    assert (first, body, second, replaced) == (200, b"ok", 418, b"instead")
    assert headers[b"x-new"] == b"1"
    assert b"server" not in headers


@pytest.mark.parametrize(
    ("was", "becomes", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 200, b"Content-Length: 0\r\n\r\n"),
        (OK, 204, b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_a_status_changed_by_a_transform_keeps_the_framing_whole(nursery, was, becomes, expected):
    world = World(nursery, Upstream(was), on_response=lambda _, response: replace(response, status=becomes))
    answer = await world.talk(request())
    assert answer.endswith(expected)


@pytest.mark.parametrize("made", [None, Response(status=600), Response(status=100)])
async def test_a_response_that_is_none_is_a_failure(nursery, made):
    world = World(nursery, on_response=lambda *_: made)
    assert b"stage-failed" in await world.talk(request())


async def test_c17_each_request_asks_anew(nursery):
    """A rotated secret is used from the next request on, on the same connection."""
    secrets = iter(["old", "new"])
    world = World(nursery, on_request=lambda request: request.with_header("authorization", next(secrets)))
    await world.talk(request() * 2)
    assert [seen.all(b"authorization") for seen in world.upstream.requests] == [[b"old"], [b"new"]]


# --- time ------------------------------------------------------------------------------------------------


async def test_a_slow_head_is_given_up_after_a_total(nursery, autojump_clock):
    """A byte now and then does not extend it (slow loris)."""
    world = World(nursery, limits=limits(first_bytes=10.0))
    client = world.client()
    begun = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        for byte in request(b"GET / HTTP/1.1", b"X: " + b"a" * 100):
            await client.send_all(bytes([byte]))
            await trio.sleep(1)
    answer = await read_all(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert world.records[0].reason == "first-bytes-timeout"
    assert trio.current_time() - begun < 30


async def test_a_silent_client_is_closed(nursery, autojump_clock):
    world = World(nursery, limits=limits(first_bytes=10.0, keep_alive=60.0))
    begun = trio.current_time()
    client = world.client()
    assert await client.receive_some() == b""
    assert trio.current_time() - begun == pytest.approx(10)
    assert world.ended.reason == "first-bytes-timeout"


async def test_an_idle_connection_is_closed_after_keep_alive(nursery, autojump_clock):
    world = World(nursery, limits=limits(first_bytes=10.0, keep_alive=60.0))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    begun = trio.current_time()
    assert await client.receive_some() == b""
    assert trio.current_time() - begun == pytest.approx(60)
    assert world.ended.reason == "idle"


async def test_a_second_head_has_its_own_total(nursery, autojump_clock):
    world = World(nursery, limits=limits(first_bytes=10.0, keep_alive=60.0))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    await trio.sleep(20)
    await client.send_all(b"GET")
    begun = trio.current_time()
    answer = await read_all(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() - begun == pytest.approx(10)


async def test_an_upstream_that_never_answers_is_504(nursery, autojump_clock):
    world = World(nursery, read_all, limits=limits(request_idle=300.0))
    begun = trio.current_time()
    client = world.client()
    await client.send_all(request())
    answer = await read_until(client, b"}\n")
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"Connection: close" in answer
    assert 300 <= trio.current_time() - begun <= 302
    await world.over.wait()
    assert world.records[0].reason == "request-timeout"


async def test_a_response_that_stalls_is_reset(nursery, autojump_clock):
    async def stall(stream):
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await trio.sleep_forever()

    world = World(nursery, stall, limits=limits(request_idle=30.0))
    client = world.client()
    await client.send_all(request())
    begun = trio.current_time()
    answer = await read_all(client)
    assert answer.endswith(b"part")
    assert 30 <= trio.current_time() - begun <= 32
    await world.over.wait()
    assert world.ended.reason == "request-timeout"
    nursery.cancel_scope.cancel()


async def test_progress_in_one_direction_keeps_an_exchange_alive(nursery, autojump_clock):
    async def drip(stream):
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            await trio.sleep(20)
            await stream.send_all(b".")

    world = World(nursery, drip, limits=limits(request_idle=30.0))
    begun = trio.current_time()
    client = world.client()
    await client.send_all(request())
    answer = await read_until(client, b"." * 20)
    assert answer.endswith(b"." * 20)
    assert trio.current_time() - begun == pytest.approx(400)
    await client.aclose()


async def test_a_body_collected_in_memory_can_not_be_stretched(nursery, autojump_clock):
    """Progress does not push the deadline while a body is held for a transform."""
    world = World(nursery, body_limit=1000, limits=limits(request_idle=30.0))
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 1000"))
    begun = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await client.send_all(b".")
            await trio.sleep(1)
    assert trio.current_time() - begun < 40


async def test_a_client_that_breaks_off_takes_the_upstream_with_it(nursery):
    seen = trio.Event()

    async def upstream(stream):
        with pytest.raises(trio.BrokenResourceError):
            await read_all(stream)
        seen.set()

    world = World(nursery, upstream, pair=tcp_pair)
    client = world.client()
    await client.send_all(request(b"POST / HTTP/1.1", b"Content-Length: 1000", body=b"part"))
    await trio.testing.wait_all_tasks_blocked()
    await abort(client)
    with trio.fail_after(30):
        await seen.wait()
        await world.over.wait()
    assert world.ended.reason == "client-gone"
    assert world.records[0].reason == "client-gone"


async def test_cancelling_closes_everything_and_tells_the_story(nursery):
    """A flow that is cut by a policy change leaves nothing open."""
    closed = trio.Event()

    async def upstream(stream):
        try:
            await read_all(stream)
        finally:
            closed.set()

    world = World(nursery, upstream)
    async with trio.open_nursery() as serving:
        world.nursery = serving
        client = world.client()
        world.nursery = nursery
        await client.send_all(request())
        await trio.testing.wait_all_tasks_blocked()
        serving.cancel_scope.cancel()
    with trio.fail_after(30):
        await closed.wait()
    assert world.records[0].reason == "cut"
    assert world.records[0].status == 0
