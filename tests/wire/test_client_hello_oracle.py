"""OpenSSL as the judge: whatever name we report, it reports too, or it refuses the hello. Anything else is a way round a policy."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.wire.tls import ClientHello, parse_client_hello
from support import hello as h
from support.openssl_sni import REFUSED, pyopenssl_name, stdlib_name

CAPTURED = sorted((Path(__file__).parents[1] / "data" / "hellos").glob("*.bin"))
LETTERS = string.ascii_lowercase + string.digits + "-_"
names = st.text(LETTERS, min_size=1, max_size=20).map(lambda text: f"{text}.example".encode())


def agrees(data: bytes) -> bool:
    """Fail if OpenSSL takes another name than we do; tell whether all three took the hello."""
    ours = parse_client_hello(data)
    if not isinstance(ours, ClientHello):
        return False
    theirs = pyopenssl_name(data)
    assert theirs in (ours.server_name, REFUSED)
    if ours.server_name is not None and not ours.server_name.isascii():
        return False  # Python can't hand such a name to the callback; it refuses, and prints that it did
    text = stdlib_name(data)
    expected = None if ours.server_name is None else ours.server_name.decode()
    assert text in (expected, REFUSED)
    return REFUSED not in (theirs, text)


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_t10_openssl_reads_the_same_name_in_captured_hellos(path):
    assert agrees(path.read_bytes())


@given(name=names, protocols=st.lists(st.sampled_from([b"h2", b"http/1.1"]), max_size=2), share=st.booleans())
def test_t11_the_builder_makes_hellos_that_openssl_takes(name, protocols, share):
    """Otherwise the mutations below would prove nothing."""
    assert agrees(h.records(h.client_hello(name, protocols=tuple(protocols), share=share)))


@given(cuts=st.lists(st.integers(1, 250), max_size=6))
def test_t8_openssl_reads_the_same_name_across_records(cuts):
    assert agrees(h.records_at(h.client_hello("a.example.com"), cuts))


def test_t5_openssl_agrees_that_there_is_no_name():
    assert agrees(h.records(h.client_hello(None)))


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_t11_whatever_name_a_mutated_hello_yields_openssl_yields_it_too(data):
    extra = data.draw(
        st.sampled_from([b"", h.server_name(b"evil.example"), h.extension(0x0A0A, b"\0"), h.extension(41, b"\0\0")])
    )
    name = data.draw(names | st.none())
    message = h.client_hello(name, protocols=(b"h2",), extra=extra, session_id=b"s" * 32)
    raw = bytearray(h.records_at(message, data.draw(st.lists(st.integers(1, len(message)), max_size=3))))
    # Most of a hello is random or opaque: aim at the structure as often as at the rest.
    anywhere = st.integers(0, len(raw) - 1)
    header = st.integers(0, 140)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(anywhere | header)
        raw[position] = data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 3, 0xFF, raw[position] ^ 1]))
    agrees(bytes(raw))


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(CAPTURED), data=st.data())
def test_t11_the_same_for_captured_hellos(path, data):
    raw = bytearray(path.read_bytes())
    at = raw.index(b"hello.example")
    near = st.integers(max(0, at - 12), min(len(raw) - 1, at + 16))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(near | st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    agrees(bytes(raw))
