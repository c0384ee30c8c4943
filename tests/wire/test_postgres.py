from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.wire.postgres import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    PostgresStart,
    error_response,
    parse_start,
    sniff_postgres,
)
from sbxproxy.wire.result import Hint, Sniffed
from support.finality import decided_at, outcome


def start(length: int, code: int) -> bytes:
    return struct.pack(">II", length, code)


STARTS = {
    PostgresStart.SSL_REQUEST: SSL_REQUEST,
    PostgresStart.GSSENC_REQUEST: GSSENC_REQUEST,
    PostgresStart.CANCEL_REQUEST: start(16, 80877102) + bytes(8),
    PostgresStart.STARTUP: start(41, 196608) + b"user\0someone\0database\0things\0\0",
}


@pytest.mark.parametrize("kind", STARTS)
def test_starts_are_told_apart_by_exactly_eight_bytes(kind):
    data = STARTS[kind]
    assert parse_start(data) is kind
    assert decided_at(parse_start, data) == 8
    asks = kind in {PostgresStart.SSL_REQUEST, PostgresStart.GSSENC_REQUEST}
    assert sniff_postgres(data) == Sniffed("postgres-request" if asks else "postgres")


@pytest.mark.parametrize("code", [196608, 196610, 206607, 0x00020000])
def test_p4_startup_of_every_protocol_version(code):
    """3.0, 3.2, the 3.9999 that libpq sends to keep servers tolerant, and the ancient 2.0."""
    assert parse_start(start(100, code)) is PostgresStart.STARTUP


@pytest.mark.parametrize("length", [9, 12, 16, 10004])
@pytest.mark.parametrize("code", [80877103, 80877104])
def test_p3_a_request_for_encryption_has_eight_bytes_or_is_refused(length, code):
    """A PostgreSQL 18 server takes more; two readers would then differ on where the TLS begins."""
    assert parse_start(start(length, code)) is PostgresStart.MALFORMED
    assert sniff_postgres(start(length, code)) == Sniffed("postgres", problem="malformed PostgreSQL start-up request")


@pytest.mark.parametrize(("length", "accepted"), [(8, False), (12, False), (15, False), (16, True), (268, True), (269, False)])
def test_p8_cancel_requests_have_a_key_of_4_to_256_bytes(length, accepted):
    kind = PostgresStart.CANCEL_REQUEST if accepted else PostgresStart.MALFORMED
    assert parse_start(start(length, 80877102)) is kind


def test_p3_unknown_requests_are_malformed():
    assert parse_start(start(8, 1234 << 16 | 5681)) is PostgresStart.MALFORMED


@pytest.mark.parametrize("length", [0, 4, 7, 10005, 0xFFFF])
def test_p9_impossible_lengths_are_refused_at_the_fourth_byte(length):
    data = start(length, 196608)
    assert parse_start(data) is Hint.NOT_MINE
    assert decided_at(parse_start, data) == 4


@pytest.mark.parametrize("length", [8, 10004])
def test_p9_the_lengths_at_the_bounds_are_possible(length):
    assert parse_start(start(length, 196608)) is PostgresStart.STARTUP


@pytest.mark.parametrize("data", [b"\x16", b"G", b"\xff", b"\x00\x01", b"\x00\x10\x00\x00"])
def test_other_first_bytes_are_not_postgres(data):
    assert parse_start(data) is Hint.NOT_MINE


@pytest.mark.parametrize("code", [0, 1 << 16, 4 << 16, 0xFFFFFFFF])
def test_unknown_codes_are_not_postgres(code):
    assert parse_start(start(20, code)) is Hint.NOT_MINE


@given(st.binary(max_size=12) | st.builds(start, st.integers(0, 20000), st.integers(0, 0xFFFFFFFF)))
def test_p9_answers_are_final(data):
    if outcome(sniff_postgres, data) is not Hint.NEED_MORE:
        decided_at(sniff_postgres, data)


def fields(response: bytes) -> dict[str, str]:
    assert response[:1] == b"E"
    assert int.from_bytes(response[1:5], "big") == len(response) - 1
    assert response.endswith(b"\0\0")
    return {part[:1].decode(): part[1:].decode() for part in response[5:-2].split(b"\0")}


def test_p4_error_response():
    assert fields(error_response("not allowed", hint="ask for ü")) == {
        "S": "FATAL", "V": "FATAL", "C": "28000", "M": "not allowed", "H": "ask for ü",
    }  # fmt: skip
    assert "H" not in fields(error_response("not allowed", code="08004"))
    assert fields(error_response("not allowed", code="08004"))["C"] == "08004"


def test_p4_a_text_with_nul_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="NUL"):
        error_response("a\0Cforged")
