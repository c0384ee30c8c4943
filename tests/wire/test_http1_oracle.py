"""Two other readers, h11 and llhttp, as judges: a head that we accept means the same to both of them.

The other direction doesn't hold, on purpose.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings

from sbxproxy.errors import ClientProtocolError, UpstreamProtocolError
from sbxproxy.wire.http1 import (
    RequestHead,
    ResponseHead,
    TargetForm,
    cut_request_head,
    cut_response_head,
    parse_request_head,
    parse_response_head,
)
from support.wire_heads import LIMIT, METHODS, TARGETS, check_request, check_response, request_heads, response_heads


def ours_request(data: bytes) -> tuple[RequestHead, bytes] | None:
    try:
        end = cut_request_head(data, limit=LIMIT)
        return (parse_request_head(data[:end], max_fields=100, max_target=8192), data[:end]) if isinstance(end, int) else None
    except ClientProtocolError:
        return None


@settings(max_examples=1500, deadline=None)
@given(request_heads)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
@example(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
def test_h1_h17_h11_and_llhttp_read_what_we_read(data):
    accepted = ours_request(data)
    if accepted is not None and accepted[0].method.encode() in METHODS:
        check_request(*accepted)


FRAMED = [
    (b"", b""),
    (b"Content-Length: 5\r\n", b"hello"),
    (b"Content-Length: 005\r\n", b"hello"),
    (b"Content-Length: 0\r\n", b""),
    (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize(("field", "body"), FRAMED)
def test_h1_framing_means_the_same_to_h11(field, body):
    """The next request begins where we say that this one's body ends."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n"
    ours, _ = ours_request(head + body + b"GET /next")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + body + b"GET /next")
    received = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        received += bytes(event.data) if isinstance(event, h11.Data) else b""
    assert connection.trailing_data[0] == b"GET /next"
    assert received == (b"" if not body else b"hello")
    if ours.chunked:
        assert ours.content_length is None
    else:
        assert (ours.content_length or 0) == len(received)


def ours_response(data: bytes) -> tuple[ResponseHead, bytes] | None:
    try:
        end = cut_response_head(data, limit=LIMIT)
        return (parse_response_head(data[:end], max_fields=100), data[:end]) if isinstance(end, int) else None
    except UpstreamProtocolError:
        return None


@settings(max_examples=800, deadline=None)
@given(response_heads)
def test_h18_h11_and_llhttp_read_the_responses_we_read(data):
    accepted = ours_response(data)
    if accepted is None:
        return
    check_response(*accepted)


def test_the_generator_makes_heads_that_are_accepted():
    """Otherwise the tests above would hold of nothing."""
    counts = [0, 0]

    @settings(max_examples=300, deadline=None, database=None)
    @given(request_heads)
    def run(data: bytes) -> None:
        counts[ours_request(data) is not None] += 1

    run()
    assert min(counts) > 60


def test_authority_form_is_only_for_connect():
    for method in METHODS:
        for target in TARGETS:
            accepted = ours_request(method + b" " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            if accepted is not None:
                assert (accepted[0].form is TargetForm.AUTHORITY) == (method == b"CONNECT")
