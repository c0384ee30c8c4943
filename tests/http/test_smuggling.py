"""One request in is one request out: what a client may write to make two readers disagree, and what becomes of it.

llhttp reads what the upstream got; it shares no code with the reader under test.
"""

from __future__ import annotations

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.http_peers import OK, RequestParser, ResponseParser, Upstream, World, request


async def refused(nursery, raw: bytes, status: int, **kwargs) -> bytes:
    """Send *raw*: one error with *status* comes back, the connection ends, and nothing went upstream."""
    world = World(nursery, **kwargs)
    answer = await world.talk(raw)
    parser = ResponseParser()
    parser.feed(answer)
    assert [got for got, _, _ in parser.complete] == [status]
    assert b"Connection: close\r\n" in answer
    assert world.upstream.raw == b""
    assert world.ended.reason != "eof"
    return answer


POST = b"POST / HTTP/1.1"
CHUNKED = b"Transfer-Encoding: chunked"
NEXT = request(b"GET /smuggled HTTP/1.1")


@pytest.mark.parametrize(
    "fields",
    [[b"Content-Length: 5", CHUNKED], [CHUNKED, b"Content-Length: 5"], [b"content-length: 0", CHUNKED]],
)
async def test_h1_cl_and_te_is_refused(nursery, fields):
    await refused(nursery, request(POST, *fields, body=b"0\r\n\r\n" + NEXT), 400)


async def test_h2_te_on_http_1_0_is_refused(nursery):
    await refused(nursery, request(b"POST / HTTP/1.0", CHUNKED, body=b"0\r\n\r\n"), 400)


@pytest.mark.parametrize("fields", [[b"Content-Length: 3", b"Content-Length: 3"], [b"Content-Length: 3, 3"]])
async def test_h3_equal_lengths_twice_are_refused(nursery, fields):
    await refused(nursery, request(POST, *fields, body=b"abc"), 400)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: api.example.com\n\n",
        b"GET / HTTP/1.1\r\nHost: api.example.com\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\n",
        b"GET / HTTP/1.1\r\nHost: api.example.com\r\nX: a\rb\r\n\r\n",
    ],
)
async def test_h4_bare_line_ends_are_refused(nursery, raw):
    await refused(nursery, raw + NEXT, 400)


async def test_h5_folded_header_is_refused(nursery):
    await refused(nursery, request(b"GET / HTTP/1.1", b"X: a\r\n b"), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"0000000000000000003\r\nabc\r\n0\r\n\r\n",
        b'3;ext="' + b"x" * 200 + b'"\r\nabc\r\n0\r\n\r\n',
        b"3\r\nabc\r\n0\r\nAuthorization: Bearer theirs\r\nHost: evil\r\n\r\n",
        b"1\r\na\r\n2\r\nbc\r\n000\r\n\r\n",
    ],
)
async def test_h6_chunks_are_made_anew_without_extensions_and_trailers(nursery, body):
    world = World(nursery)
    assert await world.talk(request(POST, CHUNKED, body=body) + request(), cut=7) == OK * 2
    first, second = world.upstream.requests
    assert first.body == b"abc"
    assert second.url == b"/"
    assert b"theirs" not in world.upstream.raw
    assert b"ext" not in world.upstream.raw


@pytest.mark.parametrize("at_once", [True, False])
async def test_h6_more_framing_than_content_is_refused(nursery, at_once):
    """An extension on each chunk costs its reader much and its sender little (CVE-2023-39326)."""
    chunk = b"1;" + b"x" * 10_000 + b"\r\na\r\n"
    world = World(nursery)
    answer = await world.talk(request(POST, CHUNKED, body=chunk * 50 + b"0\r\n\r\n"), cut=0 if at_once else 1000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert world.upstream.requests == []


async def test_h6_an_endless_chunk_line_is_refused(nursery):
    world = World(nursery)
    answer = await world.talk(request(POST, CHUNKED, body=b"1;" + b"x" * 100_000), cut=5000)
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_h6_small_chunks_are_no_overhead(nursery):
    world = World(nursery)
    await world.talk(request(POST, CHUNKED, body=b"1\r\na\r\n" * 30_000 + b"0\r\n\r\n"))
    assert world.upstream.requests[0].body == b"a" * 30_000


@pytest.mark.parametrize(
    "host",
    [
        b"api.example.com, evil.example",
        b"evil@api.example.com",
        b"api.example.com/x",
        b"evil.example",
        b"api.example.com:444",
        b"api.example.com:",
        b"api.example.com.evil.example",
        b"API.example.com..",
        b"127.0.0.1",
        b"[::1]",
        b"",
        b"\xe2\x84\xaapi.example.com",
    ],
)
async def test_h7_host_must_be_the_name_of_the_connection(nursery, host):
    answer = await refused(nursery, request(host=host), 421)
    assert b"x-sbxproxy-deny: host-mismatch\r\n" in answer


@pytest.mark.parametrize("host", [b"api.example.com", b"API.Example.COM", b"api.example.com.", b"api.example.com:443"])
async def test_h7_spellings_of_the_name_become_one(nursery, host):
    world = World(nursery)
    await world.talk(request(host=host))
    assert world.upstream.requests[0].all(b"host") == [b"api.example.com"]


async def test_h7_http_1_0_without_host_is_refused(nursery):
    await refused(nursery, b"GET / HTTP/1.0\r\n\r\n", 400)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET https://evil.example/ HTTP/1.1", 421),
        (b"GET http://api.example.com/ HTTP/1.1", 421),
        (b"GET https://api.example.com:444/ HTTP/1.1", 421),
        (b"GET https://evil@api.example.com/ HTTP/1.1", 400),
        (b"GET ftp://api.example.com/ HTTP/1.1", 400),
        (b"GET api.example.com:443 HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET evil HTTP/1.1", 400),
    ],
)
async def test_h8_other_target_forms_are_refused(nursery, line, status):
    await refused(nursery, request(line), status)


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        (b"https://api.example.com/a?b", b"/a?b"),
        (b"HTTPS://API.example.com:443/a", b"/a"),
        (b"https://api.example.com", b"/"),
        (b"https://api.example.com?q", b"/?q"),
    ],
)
async def test_h8_our_own_absolute_target_becomes_origin_form(nursery, target, sent):
    world = World(nursery)
    await world.talk(request(b"GET " + target + b" HTTP/1.1"))
    assert world.upstream.requests[0].url == sent


async def test_h8_asterisk_is_for_options(nursery):
    world = World(nursery)
    await world.talk(request(b"OPTIONS * HTTP/1.1"))
    assert world.upstream.raw.startswith(b"OPTIONS * HTTP/1.1\r\n")


async def test_h9_connect_inside_is_405(nursery):
    await refused(nursery, request(b"CONNECT api.example.com:443 HTTP/1.1") + b"tunnelled", 405)


@pytest.mark.parametrize(
    "raw",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(b"GET / HTTP/2.0"),
        request(b"GET / HTTP/1.2"),
        request(b"GET / HTTP/0.9"),
        b"GET /\r\n\r\n",
    ],
)
async def test_h10_other_versions_are_505(nursery, raw):
    await refused(nursery, raw, 505)


@pytest.mark.parametrize("upgrade", [b"h2c", b"TLS/1.0", b"foo, h2c"])
async def test_h11_h2c_is_never_asked_for(nursery, upgrade):
    """h2c would carry requests that nobody here reads."""
    world = World(nursery)
    fields = [b"Upgrade: " + upgrade, b"HTTP2-Settings: AAMAAABk"]
    for connection in (b"Connection: Upgrade, HTTP2-Settings", b"Connection: Upgrade", b"X: y"):
        assert await world.talk(request(b"GET / HTTP/1.1", connection, *fields) + request()) == OK * 2
    assert b"pgrade" not in world.upstream.raw
    assert b"ettings" not in world.upstream.raw


@pytest.mark.parametrize(("method", "status"), [(b"get", 501), (b"Get", 501), (b"G\0T", 400), (b"", 400)])
async def test_h13_methods_are_upper_case_tokens(nursery, method, status):
    await refused(nursery, request(method + b" / HTTP/1.1"), status)


async def test_h13_unknown_methods_pass(nursery):
    world = World(nursery)
    await world.talk(request(b"PURGE / HTTP/1.1"))
    assert world.upstream.raw.startswith(b"PURGE / ")


async def test_h15_heads_are_bounded_also_in_one_piece(nursery):
    big = [b"X: " + b"a" * 1000] * 70
    await refused(nursery, request(b"GET / HTTP/1.1", *big), 431)
    many = [b"X: 1"] * 101
    await refused(nursery, request(b"GET / HTTP/1.1", *many), 431)
    await refused(nursery, request(b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 414)


async def test_h16_obs_text_passes_untouched(nursery):
    world = World(nursery)
    await world.talk(request(b"GET / HTTP/1.1", b"X-Name: \xff\xfe\x80 \xe9"))
    assert b"X-Name: \xff\xfe\x80 \xe9\r\n" in world.upstream.raw


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([b"Host: api.example.com"], 400),
        ([b"X: a\0b"], 400),
        ([b"Content-Length: +3"], 400),
        ([b"Content-Length: 0x3"], 400),
        ([b"Content-Length: 3_0"], 400),
        ([b"Content-Length:"], 400),
        ([b"Content-Length: -1"], 400),
        ([b"Content_Length: 3"], 400),
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Transfer-Encoding: xchunked"], 501),
        ([b"Transfer-Encoding: chunked, chunked"], 501),
        ([b"Transfer-Encoding: identity"], 501),
        ([CHUNKED, CHUNKED], 400),
        ([b"Transfer_Encoding: chunked"], 400),
        ([b": empty"], 400),
        ([b"Space : before"], 400),
        ([b"no colon"], 400),
    ],
)
async def test_h17_malformed_fields_are_refused(nursery, fields, status):
    await refused(nursery, request(POST, *fields, body=b"abc"), status)


@pytest.mark.parametrize("body", [b"3\r\nabcXX0\r\n\r\n", b"3\r\nabc\r\nzz\r\n", b"-1\r\n", b"\r\n", b"3 3\r\nabc\r\n0\r\n\r\n"])
async def test_h17_malformed_chunks_never_become_a_whole_request(nursery, body):
    """A chunk that ends in anything but CRLF was CVE-2025-43859."""
    world = World(nursery)
    answer = await world.talk(request(POST, CHUNKED, body=body + NEXT))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert world.upstream.requests == []


@pytest.mark.parametrize("framing", [(b"Content-Length: 10", b"abc"), (CHUNKED, b"3\r\nabc\r\n")])
async def test_a_request_cut_short_never_becomes_a_whole_one(nursery, framing):
    world = World(nursery)
    await world.talk(request(POST, framing[0], body=framing[1]))
    assert world.upstream.requests == []
    assert world.records[0].status == 400


async def test_h19_every_request_is_checked(nursery):
    world = World(nursery)
    answer = await world.talk(request() + request(host=b"other.example.com") + request())
    parser = ResponseParser()
    parser.feed(answer)
    assert [status for status, _, _ in parser.complete] == [200, 421]
    assert len(world.upstream.requests) == 1


async def test_t3_fronting_never_reaches_the_upstream(nursery):
    await refused(nursery, request(host=b"hidden.example.com"), 421)


async def test_h22_alt_svc_is_removed(nursery):
    """It would send the client to HTTP/3, past this proxy."""
    answer = b'HTTP/1.1 200 OK\r\nalt-svc: h3=":443"\r\nAlt_Svc: x\r\nContent-Length: 2\r\n\r\nok'
    hints = b"HTTP/1.1 103 Early Hints\r\nAlt-Svc: h3\r\nLink: </a>\r\n\r\n"
    got = await World(nursery, Upstream(hints + answer)).talk(request())
    assert got == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK
    put = World(nursery, on_response=lambda _, response: response.with_header("alt-svc", "h3"))
    assert await put.talk(request()) == OK


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"HEAD", b"OPTIONS"])
@pytest.mark.parametrize("framing", [CHUNKED, b"Content-Length: %d" % len(NEXT)])
async def test_h23_a_declared_body_stays_a_body(nursery, method, framing):
    """With its framing taken for hop-by-hop, the body of a GET would be the next request."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(NEXT), NEXT) if framing is CHUNKED else NEXT
    for connection in (b"Connection: keep-alive", b"Connection: transfer-encoding, content-length"):
        world = World(nursery, Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
        await world.talk(request(method + b" / HTTP/1.1", framing, connection, body=body))
        assert [(seen.url, seen.body) for seen in world.upstream.requests] == [(b"/", NEXT)]


@pytest.mark.parametrize("method", [b"TRACE", b"TRACK"])
async def test_c4_trace_is_405(nursery, method):
    """It would show the client the credential that was put in."""
    answer = await refused(nursery, request(method + b" / HTTP/1.1"), 405)
    assert b"x-sbxproxy-deny: method-not-allowed\r\n" in answer


async def test_proxy_credentials_end_here(nursery):
    world = World(nursery)
    fields = [b"Proxy-Authorization: Basic eDp5", b"Proxy-Connection: keep-alive", b"TE: trailers", b"Trailer: x"]
    await world.talk(request(b"GET / HTTP/1.1", *fields, b"Keep-Alive: 5", b"Proxy_Authorization: x"))
    assert world.upstream.raw == request()


async def test_a_leading_empty_line_is_refused(nursery):
    await refused(nursery, b"\r\n" + request(), 400)


# --- responses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x31",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 O",
    ],
)
async def test_h18_a_malformed_response_is_502_and_its_connection_is_not_used_again(nursery, answer):
    world = World(nursery, Upstream(answer, close=True))
    got = await world.talk(request())
    parser = ResponseParser()
    parser.feed(got)
    assert [status for status, _, _ in parser.complete] == [502]
    assert b'"error": "upstream-protocol"' in got
    assert len(world.pool) == 0


async def test_h18_sixteen_interim_responses_are_fine(nursery):
    interim = b"HTTP/1.1 102 Processing\r\nContent-Length: 5\r\nX: 1\r\n\r\n"
    answer = await World(nursery, Upstream(interim * 16 + OK)).talk(request())
    assert answer == b"HTTP/1.1 102 Processing\r\nX: 1\r\n\r\n" * 16 + OK


async def test_hop_by_hop_fields_of_a_response_end_here(nursery):
    upstream = Upstream(
        b"HTTP/1.1 407 x\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 9\r\nProxy-Authenticate: Basic\r\n"
        b"Upgrade: h2c\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n"
    )
    answer = await World(nursery, upstream).talk(request())
    assert answer == b"HTTP/1.1 407 Proxy Authentication Required\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n"


# --- properties ------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        b"Content-Length: 5", b"Content-Length: 0", b"content-length:5", b"Content-Length: 5 ", b"Content-Length: 05",
        b"Transfer-Encoding: chunked", b"transfer-encoding:\tchunked", b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: identity", b"Transfer-Encoding:chunked,", b"TE: chunked", b"X: \r\nContent-Length: 5",
        b"Connection: close", b"Connection: content-length", b"Connection: keep-alive, transfer-encoding",
        b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Expect: 100-continue", b"Expect: x",
        b" folded", b"\tfolded", b"X : 1", b"Host: evil.example", b"host: api.example.com", b"X: \x7f", b"X:",
        b"X: \xff", b"Content-Length\x0b: 5", b"Foo", b"", b"X_Y: 1",
    ]
)  # fmt: skip
STARTS = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /p HTTP/1.1", b"HEAD / HTTP/1.1", b"GET / HTTP/1.0", b"GET  / HTTP/1.1",
     b"POST / HTTP/1.1 ", b"OPTIONS * HTTP/1.1", b"PUT https://api.example.com/x HTTP/1.1"]
)  # fmt: skip
BODIES = st.sampled_from(
    [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"5\nhello\n0\n\n", b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
     b"\r\n", b"GET /smuggled HTTP/1.1\r\nHost: api.example.com\r\n\r\n"]
)  # fmt: skip


def run_world(data: bytes, *, cut: int = 0, **kwargs) -> tuple[World, bytes]:
    async def main():
        async with trio.open_nursery() as nursery:
            world = World(nursery, **kwargs)
            answer = await world.talk(data, cut=cut)
            if world.pool:
                await world.pool.aclose_all()
        return world, answer

    return trio.run(main)


@settings(max_examples=300, deadline=None)
@given(STARTS, st.lists(LINES, max_size=4), BODIES, BODIES)
@example(b"POST /p HTTP/1.1", [b"Content-Length: 5", b"Transfer-Encoding: chunked"], b"0\r\n\r\n", b"")
def test_h23_no_header_soup_makes_the_upstream_see_a_request_that_was_not_judged(start, lines, body, more):
    """Whatever llhttp finds on the upstream's side, the handler has decided on just that, in that order."""
    data = request(start, *lines, body=body) + more
    world, _ = run_world(data)
    assert [(seen.method.decode(), seen.url.decode()) for seen in world.upstream.requests] == [
        (judged.method, judged.target) for judged in world.requests
    ][: len(world.upstream.requests)]
    assert len(world.upstream.requests) >= len(world.requests) - 1  # the last one may be incomplete
    for seen in world.upstream.requests:
        assert seen.all(b"host") == [b"api.example.com"]
        assert len(seen.all(b"content-length")) + len(seen.all(b"transfer-encoding")) <= 1


CONVERSATION = (
    request(b"GET /1 HTTP/1.1", b"X: 1")
    + request(b"POST /2 HTTP/1.1", b"Content-Length: 11", body=b"hello world")
    + request(b"POST /3 HTTP/1.1", CHUNKED, body=b"5\r\nhello\r\n6;x\r\n world\r\n0\r\nX: y\r\n\r\n")
    + request(b"HEAD /4 HTTP/1.1")
    + request(b"GET /5 HTTP/1.1")
)
ANSWERS = [
    OK,
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nX: \xff\r\nContent-Length: 0\r\n\r\n",
]


class Dribbling(Upstream):
    """Answers in pieces of *cut* bytes."""

    cut = 1

    async def __call__(self, stream):
        cut = self.cut

        class Pieces(trio.abc.HalfCloseableStream):
            receive_some = stream.receive_some
            wait_send_all_might_not_block = stream.wait_send_all_might_not_block
            send_eof = stream.send_eof
            aclose = stream.aclose

            async def send_all(self, data):
                for at in range(0, len(data), cut):
                    await stream.send_all(data[at : at + cut])
                    await trio.lowlevel.checkpoint()

        await super().__call__(Pieces())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 60))
@example(1, 1)
def test_how_bytes_are_cut_changes_nothing(client_cut, upstream_cut):
    """Heads, chunks and bodies split anywhere, on both sides: the same requests, the same responses."""
    whole_world, whole = run_world(CONVERSATION, upstream=Upstream(*ANSWERS))
    upstream = Dribbling(*ANSWERS)
    upstream.cut = upstream_cut
    world, answer = run_world(CONVERSATION, cut=client_cut, upstream=upstream)
    assert decode_responses(answer) == decode_responses(whole)
    for one, other in zip(world.upstream.requests, whole_world.upstream.requests, strict=True):
        assert (one.method, one.url, one.headers, one.body) == (other.method, other.url, other.headers, other.body)
    assert [record.reason for record in world.records] == ["ok"] * 5


def decode_responses(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Read the responses to CONVERSATION by hand; the fourth answers HEAD."""
    out = []
    number = 0
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 1"):
            out.append((head, b""))
            continue
        number += 1
        body = b""
        if number == 4:
            pass
        elif b"chunked" in head:
            while True:
                size, _, raw = raw.partition(b"\r\n")
                piece, raw = raw[: int(size, 16)], raw[int(size, 16) + 2 :]
                body += piece
                if not piece:
                    break
        else:
            length = int(head.rpartition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            body, raw = raw[:length], raw[length:]
        out.append((head, body))
    return out


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_prefix_of_a_conversation_ends_in_order(data):
    """A client that stops anywhere gets whole responses only, and no request is made whole by its end."""
    end = data.draw(st.integers(0, len(CONVERSATION)))
    world, answer = run_world(CONVERSATION[:end], upstream=Upstream(*ANSWERS))
    whole = RequestParser()
    whole.feed(CONVERSATION[:end])
    assert [seen.url for seen in world.upstream.requests] == [seen.url for seen in whole.complete]
    assert answer.count(b"HTTP/1.1 200") + answer.count(b"HTTP/1.1 404") == len(whole.complete)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", OK[:-4], b"HTTP/1.1 100 C\r\n\r\n"]))
def test_h18_junk_from_an_upstream_is_never_passed_off_as_a_whole_response(junk, start):
    """The client gets a 502, or what llhttp takes for a response too."""
    world, answer = run_world(request(), upstream=Upstream(start + junk, close=True))
    assert world.records[0].reason in {"ok", "upstream-protocol", "upstream-cut"}
    if world.records[0].reason == "ok":
        parser = ResponseParser()
        parser.feed(answer)
        assert len(parser.complete) >= 1


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_l9_junk_from_a_client_never_raises(junk):
    world, _ = run_world(junk)
    assert world.ended is not None


def test_the_soup_is_not_all_refused():
    """The property above would hold of a proxy that refuses everything."""
    world, _ = run_world(request(b"POST /p HTTP/1.1", b"Content-Length: 5", body=b"hello") + request())
    assert len(world.upstream.requests) == 2
