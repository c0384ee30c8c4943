"""Ranges as integers are the ranges that ``ipaddress`` has as objects."""

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.address import PrefixTable, parse_address, parse_network
from sbxproxy.ranges import IPNetwork, network_of, parse_span, sorted_spans, span_of, v4_number

v4 = st.builds(lambda number, prefix: IPv4Network((number, prefix), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32))
v6 = st.builds(
    lambda number, prefix: IPv6Network((number, prefix), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
)
ranges = (v4 | v6).filter(lambda network: network.version == 4 or network.network_address.ipv4_mapped is None)


@given(network=ranges)
def test_a_range_is_the_same_as_integer_and_text(network: IPNetwork):
    assert network_of(span_of(network)) == network
    assert parse_span(str(network)) == span_of(network)
    assert parse_network(str(network)) == network


@pytest.mark.parametrize(
    ("text", "network"), [("10.0.0.1", "10.0.0.1/32"), ("::1", "::1/128"), ("::ffff:10.0.0.0/104", "10.0.0.0/8")]
)
def test_other_forms_are_read_as_what_they_mean(text: str, network: str):
    assert network_of(parse_span(text)) == ip_network(network)


def test_d1_a_mapped_range_is_one_of_ipv4():
    """A range that holds more than the mapped addresses isn't."""
    assert span_of(IPv6Network("::ffff:0:0/96")) == span_of(IPv4Network("0.0.0.0/0"))
    assert network_of(span_of(IPv6Network("::/80"))) == IPv6Network("::/80")


@given(text=st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{0,3})?\Z") | st.text("0123456789./:%٨ ", max_size=20))
def test_d13_the_short_way_accepts_what_the_library_does(text: str):
    """Text that only looks like the usual form is looked at closely."""
    try:
        span = parse_span(text)
    except ValueError:
        return
    assert network_of(span) == ip_network(text) or network_of(span).version == 4 != ip_network(text).version


octets = st.integers(0, 300).map(str) | st.sampled_from(["", "00", "01", "+1", " 1", "1_0", "٨", "-1", "a"])


@given(text=st.lists(octets, min_size=3, max_size=5).map(".".join))
def test_d13_an_address_is_read_as_the_library_does(text: str):
    """Which takes longer for it."""
    try:
        expected = int(IPv4Address(text))
    except ValueError:
        expected = None
    assert v4_number(text) == expected
    assert parse_address(text) == (None if expected is None else IPv4Address(expected))


@given(listed=st.lists(ranges, max_size=20))
def test_sorted_they_come_by_first_address_the_largest_first(listed: list[IPNetwork]):
    found = sorted_spans([span_of(network) for network in listed])
    for version, triples in zip((4, 6), found, strict=True):
        networks = [network for network in listed if network.version == version]
        expected = [(int(network[0]), int(network[-1]), span_of(network)) for network in networks]
        assert list(triples) == sorted(expected, key=lambda triple: (triple[0], -triple[1]))


@pytest.mark.parametrize("mixed", [False, True])
def test_more_than_are_sorted_at_once_are_in_order_all_the_same(mixed):
    """Pieces that are in order already are put one behind the other, others are merged."""
    texts = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(0, 20_000, 2)]
    if mixed:
        random.Random(1).shuffle(texts)
    spans = [parse_span(text) for text in texts]
    assert [span for _, _, span in sorted_spans(spans)[0]] == sorted(spans)
    table = PrefixTable(spans)
    for number in range(0, 20_000, 97):
        address = parse_address(f"10.{number >> 8}.{number & 255}.9")
        assert address is not None
        expected = IPv4Network(f"10.{number >> 8}.{number & 255}.0/24") if number % 2 == 0 else None
        assert table.find(address) == expected


def test_a_table_takes_integers_and_objects_and_gives_objects():
    """The same object again: who asks twice needn't wait for it twice."""
    table = PrefixTable([parse_span("10.0.0.0/8"), IPv4Network("11.0.0.0/8")])
    assert table.networks == (IPv4Network("10.0.0.0/8"), IPv4Network("11.0.0.0/8"))
    address = parse_address("10.1.1.1")
    assert address is not None
    assert table.find(address) is table.find(address)
