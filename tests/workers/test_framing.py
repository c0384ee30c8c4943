"""Messages between supervisor and worker: read whole, strictly, and never quoted in an error."""

from __future__ import annotations

import json
import struct
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.workers.framing import ProtocolError, Unframer, frame

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.dictionaries(st.text(max_size=5), JSON, max_size=4).map(lambda fields: {**fields, "do": "something"})


def everything(unframer: Unframer) -> list[object]:
    found = []
    while (message := unframer.next()) is not None:
        found.append(message)
    return found


@given(st.lists(MESSAGES, max_size=4), st.integers(1, 20))
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages: list[dict[str, object]], size: int) -> None:
    unframer = Unframer(1 << 20)
    data = b"".join(map(frame, messages))
    found = []
    for start in range(0, len(data), size):
        unframer.feed(data[start : start + size])
        found += everything(unframer)
    assert found == messages


def test_no_prefix_of_a_message_is_one() -> None:
    data = frame({"do": "x", "text": "ä"})
    for end in range(len(data)):
        unframer = Unframer(100)
        unframer.feed(data[:end])
        assert unframer.next() is None
        unframer.feed(data[end:])
        assert unframer.next() == {"do": "x", "text": "ä"}
        assert unframer.next() is None


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"do"', b"{}", b'{"do":1}', b'{"do":null}', b'{"do":"x","n":NaN}', b"\xff\xfe", b"[" * 50_000, b"7"],
)
def test_what_is_no_message_is_an_error_that_does_not_quote_it(body: bytes) -> None:
    unframer = Unframer(1 << 20)
    unframer.feed(framed(body))
    with pytest.raises(ProtocolError) as caught:
        unframer.next()
    assert caught.value.__context__ is None


def test_c14_an_error_shows_nothing_of_a_message_with_a_key() -> None:
    unframer = Unframer(1 << 20)
    unframer.feed(framed(b'{"do":"create","key":"canary'))
    with pytest.raises(ProtocolError) as caught:
        unframer.next()
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_message_that_is_too_long_is_refused_before_it_is_there() -> None:
    unframer = Unframer(len(frame({"do": "x"})) - 4)
    unframer.feed(frame({"do": "x"}))
    assert unframer.next() == {"do": "x"}
    unframer.feed(frame({"do": "xy"})[:4])
    with pytest.raises(ProtocolError, match="longer"):
        unframer.next()


def test_what_is_no_json_is_not_sent() -> None:
    with pytest.raises(ValueError):
        frame({"do": "x", "n": float("nan")})
    assert json.loads(frame({"do": "x"})[4:]) == {"do": "x"}
