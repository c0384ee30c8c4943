"""Heads of HTTP messages, good and bad, and two other readers, h11 and llhttp, to judge what is made of them."""

from __future__ import annotations

import h11
import httptools
from hypothesis import strategies as st

from sbxproxy.wire.http1 import RequestHead, ResponseHead

LIMIT = 64 * 1024
# llhttp knows a fixed list and refuses all others.
METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"PROPFIND",
    b"M-SEARCH",
]
NAMES = [
    b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"X-A", b"x_b", b"Content_Length", b"Accept",
    b"Connection", b"Upgrade", b"Expect", b"!#$%&'*+-.^_`|~", b"X ", b"", b"X\xff", b"Cookie",
]  # fmt: skip
VALUES = [
    b"a.example", b"a.example:443", b"", b"0", b"3", b"007", b"3, 3", b"+3", b"chunked", b"Chunked", b"gzip, chunked", b"close",
    b"keep-alive", b"websocket", b"100-continue", b"\xfc\xff", b"a\tb", b"  a  ", b"a\0", b"a\rb", b"a\nb", b"x\r\n y", b"\x7f",
]  # fmt: skip
TARGETS = [
    b"/", b"*", b"/p?q=1", b"/%2e%2e/;x=y", b'/a|b{c}"<>^`\\', b"//x", b"/?", b"/a#b", b"http://a.example/", b"https://a.example:8/x?y",
    b"a.example:443", b"[::1]:443", b"/\xfc", b"HTTP://A/", b"ftp://a.example/x",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "]


GOOD_FIELDS = [
    b"Content-Length: 3", b"Content-Length: 007", b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked", b"X-A: \xfc\xff a\tb ",
    b"x_b:", b"Connection: close", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: websocket", b"Upgrade: h2c", b"Expect: 100-continue",
    b"!#$%&'*+-.^_`|~: ,;=\"", b"Cookie:\t a=b; c=d", b"TE: trailers", b"Proxy-Connection: keep-alive",
]  # fmt: skip
GOOD_LINES = [
    b"GET / HTTP/1.1", b"POST /p?q=1 HTTP/1.1", b"PUT http://a.example/ HTTP/1.1", b"CONNECT a.example:443 HTTP/1.1", b"HEAD / HTTP/1.0",
    b"OPTIONS * HTTP/1.1", b'M-SEARCH /a|b{c}"<>^`\\%2e HTTP/1.1', b"DELETE HTTPS://A:8/x?y HTTP/1.0", b"CONNECT [::1]:443 HTTP/1.1",
]  # fmt: skip

bad_fields = st.tuples(
    st.sampled_from(NAMES), st.sampled_from([b": ", b":", b":  ", b":\t", b" : "]), st.sampled_from(VALUES)
).map(b"".join)


@st.composite
def heads(draw, good_lines, lines):
    """Half of them well-formed line by line, though not always together; the other half anything, and spoilt."""
    if draw(st.booleans()):
        fields = draw(st.lists(st.sampled_from(GOOD_FIELDS), max_size=4))
        return b"\r\n".join([draw(good_lines), b"Host: a.example", *fields]) + b"\r\n\r\n"
    host = [b"Host: a.example"] if draw(st.integers(0, 9)) else []
    fields = draw(st.lists(st.sampled_from(GOOD_FIELDS) | bad_fields, max_size=4))
    end = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"]))
    raw = bytearray(end.join([draw(good_lines | lines), *host, *fields]) + end + end)
    for _ in range(draw(st.integers(0, 2))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255) | st.sampled_from(b"\r\n :\t,\0/#"))
    return bytes(raw)


request_heads = heads(
    st.sampled_from(GOOD_LINES),
    st.tuples(st.sampled_from(METHODS), st.sampled_from(TARGETS), st.sampled_from(VERSIONS)).map(b" ".join),
)
response_heads = heads(
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No \xfc", b"HTTP/1.0 404 x", b"HTTP/1.1 200", b"HTTP/1.1 100 "]),
    st.sampled_from([b"HTTP/2 200 OK", b"HTTP/1.1  200", b"HTTP/1.1 2000", b"HTTP/1.1 999 x", b"http/1.1 200"]),
)


def lowered(fields) -> list[tuple[bytes, bytes]]:
    """Comparable: names without case, and the coding too, which h11 hands out in lower case."""
    return [
        (name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value.strip(b" \t")) for name, value in fields
    ]


class Seen:
    """Callbacks of llhttp."""

    def __init__(self) -> None:
        self.url = self.reason = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def check_request(ours: RequestHead, head: bytes) -> None:
    """See that both read *head* as we do."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method.decode(), event.target) == (ours.method, ours.target)
    assert event.http_version == b"%d.%d" % ours.version
    assert lowered(event.headers) == lowered(ours.fields)

    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        assert seen.complete
    assert seen.complete
    assert parser.get_method().decode() == ours.method
    assert seen.url == ours.target
    assert parser.get_http_version() == "%d.%d" % ours.version
    assert lowered(seen.fields) == lowered(ours.fields)  # llhttp keeps the white space behind a value


def check_response(ours: ResponseHead, head: bytes) -> None:
    """See that both read *head* as we do."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(head)
    event = connection.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert (event.status_code, bytes(event.reason)) == (ours.status, ours.reason)
    assert lowered(event.headers) == lowered(ours.fields)

    seen = Seen()
    parser = httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    assert seen.complete
    assert parser.get_status_code() == ours.status
    assert lowered(seen.fields) == lowered(ours.fields)
