from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.errors import ClientProtocolError
from sbxproxy.hostname import canonical_hostname
from sbxproxy.wire.authority import AbsoluteTarget, parse_absolute_target, parse_authority, parse_host


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a.example:443", ("a.example", 443)),
        (b"A.EXAMPLE.:1", ("a.example", 1)),
        (b"a.example:65535", ("a.example", 65535)),
        (b"a.example:00080", ("a.example", 80)),
        (b"1.2.3.4:443", (IPv4Address("1.2.3.4"), 443)),
        (b"[2001:DB8::1]:443", (IPv6Address("2001:db8::1"), 443)),
        (b"[::ffff:1.2.3.4]:443", (IPv4Address("1.2.3.4"), 443)),
    ],
)
def test_host_and_port(raw, expected):
    assert parse_authority(raw) == expected


@pytest.mark.parametrize("raw", [b"a.example", b"1.2.3.4", b"[::1]"])
def test_the_port_may_be_left_out_where_there_is_a_default(raw):
    assert parse_authority(raw, 443)[1] == 443
    assert parse_authority(raw + b":80", 443)[1] == 80
    with pytest.raises(ClientProtocolError) as caught:
        parse_authority(raw)
    assert caught.value.reason == "bad-request"


@pytest.mark.parametrize("raw", [b"a\0b.example:443", b"localhost\0.a.example:443", b"\0:443"])
def test_n7_nul_is_refused(raw):
    """The C library's resolver reads a name up to its NUL, a matcher all of it."""
    with pytest.raises(ClientProtocolError) as caught:
        parse_authority(raw)
    assert caught.value.reason == "bad-name"


@pytest.mark.parametrize(
    "host",
    [b"", b"a..b", b".", b"x" * 64 + b".example", b"a." * 130 + b"b", b"a b", b"a\r\nb", b"a%00b", b"a/b", b"a#b", b"a\\b", b"\xe4.example"],
)  # fmt: skip
def test_n8_what_is_no_name_is_refused(host):
    with pytest.raises(ClientProtocolError):
        parse_authority(host + b":443")


@pytest.mark.parametrize(
    "raw",
    [b"[a.example]:443", b"[1.2.3.4]:443", b"[]:443", b"[::1:443", b"::1]:443", b"::1", b"[[::1]]:443", b"x[::1]:443", b"[::1]x:443", b"[\xff::1]:443"],
)  # fmt: skip
def test_n9_brackets_stand_round_ipv6_and_nothing_else(raw):
    with pytest.raises(ClientProtocolError):
        parse_authority(raw)


@pytest.mark.parametrize(
    "raw", [b"[fe80::1%lo]:443", b"[::ffff:1.2.3.4%25x.allowed.example]:443", b"[::1%]:443", b"1.2.3.4%1:443"]
)
def test_n10_zone_ids_are_refused(raw):
    with pytest.raises(ClientProtocolError) as caught:
        parse_authority(raw)
    assert caught.value.reason == "bad-name"


@pytest.mark.parametrize(
    "host",
    [b"127.1", b"2130706433", b"0x7f.1", b"0x7f000001", b"0177.0.0.1", b"127.0.0.01", b"1.2.3.4.5", b"a.example.7",
     "\u246027.0.0.1".encode(), "127\u30020\u30020\u30021".encode(), b"1.2.3.256", b"+1.2.3.4", b" 1.2.3.4", b"1.2.3.4."],
)  # fmt: skip
def test_n11_other_spellings_of_addresses_are_refused(host):
    """A resolver takes most of these for 127.0.0.1."""
    with pytest.raises(ClientProtocolError) as caught:
        parse_authority(host + b":443")
    assert caught.value.reason == "bad-name"


@pytest.mark.parametrize(
    "raw",
    [
        b"evil.example:443.allowed.example", b"allowed.example@evil.example:443", b"a:b@evil.example:443",
        b"a.example,b.example:443", b"a.example:443,b.example:443", b"a.example:443:443", b"a.example:",
        b"a.example:0", b"a.example:65536", b"a.example:99999", b"a.example:000443", b"a.example:+443",
        b"a.example:-1", b"a.example: 443", b"a.example:443 ", b" a.example:443", b"a.example:44\xb2",
        b"a.example:443\n", b"a.example:0x1bb", b"a.example:4_3", b"", b":", b":443",
    ],
)  # fmt: skip
def test_n12_host_then_colon_then_digits_then_the_end(raw):
    with pytest.raises(ClientProtocolError) as caught:
        parse_authority(raw, 443)
    assert caught.value.status == 400


@given(st.binary(max_size=30) | st.text("ab.:[]0129%@,xX-_ ", max_size=30).map(str.encode))
def test_n12_whatever_is_accepted_is_written_back_the_same(raw):
    try:
        host, port = parse_authority(raw, 443)
    except ClientProtocolError:
        return
    written = f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"
    assert parse_authority(written.encode()) == (host, port)
    assert isinstance(host, IPv4Address | IPv6Address) or canonical_hostname(host) == host


def test_hosts_without_a_port():
    assert parse_host(b"A.example.") == "a.example"
    assert parse_host(b"::1") == IPv6Address("::1")
    assert parse_host(b"[::1]") is None
    assert parse_host(b"\xff") is None
    assert parse_host(b"127.1") is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://a.example/x?y", AbsoluteTarget("http", "a.example", 80, b"/x?y")),
        (b"HTTPS://A.example.:8443/x//y", AbsoluteTarget("https", "a.example", 8443, b"/x//y")),
        (b"https://a.example", AbsoluteTarget("https", "a.example", 443, b"/")),
        (
            b"http://a.example?q=http://b.example/",
            AbsoluteTarget("http", "a.example", 80, b"/?q=http://b.example/"),
        ),
        (b"http://[::1]:8080/", AbsoluteTarget("http", IPv6Address("::1"), 8080, b"/")),
    ],
)
def test_h8_absolute_targets(target, expected):
    assert parse_absolute_target(target) == expected


@pytest.mark.parametrize(
    "target",
    [b"/", b"*", b"a.example:443", b"http:/a.example/", b"http:a", b"ftp://a.example/", b"h2c://a.example/", b"http://", b"http:///x",
     b"http://?x", b"http://u:p@a.example/", b"http://a.example:/", b"http://a.example/#x", b"http://a.example#x", b"http://a.example\\@b.example/"],
)  # fmt: skip
def test_h8_other_targets_are_refused(target):
    with pytest.raises(ClientProtocolError) as caught:
        parse_absolute_target(target)
    assert caught.value.status == 400
