"""Headers and heads as values."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.errors import StageError
from sbxproxy.http import Denied, Headers, Request, Response
from sbxproxy.http.fields import end_to_end, list_of, outgoing, wants_websocket

HEADERS = Headers.of([("Accept", "a"), (b"X-B", b"\xff"), ("accept", "c"), ("X_B", "d")])


def test_lookups_ignore_case_and_keep_order():
    assert HEADERS.get("ACCEPT") == "a"
    assert HEADERS.get_all(b"accept") == ["a", "c"]
    assert HEADERS.get("x-b") == "\xff"
    assert HEADERS.get("absent") is None
    assert "accept" in HEADERS
    assert "absent" not in HEADERS
    assert 1 not in HEADERS
    assert len(HEADERS) == len(list(HEADERS)) == 4


def test_c1_a_header_set_stands_once_and_last():
    changed = HEADERS.with_header("x-B", " new\t")
    assert changed.fields == ((b"Accept", b"a"), (b"accept", b"c"), (b"x-B", b"new"))
    assert HEADERS.without("x_b", b"ACCEPT").fields == ()


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0b", "s3cret\x7f", "\u20ac", "caf\xe9"])
def test_c3_a_value_with_control_characters_is_refused_and_not_shown(value):
    with pytest.raises(ValueError) as caught:
        HEADERS.with_header("authorization", value)
    assert value not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "\xe9", "(a)"])
def test_a_name_that_is_no_token_is_refused(name):
    with pytest.raises(ValueError):
        HEADERS.with_header(name, "v")


def test_c11_nothing_shows_a_value():
    request = Request(method="GET", target="/", host="h", headers=HEADERS.with_header("x", "s3cret"), body=b"s3cret")
    response = Response(status=200, headers=request.headers, body=b"s3cret")
    assert "s3cret" not in repr(request) + repr(response) + repr(request.headers)
    assert "accept" in repr(request)


def test_a_target_has_a_path_and_a_query():
    request = Request(method="GET", target="/a?b?c", host="h")
    assert (request.path, request.query) == ("/a", "b?c")
    assert request.with_header("x", "1").headers.get("x") == "1"
    assert request.with_header("x", "1").without_header("X").headers.fields == ()
    assert Response(status=200).with_header("x", "1").without_header("X").headers.fields == ()


def test_a_denial_has_an_error_status():
    with pytest.raises(ValueError):
        Denied("r", "d", status=200)


def test_list_members_come_from_all_lines():
    fields = [(b"Connection", b"Close, \tUpgrade,,"), (b"X", b"y"), (b"connection", b"Foo")]
    assert list_of(fields, b"connection") == [b"close", b"upgrade", b"foo"]


TOKENS = st.text("abcABC-_", min_size=1, max_size=6)


@given(st.lists(TOKENS, max_size=4), st.lists(st.tuples(TOKENS, TOKENS), max_size=6))
def test_c2_nothing_that_connection_names_passes(named, fields):
    raw = [(b"Connection", ", ".join(named).encode())]
    raw += [(name.encode(), value.encode()) for name, value in fields]
    fold = lambda text: text.lower().replace("_", "-")  # noqa: E731
    kept = [name.decode() for name, _ in end_to_end(raw)]
    assert kept == [name for name, _ in fields if fold(name) not in set(map(fold, named))]


@pytest.mark.parametrize("pair", [(b"a\r\n", b"v"), (b"a", b"v\r\nb: c"), (b"a", b"v\0"), (b"a", b" v"), (b"", b"v")])
def test_c3_nothing_malformed_goes_out(pair):
    with pytest.raises(StageError) as caught:
        outgoing(Headers((pair,)))
    assert repr(pair[1]) not in str(caught.value)


def test_obs_text_and_empty_values_go_out():
    assert outgoing(Headers(((b"a", b"\x80\xff b"), (b"c", b"")))) == [(b"a", b"\x80\xff b"), (b"c", b"")]


@pytest.mark.parametrize(
    ("connection", "upgrade", "wanted"),
    [
        (b"Upgrade", b"websocket", True),
        (b"keep-alive, upgrade", b"WebSocket", True),
        (b"upgrade", b"h2c, websocket", True),
        (b"upgrade", b"h2c", False),
        (b"close", b"websocket", False),
        (b"upgrade", b"websocket/13", False),
    ],
)
def test_websocket_needs_both_fields(connection, upgrade, wanted):
    assert wants_websocket([(b"connection", connection), (b"upgrade", upgrade)]) is wanted
