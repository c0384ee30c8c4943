from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.errors import ClientProtocolError
from sbxproxy.wire.proxy_protocol import (
    MAX_BODY,
    SIGNATURE,
    ProxyHeader,
    build_local,
    build_proxy,
    crc32c,
    parse_proxy_header,
)
from sbxproxy.wire.result import Hint
from support.finality import decided_at, outcome

V4 = (IPv4Address("192.0.2.1"), 50000), (IPv4Address("198.51.100.2"), 443)
V6 = (IPv6Address("2001:db8::1"), 50000), (IPv6Address("2001:db8::2"), 443)
MIXED = (IPv6Address("2001:db8::1"), 0), (IPv4Address("198.51.100.2"), 65535)
TLVS = [(0x02, b"a.example"), (0x04, b""), (0x05, b"id" * 40), (0xEA, b"\1vpce-1")]


def header(command: int = 0x21, family: int = 0x11, body: bytes = bytes(12), length: int | None = None) -> bytes:
    return SIGNATURE + bytes((command, family)) + (len(body) if length is None else length).to_bytes(2, "big") + body


def refused(data: bytes) -> str:
    with pytest.raises(ClientProtocolError) as caught:
        parse_proxy_header(data)
    assert caught.value.reason == "bad-request"
    return str(caught.value)


def test_d15_the_bytes_of_a_header():
    """Written out once by hand, so that builder and parser can't be wrong together."""
    data = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c c0000201 c6336402 c350 01bb")
    assert parse_proxy_header(data) == ProxyHeader(*V4, size=28)
    assert build_proxy(*V4) == data


@pytest.mark.parametrize("ends", [V4, V6, MIXED], ids=["v4", "v6", "mixed"])
@pytest.mark.parametrize("tlvs", [[], TLVS], ids=["bare", "tlvs"])
@pytest.mark.parametrize("checksum", [False, True])
def test_d15_headers_are_undecided_until_whole(ends, tlvs, checksum):
    data = build_proxy(*ends, tlvs=tlvs, checksum=checksum)
    assert parse_proxy_header(data + b"\x16\x03\x01") == ProxyHeader(*ends, size=len(data))
    assert decided_at(parse_proxy_header, data) == len(data)


def test_d15_local_says_nothing_about_anyone():
    """The sender's own health checks; what its header holds must not be looked at."""
    assert parse_proxy_header(build_local()) == ProxyHeader(None, None, 16)
    odd = header(command=0x20, family=0x31, body=b"\xff" * 7)
    assert parse_proxy_header(odd) == ProxyHeader(None, None, 23)
    assert decided_at(parse_proxy_header, odd) == 23


def test_d15_an_unspecified_family_says_nothing_either():
    data = header(family=0x00, body=b"\xff" * 7)
    assert parse_proxy_header(data) == ProxyHeader(None, None, 23)
    assert decided_at(parse_proxy_header, data) == 23


@pytest.mark.parametrize("command", [0x11, 0x22, 0x2F, 0x00, 0xFF])
def test_d15_other_versions_and_commands_are_refused_at_their_byte(command):
    refused(header(command=command))
    assert decided_at(parse_proxy_header, header(command=command)) == 13


@pytest.mark.parametrize("family", [0x12, 0x22, 0x31, 0x32, 0x10, 0x01, 0xFF])
def test_d15_what_is_not_tcp_is_refused(family):
    refused(header(family=family, body=bytes(216)))
    assert decided_at(parse_proxy_header, header(family=family)) == 16


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\r\n",
        b"\r\n\r\n\0\r\nQUIX\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
    ],
)
def test_d15_anything_else_is_refused_at_the_first_byte_that_differs(data):
    refused(data)
    same = next(index for index, byte in enumerate(data) if byte != SIGNATURE[index])
    assert decided_at(parse_proxy_header, data) == same + 1


@pytest.mark.parametrize(("family", "short"), [(0x11, 11), (0x21, 35), (0x21, 12)])
def test_d15_a_length_too_short_for_the_addresses_is_refused(family, short):
    refused(header(family=family, body=bytes(short)))


def test_d15_an_endless_header_is_refused_at_its_length():
    assert "too long" in refused(header(body=b"", length=MAX_BODY + 1))
    assert parse_proxy_header(header(body=b"", length=MAX_BODY)) is Hint.NEED_MORE


@pytest.mark.parametrize("tail", [b"\x04", b"\x04\0", b"\x04\0\1", b"\x04\0\0\x04\xff\xff"])
def test_d15_tlvs_that_overrun_are_refused(tail):
    assert "cut off" in refused(header(body=bytes(11) + b"\1" + tail))


def test_d15_the_checksum_is_checked():
    good = build_proxy(*V4, tlvs=TLVS, checksum=True)
    type_byte = len(good) - 7  # changed, it is no checksum any more, and none is demanded
    for position in {*range(16, len(good))} - {type_byte}:
        bad = bytearray(good)
        bad[position] ^= 0x10
        with pytest.raises(ClientProtocolError):
            parse_proxy_header(bytes(bad))


@pytest.mark.parametrize("tlv", [b"\3\0\3abc", b"\3\0\4abcd\3\0\4abcd", b"\3\0\0"])
def test_d15_a_checksum_of_another_shape_is_refused(tlv):
    assert "malformed checksum" in refused(header(body=bytes(11) + b"\1" + tlv))


def test_d15_destination_port_0_is_refused():
    assert "port" in refused(build_proxy(V4[0], (V4[1][0], 0)))


def test_d15_mapped_addresses_are_unwrapped():
    """A rule about an IPv4 range must hold for both spellings."""
    data = build_proxy((IPv6Address("::ffff:192.0.2.1"), 1), (IPv6Address("::ffff:10.0.0.1"), 2))
    assert data[13] == 0x21
    assert parse_proxy_header(data).destination == (IPv4Address("10.0.0.1"), 2)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_crc32c_vectors(data, expected):
    """RFC 3720 appendix B.4, whose bytes are in little-endian order."""
    assert crc32c(data) == expected


@given(st.binary(max_size=60))
def test_d15_answers_are_final_for_any_bytes(rest):
    data = SIGNATURE + b"\x21\x11\0" + rest
    if outcome(parse_proxy_header, data) is not Hint.NEED_MORE:
        decided_at(parse_proxy_header, data)
