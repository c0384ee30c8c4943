from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.wire.postgres import SSL_REQUEST
from sbxproxy.wire.proxy_protocol import build_local
from sbxproxy.wire.result import Hint, Sniffed
from sbxproxy.wire.sniff import BUILTIN, bytes_wanted, sniff, sniff_http
from support import hello as h
from support.finality import decided_at, outcome

HELLO = h.records(h.client_hello("a.example.com", protocols=(b"h2",)))

STREAMS = {
    "hello": (HELLO, Sniffed("tls", b"a.example.com", (b"h2",))),
    "hello-in-bytes": (h.records(h.client_hello("b.example"), 1), Sniffed("tls", b"b.example")),
    "bad-hello": (b"\x16\x03\x01\xff\xff", Sniffed("tls", problem="record is too long")),
    "get": (b"GET / HTTP/1.1\r\n", Sniffed("http")),
    "absolute": (b"GET http://a.example/ HTTP/1.1\r\n", Sniffed("http")),
    "absolute-tls": (b"PROPFIND https://a.example/ HTTP/1.1\r\n", Sniffed("http")),
    "connect": (b"CONNECT a.example:443 HTTP/1.1\r\n", Sniffed("http")),
    "connect-v6": (b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n", Sniffed("http")),
    "options": (b"OPTIONS * HTTP/1.1\r\n", Sniffed("http")),
    "m-search": (b"M-SEARCH * HTTP/1.1\r\n", Sniffed("http")),
    "http2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Sniffed("http")),
    "ssl-request": (SSL_REQUEST, Sniffed("postgres-request")),
    "ssh": (b"SSH-2.0-x\r\n", Sniffed("unknown")),
    "smtp": (b"EHLO a.example\r\n", Sniffed("unknown")),
    "redis": (b"PING\r\n", Sniffed("unknown")),
    "redis-set": (b"SET key value\r\n", Sniffed("unknown")),
    "irc": (b"NICK somebody\r\n", Sniffed("unknown")),
    "rtsp": (b"OPTIONS * RTSP/1.0\r\n", Sniffed("unknown")),
    "rtsp-describe": (b"DESCRIBE rtsp://a.example/ RTSP/1.0\r\n", Sniffed("unknown")),
    "connect-mqtt-ish": (b"CONNECT \r\n", Sniffed("unknown")),
    "lower-case": (b"get / HTTP/1.1\r\n", Sniffed("unknown")),
    "empty-line-first": (b"\r\nGET / HTTP/1.1\r\n", Sniffed("unknown")),
    "long-word": (b"A" * 21 + b" / HTTP/1.1\r\n", Sniffed("unknown")),
    "space-first": (b" / HTTP/1.1\r\n", Sniffed("unknown")),
    "alert": (bytes.fromhex("15030300020231"), Sniffed("unknown")),
    "sslv2": (bytes.fromhex("802e0103010015"), Sniffed("unknown")),
    "socks5": (b"\x05\x01\x00", Sniffed("unknown")),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_t16_streams_are_told_by_their_bytes_however_they_are_cut(name):
    """No byte that isn't understood is ever taken for plain text of a known kind."""
    data, expected = STREAMS[name]
    assert sniff(data) == expected
    decided_at(sniff, data)


def test_d15_a_proxy_header_is_never_guessed():
    """Its signature was chosen so that no server takes it for a request; nor do we."""
    assert sniff(build_local()) == Sniffed("unknown")


@pytest.mark.parametrize("method", [b"A" * 20, b"VERSION-CONTROL", b"GET"])
def test_h13_any_upper_case_word_of_up_to_20_letters_may_be_a_method(method):
    assert sniff(method + b" /") == Sniffed("http")


def test_h13_a_longer_word_is_no_method():
    assert sniff_http(b"A" * 20) is Hint.NEED_MORE
    assert sniff_http(b"A" * 21) is Hint.NOT_MINE
    assert sniff_http(b"A" * 21 + b" /") is Hint.NOT_MINE
    assert decided_at(sniff_http, b"A" * 30) == 21


@given(st.sampled_from([data for data, _ in STREAMS.values()]), st.data())
def test_t7_the_answer_does_not_depend_on_the_segments(stream, data):
    cut = data.draw(st.integers(0, len(stream)))
    answers = [sniff(stream[:cut]), sniff(stream)]
    assert answers[0] in (Hint.NEED_MORE, answers[1])


@given(st.binary(max_size=40) | st.text("GETPUOSCN /*:hpt.0\r\n", max_size=40).map(str.encode))
def test_t16_answers_are_final_for_any_bytes(data):
    for parse in (sniff, *BUILTIN):
        if outcome(parse, data) is not Hint.NEED_MORE:
            decided_at(parse, data)


@given(st.binary(min_size=1, max_size=60))
def test_no_two_of_ours_claim_the_same_bytes(data):
    assert sum(isinstance(sniffer(data), Sniffed) for sniffer in BUILTIN) <= 1


# -- the end


def test_t17_no_bytes_at_all():
    assert sniff(b"") is Hint.NEED_MORE
    assert sniff(b"", eof=True) == Sniffed("silent")


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 100, len(HELLO) - 1])
def test_t18_a_hello_that_never_ends_is_a_bad_hello(cut):
    answer = sniff(HELLO[:cut], eof=True)
    assert answer == Sniffed("tls", problem="the ClientHello is incomplete")


@pytest.mark.parametrize("data", [b"GE", b"GET ", b"\0", b"\0\0\0\x08\x04", b"QUIT"])
def test_t17_what_ends_early_is_unknown(data):
    assert sniff(data) is Hint.NEED_MORE
    assert sniff(data, eof=True) == Sniffed("unknown")


@pytest.mark.parametrize("name", STREAMS)
def test_at_the_end_a_decided_answer_stays(name):
    data, expected = STREAMS[name]
    assert sniff(data, eof=True) == expected


# -- sniffers of others


def mqtt(data: bytes) -> Sniffed | Hint:
    """Claims MQTT by its first byte and the protocol's name."""
    start = b"\x10\x0c\x00\x04MQTT"
    if data.startswith(start):
        return Sniffed("mqtt", server_name=b"broker.example")
    return Hint.NEED_MORE if start.startswith(data) else Hint.NOT_MINE


def test_sniffers_of_others_are_asked_in_their_place():
    data = b"\x10\x0c\x00\x04MQTT\x04"
    assert sniff(data) == Sniffed("unknown")
    assert sniff(data, (*BUILTIN, mqtt)) == Sniffed("mqtt", b"broker.example")
    assert decided_at(lambda data: sniff(data, (*BUILTIN, mqtt)), data) == 8


def test_who_needs_more_stops_the_asking():
    """Otherwise a later, quicker sniffer would win or lose by where the first segment ended."""
    greedy = lambda data: Sniffed("greedy")  # noqa: E731
    assert sniff(b"GE", (sniff_http, greedy)) is Hint.NEED_MORE
    assert sniff(b"GET /", (sniff_http, greedy)) == Sniffed("http")
    assert sniff(b"GEx", (sniff_http, greedy)) == Sniffed("greedy")


# -- pacing


@pytest.mark.parametrize("name", STREAMS)
def test_t18_waiting_for_the_bytes_wanted_never_overshoots(name):
    data, expected = STREAMS[name]
    at = decided_at(sniff, data)
    have = 0
    while (answer := sniff(data[:have])) is Hint.NEED_MORE:
        wanted = bytes_wanted(data[:have])
        assert have < wanted <= at
        have = wanted
    assert answer == expected


def test_t18_a_hello_is_asked_about_again_when_it_can_be_whole():
    assert bytes_wanted(HELLO[:9]) == len(HELLO)
    assert bytes_wanted(HELLO[:-1]) == len(HELLO)
    assert bytes_wanted(b"GE") == 3
