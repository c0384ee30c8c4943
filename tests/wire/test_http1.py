from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.errors import ClientProtocolError, UpstreamProtocolError
from sbxproxy.wire.http1 import (
    TargetForm,
    cut_request_head,
    cut_response_head,
    parse_request_head,
    parse_response_head,
)
from sbxproxy.wire.result import Hint
from support.finality import decided_at, outcome

LIMIT = 64 * 1024


def request(*lines: bytes | str, first: bytes = b"POST /x HTTP/1.1", host: bytes | None = b"Host: a.example") -> bytes:
    raw = [first] + ([] if host is None else [host])
    raw += [line.encode("latin-1") if isinstance(line, str) else line for line in lines]
    return b"\r\n".join(raw) + b"\r\n\r\n"


def response(*lines: bytes | str, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return request(*lines, first=first, host=None)


def read(head: bytes, **limits: int):
    assert cut_request_head(head + b"body\n", limit=LIMIT) == len(head)
    return parse_request_head(head, **{"max_fields": 100, "max_target": 8192, **limits})


def refused(head: bytes, **limits: int) -> int:
    """The status of the refusal, by the cutter or by the parser."""
    with pytest.raises(ClientProtocolError) as caught:
        end = cut_request_head(head, limit=LIMIT)
        assert isinstance(end, int)
        parse_request_head(head[:end], **{"max_fields": 100, "max_target": 8192, **limits})
    assert caught.value.reason in {"bad-request", "limit"}
    return caught.value.status


def refused_response(head: bytes) -> None:
    with pytest.raises(UpstreamProtocolError) as caught:
        end = cut_response_head(head, limit=LIMIT)
        assert isinstance(end, int)
        parse_response_head(head[:end], max_fields=100)
    assert caught.value.status == 502


# -- what is accepted


def test_a_request_as_clients_send_it():
    head = request(
        "User-Agent: curl/8",
        "Accept:*/*",
        "X-Empty:",
        "X-Pad: \t v  w \t ",
        "content-length: 007",
        first=b"POST /p?q=1 HTTP/1.1",
    )
    parsed = read(head)
    assert (parsed.method, parsed.target, parsed.form, parsed.version) == (
        "POST",
        b"/p?q=1",
        TargetForm.ORIGIN,
        (1, 1),
    )
    assert parsed.fields == (
        (b"Host", b"a.example"), (b"User-Agent", b"curl/8"), (b"Accept", b"*/*"), (b"X-Empty", b""),
        (b"X-Pad", b"v  w"), (b"content-length", b"007"),
    )  # fmt: skip
    assert (parsed.host, parsed.content_length, parsed.chunked) == (b"a.example", 7, False)


def test_chunked_requests_in_any_case():
    parsed = read(request("Transfer-Encoding: Chunked"))
    assert (parsed.content_length, parsed.chunked) == (None, True)


def test_http_1_0_may_do_without_host():
    parsed = read(request(first=b"GET / HTTP/1.0", host=None))
    assert (parsed.version, parsed.host) == ((1, 0), None)


def test_values_and_targets_are_not_printed():
    parsed = read(request("Authorization: Bearer s3cret", first=b"GET /?token=s3cret HTTP/1.1"))
    assert "s3cret" not in repr(parsed)
    answer = parse_response_head(response("Set-Cookie: s3cret", first=b"HTTP/1.1 200 s3cret"), max_fields=9)
    assert "s3cret" not in repr(answer)


def test_h16_obs_text_is_kept_byte_for_byte():
    assert read(request(b"X-Name: J\xfcrgen \xff\x80")).fields[-1] == (b"X-Name", b"J\xfcrgen \xff\x80")


# -- framing


def test_h1_content_length_and_transfer_encoding_together_are_refused():
    """The classic of request smuggling; h11 takes it."""
    assert refused(request("Content-Length: 4", "Transfer-Encoding: chunked")) == 400
    assert refused(request("transfer-encoding: chunked", "CONTENT-LENGTH: 4")) == 400


def test_h2_transfer_encoding_on_http_1_0_is_refused():
    assert refused(request("Transfer-Encoding: chunked", first=b"POST / HTTP/1.0")) == 400


@pytest.mark.parametrize(
    "lines", [["Content-Length: 3"] * 2, ["Content-Length: 3", "content-length: 4"], ["Content-Length: 3, 3"]]
)
def test_h3_more_than_one_content_length_is_refused(lines):
    assert refused(request(*lines)) == 400


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
    ],
)
def test_h4_bare_lf_is_refused_at_once(head):
    """Waiting for an empty line that ends in CRLF would wait for ever."""
    cut = lambda data: cut_request_head(data, limit=LIMIT)  # noqa: E731
    assert refused(head) == 400
    bare = next(i for i in range(len(head)) if head[i : i + 1] == b"\n" and head[i - 1 : i] != b"\r")
    assert decided_at(cut, head) == bare + 1


@pytest.mark.parametrize("blank", [b" ", b"\t", b"  x", b"\tchunked"])
def test_h5_folded_lines_are_refused(blank):
    assert refused(request("X: a", blank + b"b")) == 400
    assert refused(b"GET / HTTP/1.1\r\n" + blank + b"X: a\r\nHost: a\r\n\r\n") == 400
    assert refused(request("Transfer-Encoding:", blank + b"chunked")) == 400


@pytest.mark.parametrize(
    "value",
    [
        "",
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "xchunked",
        "chunked;q=1",
        "identity",
        '"chunked"',
        "chunked,",
    ],
)
def test_h17_any_transfer_coding_but_chunked_is_refused(value):
    assert refused(request(f"Transfer-Encoding: {value}")) == 501


@pytest.mark.parametrize("value", ["\x0bchunked", "chunked\x0b", "\x00chunked", "chunked\x7f"])
def test_h17_control_characters_round_a_coding_are_refused(value):
    assert refused(request(f"Transfer-Encoding: {value}")) == 400


def test_h17_two_transfer_encodings_are_refused():
    assert refused(request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")) == 400
    assert refused(request("Transfer-Encoding: identity", "Transfer-Encoding: chunked")) == 400


@pytest.mark.parametrize("value", ["", "+3", "-3", "0x3", "3_0", "3 0", "3;", "\xb2", "3.0", "1e1", "9" * 19])
def test_h17_content_length_is_digits(value):
    assert refused(request(f"Content-Length: {value}")) == 400


@pytest.mark.parametrize("line", ["Content_Length: 3", "transfer_encoding: chunked", "Transfer_encoding: x"])
def test_h14_underscores_do_not_make_a_second_framing_field(line):
    """CGI and WSGI spell both the same."""
    assert refused(request(line)) == 400
    refused_response(response(line))


def test_h14_other_underscores_pass():
    assert read(request("HO_ST: b", "Content-Length_: 3", "X_A: c")).content_length is None


# -- host


def test_h17_host_is_there_exactly_once():
    assert refused(request(host=None)) == 400
    assert refused(request("host: b.example")) == 400
    assert refused(request("host: a.example")) == 400
    assert refused(request("Host: b", first=b"GET / HTTP/1.0")) == 400


# -- lines


@pytest.mark.parametrize(
    "line",
    [
        "X : a", "X\t: a", " X: a", ": a", "X", "X(: a", "X@Y: a", b"X\xff: a", "X: a\rb", "X: a\0b", "X: a\x0bb",
        "X: \x7f", "X: \x1b[2J", "Content-Length : 3", "Transfer-Encoding\x0b: chunked",
    ],
)  # fmt: skip
def test_h17_malformed_fields_are_refused(line):
    assert refused(request(line)) == 400


def test_h17_bare_cr_is_refused_at_once():
    cut = lambda data: cut_request_head(data, limit=LIMIT)  # noqa: E731
    data = b"GET / HTTP/1.1\r\nX: a\rContent-Length: 3\r\n\r\n"
    assert decided_at(cut, data) == data.index(b"\rC") + 2
    assert refused(b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n") == 400


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"GET  / HTTP/1.1", 400), (b"GET /  HTTP/1.1", 400), (b"GET / HTTP/1.1 ", 400), (b"GET\t/ HTTP/1.1", 400),
        (b"GET / x HTTP/1.1", 400), (b"GET / http/1.1", 400), (b"GET / HTTP/1.1x", 400), (b"GET / HTTP/11", 400),
        (b"GET / HTTP/+1.1", 400), (b"GET / HTTP/1", 400), (b"GET", 400), (b"GET ", 400), (b"GET /\0 HTTP/1.1", 400),
        (b"GET /\xe4 HTTP/1.1", 400), (b"GET /\x7f HTTP/1.1", 400), (b"GET /#a HTTP/1.1", 400), (b"GET /?a#b HTTP/1.1", 400),
        (b"G@T / HTTP/1.1", 400), (b"G\xc4T / HTTP/1.1", 400),
        (b"GET /", 505), (b"GET / HTTP/0.9", 505), (b"GET / HTTP/1.2", 505), (b"GET / HTTP/2.0", 505), (b"GET / HTTP/3.1", 505),
        (b"PRI * HTTP/2.0", 505),
    ],
)  # fmt: skip
def test_h10_request_lines(first, status):
    assert refused(request(first=first)) == status


@pytest.mark.parametrize(
    ("method", "status"),
    [(b"get", 501), (b"Get", 501), (b"gET", 501), (b"GE.T", 501), (b"G^", 501), (b"9GET", 501), (b"-", 501), (b"(", 400), (b"A" * 33, 501)],
)  # fmt: skip
def test_h13_methods_are_upper_case_tokens(method, status):
    assert refused(request(first=method + b" / HTTP/1.1")) == status


@pytest.mark.parametrize("method", [b"GET", b"M-SEARCH", b"BASELINE-CONTROL", b"X_CUSTOM", b"A", b"HTTP2"])
def test_h13_unregistered_methods_pass(method):
    assert read(request(first=method + b" / HTTP/1.1")).method == method.decode()


@pytest.mark.parametrize("first", [b"\r", b"\n", b" ", b"\t", b"\0", b"\x16", b"\xff", b"("])
def test_what_does_not_begin_with_a_method_is_refused_at_its_first_byte(first):
    """An empty line before a request is forgiven by RFC 9112 section 2.2 and by llhttp; h11 refuses it, so we do."""
    data = first + request()
    assert refused(data) == 400
    assert decided_at(lambda data: cut_request_head(data, limit=LIMIT), data) == 1


@pytest.mark.parametrize(
    ("first", "form"),
    [
        (b"GET / HTTP/1.1", TargetForm.ORIGIN), (b"OPTIONS /x HTTP/1.1", TargetForm.ORIGIN), (b"GET //a.example/x HTTP/1.1", TargetForm.ORIGIN),
        (b"GET http://a.example/ HTTP/1.1", TargetForm.ABSOLUTE), (b"GET HTTPS://a.example HTTP/1.1", TargetForm.ABSOLUTE),
        (b"OPTIONS * HTTP/1.1", TargetForm.ASTERISK), (b"CONNECT a.example:443 HTTP/1.1", TargetForm.AUTHORITY),
        (b"CONNECT [::1]:443 HTTP/1.1", TargetForm.AUTHORITY),
    ],
)  # fmt: skip
def test_h8_target_forms(first, form):
    assert read(request(first=first)).form is form


@pytest.mark.parametrize(
    "first",
    [
        b"GET a.example:443 HTTP/1.1", b"GET * HTTP/1.1", b"GET x HTTP/1.1", b"CONNECT / HTTP/1.1", b"CONNECT * HTTP/1.1",
        b"CONNECT http://a.example:443 HTTP/1.1", b"CONNECT a.example HTTP/1.1", b"CONNECT u@a.example:443 HTTP/1.1",
        b"CONNECT a,b:443 HTTP/1.1", b"OPTIONS ** HTTP/1.1", b"GET ?x HTTP/1.1", b"GET http:// HTTP/1.1", b"GET http:///x HTTP/1.1", b"GET 1http://a/ HTTP/1.1",
    ],
)  # fmt: skip
def test_h8_targets_of_another_method_are_refused(first):
    assert refused(request(first=first)) == 400


# -- limits


def test_h15_a_head_that_is_too_long_is_431():
    """Also when all of it comes in one segment."""
    head = request("X: " + "a" * 70_000)
    assert refused(head) == 431
    assert decided_at(lambda data: cut_request_head(data, limit=64), head) == 64


def test_h15_a_head_may_be_exactly_as_long_as_the_limit():
    head = request("X: aaa")
    assert cut_request_head(head, limit=len(head)) == len(head)
    with pytest.raises(ClientProtocolError) as caught:
        cut_request_head(head, limit=len(head) - 1)
    assert (caught.value.status, caught.value.reason) == (431, "limit")


def test_h15_a_request_line_that_is_too_long_is_414():
    assert refused(b"GET /" + b"a" * 70_000) == 414
    assert refused(request(first=b"GET /" + b"a" * 8192 + b" HTTP/1.1")) == 414
    assert read(request(first=b"GET /" + b"a" * 8191 + b" HTTP/1.1"))


def test_h15_too_many_fields_are_431():
    assert refused(request(*["X: a"] * 100)) == 431
    assert len(read(request(*["X: a"] * 99)).fields) == 100


def test_h15_a_line_without_a_colon_costs_linear_time():
    """Two seconds for quadratic behaviour on this length, a millisecond for linear."""
    assert refused(request("a" * 60_000)) == 400
    assert refused(request("X:" + " " * 60_000 + "\x01")) == 400


# -- errors tell nothing


@given(st.text("GETPOS /:\r\nabHost0123\0", max_size=30))
def test_messages_never_quote_the_client(text):
    data = b"GET /s3cret HTTP/1.1\r\nHost: s3cret\r\nX: s3cret" + text.encode() + b"\r\n\r\n"
    try:
        end = cut_request_head(data, limit=LIMIT)
        parse_request_head(data[:end], max_fields=100, max_target=100)
    except ClientProtocolError as error:
        assert "s3cret" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__


# -- finality


HEADS = [
    request("Content-Length: 3"),
    request(first=b"GET / HTTP/1.0", host=None),
    request("A: b\rc"),
    b"\r\n" + request(),
    request("A: b\nc"),
]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
@pytest.mark.parametrize("limit", [LIMIT, 40, 17, 16, 15])
def test_the_cut_does_not_depend_on_the_segments(head, limit):
    decided_at(lambda data: cut_request_head(data, limit=limit), head + b"body\r\n\r\n")


@given(st.text("GE /\r\n:a", max_size=40), st.integers(1, 60))
def test_the_cut_does_not_depend_on_the_segments_for_any_bytes(text, limit):
    for start, cut in ((b"G", cut_request_head), (b"HTTP/1.1 200", cut_response_head)):
        data = start + text.encode()
        parse = lambda data, cut=cut: cut(data, limit=limit)  # noqa: E731
        if outcome(parse, data) is not Hint.NEED_MORE:
            decided_at(parse, data)


def test_a_head_is_undecided_until_its_last_byte():
    for head, cut in ((request(), cut_request_head), (response("X: y"), cut_response_head)):
        parse = lambda data, cut=cut: cut(data, limit=LIMIT)  # noqa: E731
        assert decided_at(parse, head) == len(head)
        assert parse(bytearray(head)) == len(head)


def test_a_parser_takes_whole_heads_only():
    assert refused(b"GET / HTTP/1.1\r\n\r\n") == 400
    for head in (b"", b"GET / HTTP/1.1\r\n", request()[:-1], request() + b"x"):
        with pytest.raises(ClientProtocolError):
            parse_request_head(head, max_fields=9, max_target=9)
    with pytest.raises(UpstreamProtocolError):
        parse_response_head(response()[:-1], max_fields=9)


# -- responses


def test_h18_a_response_as_servers_send_it():
    head = response("Content-Length: 5", b"X: \xfc", first=b"HTTP/1.1 404 Not \xfc Found")
    assert cut_response_head(head + b"hello", limit=LIMIT) == len(head)
    parsed = parse_response_head(head, max_fields=100)
    assert (parsed.status, parsed.reason, parsed.version) == (404, b"Not \xfc Found", (1, 1))
    assert (parsed.fields, parsed.content_length, parsed.chunked) == (
        ((b"Content-Length", b"5"), (b"X", b"\xfc")), 5, False,
    )  # fmt: skip


@pytest.mark.parametrize("first", [b"HTTP/1.1 200", b"HTTP/1.0 200 ", b"HTTP/1.1 100 Continue", b"HTTP/1.1 599 x"])
def test_h18_status_lines(first):
    assert parse_response_head(response(first=first), max_fields=0).status in {100, 200, 599}


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/2 200", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.2 200 OK", b"http/1.1 200 OK", b"ICY 200 OK", b"HTTP/1.1 20 OK",
        b"HTTP/1.1 600 x", b"HTTP/1.1 099 x", b"HTTP/1.1  200 OK", b"HTTP/1.1 200OK", b"HTTP/1.1 2000 OK", b" HTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1",
    ],
)  # fmt: skip
def test_h18_malformed_status_lines_are_refused(first):
    refused_response(response(first=first))


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Content-Length: 3", "Content-Length: 3"],
        ["Content-Length: 3, 3"],
        ["Content-Length: +3"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["X: a", " b"],
        ["X : a"],
        ["X: a\0"],
        ["X: a\nY: b"],
        ["X: a\rY: b"],
        ["Content_Length: 3"],
        [": a"],
        ["X: a"] * 101,
        ["X: " + "a" * 70_000],
    ],
)
def test_h18_responses_are_held_to_the_same_rules(lines):
    refused_response(response(*lines))


def test_h18_transfer_encoding_in_an_http_1_0_response_is_refused():
    refused_response(response("Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK"))


def test_h18_what_is_no_http_is_refused_at_the_byte_that_shows_it():
    cut = lambda data: cut_response_head(data, limit=LIMIT)  # noqa: E731
    assert decided_at(cut, b"SSH-2.0-x\r\n") == 1
    assert decided_at(cut, b"HTTP/2 200\r\n\r\n") == 6
