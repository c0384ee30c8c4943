"""The reader of plain heads against three others: what it takes, they take with the same result."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sbxproxy.wire.http1 import (
    RequestHead,
    ResponseHead,
    cut_request_head,
    cut_response_head,
    parse_request_head,
    parse_response_head,
)
from sbxproxy.wire.plain_head import Memory, plain_request_head, plain_response_head
from support.wire_heads import LIMIT, METHODS, check_request, check_response, request_heads, response_heads

LIMITS = {"limit": LIMIT, "max_fields": 100, "max_target": 8192}

COMMON = (
    b"POST /v1/things?id=1&x=%20 HTTP/1.1\r\nHost: api.example.com:443\r\nUser-Agent: python-requests/2.31.0\r\n"
    b"Accept-Encoding: gzip, deflate\r\nAccept:*/*\r\nX-Empty:\r\nX-Obs: \xfc\xff\r\nConnection: keep-alive\r\nContent-Length: 30\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 18:00:00 GMT\r\nServer: nginx\r\nContent-Type: application/json\r\n"
    b"Keep-Alive: timeout=5\r\nConnection: keep-alive\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 12\r\n\r\n"
)


def agree_on_request(data: bytes) -> RequestHead | None:
    """Hold the fast reader to the others; return what it read."""
    read = plain_request_head(data, **LIMITS)
    assert plain_request_head(bytearray(data), **LIMITS) == read
    for before in (data, COMMON, b"PUT /other HTTP/1.1" + data[data.find(b"\r\n") :]):
        memory = Memory(100)
        plain_request_head(before, memory=memory, **LIMITS)
        assert plain_request_head(data, memory=memory, **LIMITS) == read, "what came before changes nothing"
    if read is None:
        return None
    head, end = read
    assert cut_request_head(data, limit=LIMIT) == end
    assert parse_request_head(data[:end], max_fields=100, max_target=8192) == head
    assert head.names == tuple(name.lower() for name, _ in head.fields)
    # Framing, keeping the connection, and what is asked of this hop, as h11 has it.
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data[:end])
    request = connection.next_event()
    assert (request.method.decode(), request.target) == (head.method, head.target)
    length = head.content_length or 0
    if length < 1_000_000:
        connection.receive_data(bytes(length) + b"NEXT")
        got = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            got += bytes(event.data)
        assert len(got) == length
        assert connection.trailing_data[0] == b"NEXT"
        assert connection.their_state is h11.DONE, "the connection goes on"
    assert not connection.they_are_waiting_for_100_continue
    return head


def agree_on_response(data: bytes, method: bytes = b"GET") -> ResponseHead | None:
    read = plain_response_head(data, limit=LIMIT, max_fields=100)
    assert plain_response_head(bytearray(data), limit=LIMIT, max_fields=100) == read
    for before in (data, ANSWER, b"HTTP/1.1 404 Not Found" + data[data.find(b"\r\n") :]):
        memory = Memory(100)
        plain_response_head(before, limit=LIMIT, max_fields=100, memory=memory)
        assert plain_response_head(data, limit=LIMIT, max_fields=100, memory=memory) == read
    if read is None:
        return None
    head, end = read
    assert cut_response_head(data, limit=LIMIT) == end
    assert parse_response_head(data[:end], max_fields=100) == head
    assert head.names == tuple(name.lower() for name, _ in head.fields)
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data[:end])
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert (event.status_code, bytes(event.reason)) == (head.status, head.reason)
    length = 0 if method == b"HEAD" or head.status in {204, 304} else head.content_length
    if length < 1_000_000:
        connection.receive_data(bytes(length) + b"NEXT")
        got = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            got += bytes(event.data)
        assert len(got) == length
        assert connection.trailing_data[0] == b"NEXT"
        assert connection.their_state is h11.DONE
    return head


@settings(max_examples=2000, deadline=None)
@given(request_heads)
@example(COMMON)
def test_h1_h17_a_plain_request_means_the_same_to_all_readers(data):
    head = agree_on_request(data)
    if head is not None and head.method.encode() in METHODS:
        check_request(head, data[: plain_request_head(data, **LIMITS)[1]])


@settings(max_examples=1200, deadline=None)
@given(response_heads, st.sampled_from([b"GET", b"HEAD", b"POST"]))
@example(ANSWER, b"GET")
def test_h18_a_plain_response_means_the_same_to_all_readers(data, method):
    head = agree_on_response(data, method)
    if head is not None:
        check_response(head, data[: plain_response_head(data, limit=LIMIT, max_fields=100)[1]])


def spoilt(head: bytes):
    """One octet of a plain head replaced, taken out or put in, anywhere."""
    return st.builds(
        lambda at, octet, kind: head[:at] + (b"" if kind == 1 else bytes([octet])) + head[at + (kind < 2) :],
        st.integers(0, len(head) - 1),
        st.integers(0, 255) | st.sampled_from(b"\r\n :\t,\0/#_"),
        st.integers(0, 2),
    )


@settings(max_examples=3000, deadline=None)
@given(spoilt(COMMON))
def test_h17_an_octet_out_of_place_is_seen_by_all_readers_of_a_request(data):
    agree_on_request(data)


@settings(max_examples=3000, deadline=None)
@given(spoilt(ANSWER))
def test_h18_an_octet_out_of_place_is_seen_by_all_readers_of_a_response(data):
    agree_on_response(data)


def test_what_clients_and_servers_send_is_plain():
    """Otherwise all of this would be for nothing."""
    head = agree_on_request(COMMON)
    assert head is not None
    assert head.content_length == 30
    assert (b"X-Empty", b"") in head.fields
    assert (b"Accept", b"*/*") in head.fields
    assert agree_on_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is not None
    assert agree_on_response(ANSWER) is not None
    assert agree_on_response(b"HTTP/1.1 304\r\nEtag: x\r\n\r\n") is not None
    assert agree_on_response(b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n") is not None


@pytest.mark.parametrize("end", range(len(COMMON)))
def test_no_beginning_of_a_request_is_taken_for_one(end):
    assert plain_request_head(COMMON[:end], **LIMITS) is None


@pytest.mark.parametrize("end", range(len(ANSWER)))
def test_no_beginning_of_a_response_is_taken_for_one(end):
    assert plain_response_head(ANSWER[:end], limit=LIMIT, max_fields=100) is None


def test_what_follows_a_head_does_not_change_it():
    assert plain_request_head(COMMON + b"GET / HTTP/1.1\r\n\r\n", **LIMITS) == plain_request_head(COMMON, **LIMITS)
    assert plain_response_head(ANSWER + ANSWER, limit=LIMIT, max_fields=100) == plain_response_head(
        ANSWER, limit=LIMIT, max_fields=100
    )


LEFT_TO_OTHERS = [
    b"Transfer-Encoding: chunked", b"transfer-encoding: identity", b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Content-Length: 3\r\nContent-Length: 3", b"Content-Length: 3, 3", b"Content-Length: +3", b"Content-Length: 0x3", b"Content-Length:",
    b"Content-Length: 3_0", b"Content-Length: " + b"9" * 19, b"Content_Length: 3", b"X_Api_Key: a", b"Transfer_Encoding: chunked",
    b"Connection: close", b"Connection: keep-alive, authorization", b"Connection: keep-alive\r\nConnection: authorization",
    b"Connection: upgrade", b"Connection:", b"Connection: keep-alive,", b"X: a\r\n b", b"X : a", b": a", b"X", b"X: a\0", b"X: a\x7f",
    b"X: a\rb", b"X: a\nb", b"X\xff: a", b"X: trailing ", b"X: trailing\t", b"Upgrade: h2c", b"Expect: 100-continue", b"HTTP2-Settings: x",
]  # fmt: skip


@pytest.mark.parametrize("lines", [*LEFT_TO_OTHERS, b"Host: b", b"host: a"])
def test_h1_h2_h3_h5_h11_h14_h17_whatever_is_not_plain_is_left_to_the_strict_reader(lines):
    """Also where that takes it: this one refuses nothing, and takes nothing that needs thought."""
    assert agree_on_request(b"POST / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n\r\n") is None


@pytest.mark.parametrize("lines", LEFT_TO_OTHERS)
def test_h18_whatever_is_not_plain_in_a_response_is_left_to_the_strict_reader(lines):
    length = b"" if b"Content-Length:" in lines else b"Content-Length: 3\r\n"
    assert agree_on_response(b"HTTP/1.1 200 OK\r\n" + length + lines + b"\r\n\r\n") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\r\n\r\n",
        b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\nHost: a\n\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /\xfc HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\n", b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"G" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /\t HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)  # fmt: skip
def test_h4_h8_h9_h10_h13_other_first_lines_are_left_to_the_strict_reader(raw):
    assert agree_on_request(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", b"HTTP/1.1 100 Continue\r\nX: a\r\n\r\n", b"HTTP/1.1 101 x\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 600 x\r\nContent-Length: 1\r\n\r\n", b"HTTP/1.1 2000\r\nContent-Length: 1\r\n\r\n", b"HTTP/1.1  200 OK\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: a\r\n\r\n", b"HTTP/2 200 OK\r\nContent-Length: 1\r\n\r\n", b"HTTP/1.1 200 OK\r\nHost: a\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 a\0b\r\nContent-Length: 1\r\n\r\n", b"HTTP/1.1 200 OK\nContent-Length: 1\n\n",
    ],
)  # fmt: skip
def test_h18_other_responses_are_left_to_the_strict_reader(raw):
    """Among them those that end with their connection, and all that are not final."""
    assert agree_on_response(raw) is None


def test_h15_limits_are_the_strict_readers():
    long = b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\n"
    assert plain_request_head(long, limit=len(long), max_fields=2, max_target=101) is not None
    assert plain_request_head(long, limit=len(long) - 1, max_fields=2, max_target=101) is None
    assert plain_request_head(long, limit=len(long), max_fields=1, max_target=101) is None
    assert plain_request_head(long, limit=len(long), max_fields=2, max_target=100) is None
    many = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: b\r\n" * 100 + b"\r\n"
    assert plain_request_head(many, limit=LIMIT, max_fields=1000, max_target=100) is None
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: b\r\n\r\n"
    assert plain_response_head(answer, limit=len(answer), max_fields=2) is not None
    assert plain_response_head(answer, limit=len(answer) - 1, max_fields=2) is None
    assert plain_response_head(answer, limit=len(answer), max_fields=1) is None


def test_the_same_lines_are_remembered_as_the_same_objects():
    """What depends on them alone can be remembered by who they are."""
    memory = Memory(100)
    first, end = plain_request_head(COMMON, memory=memory, **LIMITS)
    again, _ = plain_request_head(COMMON.replace(b"/v1/things", b"/v2/other"), memory=memory, **LIMITS)
    assert again.fields is first.fields
    assert again.target != first.target
    other, _ = plain_request_head(COMMON.replace(b"30", b"31"), memory=memory, **LIMITS)
    assert other.content_length == 31
    for limit in range(end):
        assert plain_request_head(COMMON, memory=memory, limit=limit, max_fields=100, max_target=8192) is None
    plain_request_head(COMMON, memory=memory, **LIMITS)
    for limit in range(end):
        assert plain_request_head(COMMON, memory=memory, limit=limit, max_fields=100, max_target=8192) is None
    for cut in range(end):
        assert plain_request_head(COMMON[:cut], memory=memory, **LIMITS) is None


def test_reading_takes_time_in_proportion_to_the_length():
    """Lines of every kind that almost fit; a reader that tried again from each place would take minutes."""
    for filler in (b"a", b":", b" ", b"\t", b"\r", b"a:", b"a:\r\n", b"a: \r\n", b"a:b\r\n", b"a b", b"-"):
        for start in (b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX:", b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\n", b""):
            data = start + filler * (LIMIT // len(filler)) + b"\r\n\r\n"
            assert plain_request_head(data, limit=10 * LIMIT, max_fields=100, max_target=8192) is None
            assert plain_response_head(data, limit=10 * LIMIT, max_fields=100) is None


def test_the_generators_make_plain_heads():
    """Otherwise the properties above would hold of nothing."""
    counts = [0, 0]

    @settings(max_examples=1000, deadline=None, database=None)
    @given(request_heads, response_heads)
    def run(request: bytes, response: bytes) -> None:
        counts[0] += plain_request_head(request, **LIMITS) is not None
        counts[1] += plain_response_head(response, limit=LIMIT, max_fields=100) is not None

    run()
    assert min(counts) > 10, counts


def test_the_strict_readers_know_no_names():
    """Only the plain reader vouches for a head."""
    assert parse_request_head(COMMON, max_fields=100, max_target=8192).names is None
    assert parse_response_head(ANSWER, max_fields=100).names is None
