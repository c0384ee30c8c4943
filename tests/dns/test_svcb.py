"""HTTPS records without what leads around the proxy, or nowhere."""

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.dns.svcb import fit_svcb


def fit(text, *, closed=(), resolves=("alt.example.com",), ipv6=True):
    rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.HTTPS, text).to_wire()
    found = fit_svcb(
        rdata, may_dial=lambda address: str(address) not in closed, may_resolve=lambda name: name in resolves, ipv6=ipv6
    )
    if found is None:
        return None
    return dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.HTTPS, found, 0, len(found)).to_text()


ECH = "ech=AEX+DQBBtAAgACCPLEEvoMWbG0GAQ5mY1JhHtgRPBEmJhHvyRY6lRL4fWwAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 .", "1 ."),
        ('1 . alpn="h2"', '1 . alpn="h2"'),
        (f'1 . alpn="h2" {ECH}', '1 . alpn="h2"'),
        (f"1 . mandatory=ech {ECH}", "1 ."),
        (f'1 . mandatory="alpn,ech" alpn="h2" {ECH}', '1 . mandatory="alpn" alpn="h2"'),
        ('1 . alpn="h3,h2,h3-29"', '1 . alpn="h2"'),
        ('1 . alpn="h3"', "1 ."),  # HTTP/1.1 is offered too, unless it says that it isn't
        ('1 . alpn="h3" no-default-alpn', None),
        ('1 . alpn="h2,h3" no-default-alpn', '1 . alpn="h2" no-default-alpn'),
        ('1 . mandatory="alpn" alpn="h3"', "1 ."),
        ('1 . port="8443" ipv4hint="192.0.2.1,10.0.0.1"', '1 . port="8443" ipv4hint="192.0.2.1"'),
        ('1 . ipv4hint="10.0.0.1"', "1 ."),
        ('1 . mandatory="ipv4hint,port" port="1" ipv4hint="10.0.0.1"', '1 . mandatory="port" port="1"'),
        ('1 . ipv6hint="2001:db8::1,fd00::1"', '1 . ipv6hint="2001:db8::1"'),
        ('1 . key65000="abc"', '1 . key65000="abc"'),
        ("0 alt.example.com.", "0 alt.example.com."),
        ("0 evil.example.com.", None),
        ('1 ALT.example.com. alpn="h2"', '1 ALT.example.com. alpn="h2"'),
        ('1 evil.example.com. alpn="h2"', None),
        (r"1 a\000.example.com.", None),
    ],
)
def test_r10_b8_a_record_is_made_fit(text, expected):
    assert fit(text, closed=["10.0.0.1", "fd00::1"]) == expected


def test_without_ipv6_there_are_no_hints_of_it():
    assert fit('1 . ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"', ipv6=False) == '1 . ipv4hint="192.0.2.1"'


@given(
    st.dictionaries(st.sampled_from([3, 7, 100]), st.binary(max_size=9).filter(lambda value: len(value) == 2), max_size=3),
    st.booleans(),
)
def test_r10_other_keys_stay_as_they_are_and_in_order(others, with_ech):
    params = dict(others)
    if with_ech:
        params[5] = b"\0\2xx"
    head = b"\0\1\0"

    def written(params):
        return head + b"".join(key.to_bytes(2) + len(value).to_bytes(2) + value for key, value in sorted(params.items()))

    found = fit_svcb(written(params), may_dial=lambda _: True, may_resolve=lambda _: True, ipv6=True)
    assert found == written(others)
