from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.wire import socks5
from sbxproxy.wire.result import Hint
from sbxproxy.wire.socks5 import Greeting, Reply, Socks5Error, SocksRequest, UserPass
from support.finality import decided_at, outcome


def named(name: bytes, port: int = 443, command: int = 1) -> bytes:
    return bytes((5, command, 0, 3, len(name))) + name + struct.pack(">H", port)


def addressed(text: str, port: int = 443, command: int = 1) -> bytes:
    address = IPv6Address(text) if ":" in text else IPv4Address(text)
    kind = 4 if ":" in text else 1
    return bytes((5, command, 0, kind)) + address.packed + struct.pack(">H", port)


VALID = {
    "greeting": (socks5.parse_greeting, b"\5\2\0\2", Greeting(b"\0\2", 4)),
    "userpass": (socks5.parse_userpass, b"\1\4user\3pwd", UserPass(b"user", b"pwd", 10)),
    "empty-password": (socks5.parse_userpass, b"\1\5token\0", UserPass(b"token", b"", 8)),
    "longest": (socks5.parse_userpass, b"\1\xff" + b"u" * 255 + b"\xff" + b"p" * 255, UserPass(b"u" * 255, b"p" * 255, 513)),
    "name": (socks5.parse_request, named(b"A.Example."), SocksRequest(1, "a.example", 443, 17)),
    "v4": (socks5.parse_request, addressed("192.0.2.1", 1), SocksRequest(1, IPv4Address("192.0.2.1"), 1, 10)),
    "v6": (socks5.parse_request, addressed("2001:db8::1"), SocksRequest(1, IPv6Address("2001:db8::1"), 443, 22)),
    "mapped": (socks5.parse_request, addressed("::ffff:192.0.2.1"), SocksRequest(1, IPv4Address("192.0.2.1"), 443, 22)),
    "v4-as-name": (socks5.parse_request, named(b"192.0.2.1"), SocksRequest(1, IPv4Address("192.0.2.1"), 443, 16)),
    "v6-as-name": (socks5.parse_request, named(b"::ffff:192.0.2.1"), SocksRequest(1, IPv4Address("192.0.2.1"), 443, 23)),
    "bind": (socks5.parse_request, addressed("0.0.0.0", 0, 2), SocksRequest(2, IPv4Address("0.0.0.0"), 0, 10)),
    "udp": (socks5.parse_request, addressed("::", 0, 3), SocksRequest(3, IPv6Address("::"), 0, 22)),
}  # fmt: skip


@pytest.mark.parametrize("name", VALID)
def test_messages_are_undecided_until_whole_and_end_where_they_say(name):
    parse, data, expected = VALID[name]
    assert parse(data) == expected
    assert expected.size == len(data) == decided_at(parse, data)
    assert parse(data + b"early data") == expected


REFUSED = {
    "socks4": (socks5.parse_greeting, b"\4\1\0\x50", 1, Reply.GENERAL_FAILURE),
    "no-method": (socks5.parse_greeting, b"\5\0", 2, Reply.GENERAL_FAILURE),
    "userpass-version": (socks5.parse_userpass, b"\5\1u\1p", 1, Reply.GENERAL_FAILURE),
    "no-user": (socks5.parse_userpass, b"\1\0\1p", 2, Reply.GENERAL_FAILURE),
    "request-version": (socks5.parse_request, b"\4" + named(b"a.example")[1:], 1, Reply.GENERAL_FAILURE),
    "reserved": (socks5.parse_request, b"\5\1\1\3\1a\0\1", 3, Reply.GENERAL_FAILURE),
    "address-type": (socks5.parse_request, b"\5\1\0\2aaaa\0\1", 4, Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    "port-0": (socks5.parse_request, named(b"a.example", 0), 16, Reply.GENERAL_FAILURE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_messages_are_refused_by_the_byte_that_shows_it(name):
    parse, data, expected, code = REFUSED[name]
    with pytest.raises(Socks5Error) as caught:
        parse(data)
    assert caught.value.reply is code
    assert decided_at(parse, data) == expected


@pytest.mark.parametrize("name", [b"localhost\0.allowed.example", b"allowed.example\0", b"\0allowed.example", b"\0"])
def test_n7_a_name_with_nul_is_not_allowed(name):
    """The length byte counts NUL like any other; a resolver stops there and finds localhost."""
    with pytest.raises(Socks5Error) as caught:
        socks5.parse_request(named(name))
    assert caught.value.reply is Reply.NOT_ALLOWED
    assert caught.value.reason == "bad-name"
    assert "allowed.example" not in str(caught.value)


@pytest.mark.parametrize("name", [b"", b"a..b", b"a b", b"x" * 64, b"\xff.example", b"[::1]", b"a.example:443", b"a" * 255])
def test_n8_n9_n12_what_is_no_name_is_not_allowed(name):
    with pytest.raises(Socks5Error) as caught:
        socks5.parse_request(named(name))
    assert caught.value.reply is Reply.NOT_ALLOWED


@pytest.mark.parametrize("name", [b"127.1", b"2130706433", b"0x7f.1", b"127.0.0.1.", b"fe80::1%lo", b"::1%1"])
def test_n10_n11_loose_spellings_of_addresses_are_not_allowed(name):
    with pytest.raises(Socks5Error) as caught:
        socks5.parse_request(named(name))
    assert caught.value.reply is Reply.NOT_ALLOWED


@given(st.sampled_from([parse for parse, *_ in VALID.values()]), st.binary(max_size=40))
def test_n7_answers_are_final_for_any_bytes(parse, data):
    data = bytes((1 if parse is socks5.parse_userpass else 5,)) + data
    if outcome(parse, data) is not Hint.NEED_MORE:
        decided_at(parse, data)


def test_credentials_are_not_printed():
    assert "user" not in repr(UserPass(b"user", b"pwd", 10)).replace("UserPass", "")
    assert "pwd" not in repr(UserPass(b"user", b"pwd", 10))


def test_replies():
    assert socks5.method_reply(socks5.METHOD_NONE) == b"\5\0"
    assert socks5.method_reply(socks5.METHOD_PASSWORD) == b"\5\2"
    assert socks5.method_reply(socks5.METHOD_REFUSED) == b"\5\xff"
    assert socks5.auth_reply(ok=True) == b"\1\0"
    assert socks5.auth_reply(ok=False) == b"\1\1"
    assert socks5.reply(Reply.SUCCEEDED) == bytes.fromhex("05000001000000000000")
    assert socks5.reply(Reply.NOT_ALLOWED) == bytes.fromhex("05020001000000000000")


def test_reply_codes_are_numbered_in_the_order_of_the_rfc():
    assert [code.name for code in sorted(Reply)] == [
        "SUCCEEDED", "GENERAL_FAILURE", "NOT_ALLOWED", "NETWORK_UNREACHABLE", "HOST_UNREACHABLE", "CONNECTION_REFUSED",
        "TTL_EXPIRED", "COMMAND_NOT_SUPPORTED", "ADDRESS_TYPE_NOT_SUPPORTED",
    ]  # fmt: skip
    assert sorted(Reply) == list(range(9))
