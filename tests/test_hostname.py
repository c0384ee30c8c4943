"""One canonical form for names, made from bytes that an attacker chose."""

import re
from string import ascii_lowercase, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.hostname import MAX_NAME, canonical_hostname

LABEL = st.text(ascii_lowercase + digits + "_-", min_size=1, max_size=63)


def longest() -> bytes:
    """253 bytes in labels of 63."""
    name = b".".join([b"a" * 63] * 3 + [b"a" * 61])
    assert len(name) == MAX_NAME
    return name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"api.example.com", "api.example.com"),
        (b"API.Example.COM", "api.example.com"),
        (b"example.com.", "example.com"),
        (b"_dmarc.ex-ample.com", "_dmarc.ex-ample.com"),
        (b"localhost", "localhost"),
        (b"xn--e1afmkfd.example", "xn--e1afmkfd.example"),
        (b"1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
        (b"a.0xzz", "a.0xzz"),
        (b"3com", "3com"),
        (b"a" * 63 + b".com", "a" * 63 + ".com"),
    ],
)
def test_n4_n5_names_become_canonical(raw: bytes, name: str):
    """Case and one trailing dot make no difference; bytes and text come out the same."""
    assert canonical_hostname(raw) == name
    assert canonical_hostname(raw.decode()) == name


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"..",
        b".example.com",
        b"a..b",
        b"example.com..",
        b"a" * 64 + b".com",
        b"a b.example.com",
        b"a.example.com\r\nX: y",
        b"a.example.com\n",
        b"a%00.example.com",
        b"a/b.example.com",
        b"a@b.example.com",
        b"a#.example.com",
        b"a\\b.example.com",
        b"*.example.com",
        b"a,b.example.com",
    ],
)
def test_n8_what_is_no_name_is_refused(raw: bytes):
    """Everything outside the grammar is no name, rather than a name with something in it."""
    assert canonical_hostname(raw) is None


@pytest.mark.parametrize("raw", [b"localhost\0.example.com", b"localhost\0", b"\0", b"attacker\0.google.com"])
def test_n7_nul_is_refused(raw: bytes):
    """The C library's resolver stops at a NUL, so the policy would see another name than the network."""
    assert canonical_hostname(raw) is None
    assert canonical_hostname(raw.decode()) is None


@pytest.mark.parametrize("raw", ["\u212aelvin.com", "İstanbul.com", "faß.de", "пример.example", "ｅxample.com"])
def test_n4_n6_non_ascii_is_refused_not_folded(raw: str):
    """U+212A lower-cases to an ASCII k: the fold must not see it."""
    assert canonical_hostname(raw) is None
    assert canonical_hostname(raw.encode()) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"[example.com]",
        b"[::1]",
        b"::1",
        b"fe80::1%lo",
        b"::ffff:1.2.3.4%x.allowed.com",
        b"127.0.0.1",
        b"127.0.0.1.",
    ],
)
def test_n9_n10_brackets_and_literals_are_no_names(raw: bytes):
    """An address never matches a domain, so it is never a name."""
    assert canonical_hostname(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"2130706433",
        b"0x7f.1",
        b"127.1",
        b"0x7f000001",
        b"0x",
        b"a.0X7F",
        b"example.123",
        b"0177.0.0.1",
        "①27.0.0.1",
        "127。0。0。1",
    ],
)
def test_n11_numeric_spellings_are_no_names(raw: bytes | str):
    """The C library takes each of these for 127.0.0.1."""
    assert canonical_hostname(raw) is None


@pytest.mark.parametrize("raw", [b"evil.com:443.allowed.com", b"allowed.com@evil.com", b"example.com:443"])
def test_n12_ports_and_user_names_are_no_part_of_a_name(raw: bytes):
    """They belong to an authority, which other code takes apart."""
    assert canonical_hostname(raw) is None


def test_the_longest_name_and_one_more():
    """253 bytes pass, with or without the dot; 254 don't."""
    assert canonical_hostname(longest()) is not None
    assert canonical_hostname(longest() + b".") is not None
    assert canonical_hostname(longest() + b"a") is None
    assert canonical_hostname(longest() + b"..") is None


def test_n13_length_is_checked_before_anything_is_copied():
    """Megabytes cost nothing: a subclass that counts sees no other call than the length's."""

    class Watched(bytes):
        def lower(self):
            raise AssertionError("looked at the content")

    assert canonical_hostname(Watched(60_000)) is None
    assert canonical_hostname("é" * 60_000) is None


@given(st.binary(max_size=300))
def test_n8_any_bytes_give_nothing_or_a_fixed_point(raw: bytes):
    """What comes out goes in unchanged, holds only permitted characters and differs from the input by case and dot."""
    name = canonical_hostname(raw)
    if name is not None:
        assert canonical_hostname(name) == name
        assert re.fullmatch(r"[a-z0-9_.-]{1,253}", name)
        assert raw.lower() in {name.encode(), name.encode() + b"."}


@given(st.lists(LABEL, min_size=1, max_size=8).map(".".join))
def test_names_by_the_grammar_pass(name: str):
    """A name of good labels passes unless it is too long or ends in a number."""
    last = name.rpartition(".")[2]
    numeric = last.isdigit() or re.fullmatch("0x[0-9a-f]*", last) is not None
    expected = None if numeric or len(name) > MAX_NAME else name
    assert canonical_hostname(name.upper()) == expected
