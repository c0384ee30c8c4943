"""Addresses: read strictly, classified by an own table, seen in all their forms."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.address import (
    AddressClass,
    IPNetwork,
    PrefixTable,
    classify,
    embedded_ipv4,
    forms,
    is_public,
    parse_address,
    parse_network,
    unmapped,
)

C = AddressClass


@pytest.mark.parametrize("text", ["1.2.3.4", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::1", "2606:4700::1111"])
def test_addresses_are_read(text: str):
    """The ordinary spellings."""
    assert parse_address(text) == ip_address(text)


def test_d1_mapped_addresses_are_unwrapped():
    """However it is written, it is the IPv4 address that gets dialled."""
    for text in ("::ffff:10.0.0.1", "::FFFF:a00:1", "0:0:0:0:0:ffff:10.0.0.1", "0000:0000::ffff:0a00:0001"):
        assert parse_address(text) == IPv4Address("10.0.0.1")
    assert parse_address("::ffff:010.0.0.1") is None
    assert unmapped(IPv6Address("::ffff:10.0.0.1")) == IPv4Address("10.0.0.1")
    assert unmapped(IPv6Address("::fffe:10.0.0.1")) == IPv6Address("::fffe:10.0.0.1")


@pytest.mark.parametrize(
    "text",
    [
        "", " 1.2.3.4", "1.2.3.4 ", "1.2.3.4\n", "1.2.3", "127.1", "2130706433", "0x7f.0.0.1", "010.0.0.1", "1.2.3.4.5", "1.2.3.256",
        "[::1]", "::1/128", "1.2.3.4/32", ":::", "::g", "12345::", "①27.0.0.1", "127。0。0。1", "1.2.3.4:80", "1" * 10_000, ":" * 10_000,
    ],
)  # fmt: skip
def test_n11_other_spellings_are_no_addresses(text: str):
    """What the C library would guess at isn't an address here."""
    assert parse_address(text) is None


@pytest.mark.parametrize("text", ["fe80::1%lo", "fe80::1%", "::1%25", "::ffff:1.2.3.4%x", "1.2.3.4%eth0"])
def test_d7_zone_ids_are_refused(text: str):
    """A zone chooses an interface of this machine, which is no business of a client."""
    assert parse_address(text) is None
    with pytest.raises(ValueError, match="zone"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("203.0.113.7", "203.0.113.7/32"),
        ("203.0.113.7/32", "203.0.113.7/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("2001:DB8::/32", "2001:db8::/32"),
    ],
)
def test_d13_ranges_are_read(text: str, network: str):
    """CIDR notation, and bare addresses for one."""
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.1/128", "10.0.0.1/32"),
    ],
)
def test_d1_mapped_ranges_are_unwrapped(text: str, network: str):
    """Otherwise such a range would never match, since addresses are unwrapped."""
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.1.2.3/8", "10.0.0.0/8 for the range or 10.1.2.3/32"),
        ("2001:db8::1/32", "2001:db8::/32 for the range"),
        ("::ffff:0:0/95", "host bits"),
        ("010.0.0.0/8", "octal"),
        ("10.0.00.0/24", "octal"),
        ("10.0.0.0/08", "plain number"),
        ("10.0.0.0/", "plain number"),
        ("10.0.0.0/+8", "plain number"),
        ("10.0.0.0/٨", "plain number"),
        ("10.0.0.0/255.0.0.0", "plain number"),
        ("10.0.0.0/33", "from 0 to 32"),
        ("::/129", "from 0 to 128"),
        ("::/9999999", "plain number"),
        ("10.0.0.0/8/8", "plain number"),
        ("10.0.0/8", "not an IPv4 or IPv6"),
        ("example.com", "not an IPv4 or IPv6"),
        ("", "not an IPv4 or IPv6"),
        (" 10.0.0.0/8", "not an IPv4 or IPv6"),
    ],
)
def test_d13_faulty_ranges_say_what_is_wrong(text: str, message: str):
    """A range that could mean two things is an error, and the message offers both."""
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        parse_network(text)


# First and last address of each range, with the class on the inside and what lies just outside.
BOUNDARIES = [
    ("0.0.0.0", "0.255.255.255", C.UNSPECIFIED, None, C.PUBLIC),
    ("10.0.0.0", "10.255.255.255", C.PRIVATE, C.PUBLIC, C.PUBLIC),
    ("100.64.0.0", "100.100.100.199", C.SHARED, C.PUBLIC, C.METADATA),
    ("100.100.100.200", "100.100.100.200", C.METADATA, C.SHARED, C.SHARED),
    ("100.100.100.201", "100.127.255.255", C.SHARED, C.METADATA, C.PUBLIC),
    ("127.0.0.0", "127.255.255.255", C.LOOPBACK, C.PUBLIC, C.PUBLIC),
    ("168.63.129.16", "168.63.129.16", C.METADATA, C.PUBLIC, C.PUBLIC),
    ("169.254.0.0", "169.254.0.22", C.LINK_LOCAL, C.PUBLIC, C.METADATA),
    ("169.254.169.254", "169.254.169.254", C.METADATA, C.LINK_LOCAL, C.LINK_LOCAL),
    ("169.254.170.24", "169.254.255.255", C.LINK_LOCAL, C.METADATA, C.PUBLIC),
    ("172.16.0.0", "172.31.255.255", C.PRIVATE, C.PUBLIC, C.PUBLIC),
    ("192.0.0.0", "192.0.0.191", C.RESERVED, C.PUBLIC, C.METADATA),
    ("192.0.0.193", "192.0.0.255", C.RESERVED, C.METADATA, C.PUBLIC),
    ("192.0.2.0", "192.0.2.255", C.DOCUMENTATION, C.PUBLIC, C.PUBLIC),
    ("192.88.99.0", "192.88.99.255", C.TUNNEL, C.PUBLIC, C.PUBLIC),
    ("192.168.0.0", "192.168.255.255", C.PRIVATE, C.PUBLIC, C.PUBLIC),
    ("198.18.0.0", "198.19.255.255", C.BENCHMARK, C.PUBLIC, C.PUBLIC),
    ("198.51.100.0", "198.51.100.255", C.DOCUMENTATION, C.PUBLIC, C.PUBLIC),
    ("203.0.113.0", "203.0.113.255", C.DOCUMENTATION, C.PUBLIC, C.PUBLIC),
    ("224.0.0.0", "239.255.255.255", C.MULTICAST, C.PUBLIC, C.RESERVED),
    ("240.0.0.0", "255.255.255.255", C.RESERVED, C.MULTICAST, None),
    ("::", "::", C.UNSPECIFIED, None, C.LOOPBACK),
    ("::1", "::1", C.LOOPBACK, C.UNSPECIFIED, C.RESERVED),
    ("::ffff:0:0:0", "::ffff:0:ffff:ffff", C.TRANSLATION, C.RESERVED, C.RESERVED),
    ("64:ff9b::", "64:ff9b::ffff:ffff", C.TRANSLATION, C.RESERVED, C.RESERVED),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", C.TRANSLATION, C.RESERVED, C.RESERVED),
    ("100::", "100::ffff:ffff:ffff:ffff", C.RESERVED, C.RESERVED, C.RESERVED),
    ("2000::", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.PUBLIC, C.RESERVED, C.TUNNEL),
    ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", C.TUNNEL, C.PUBLIC, C.RESERVED),
    ("2001:1::", "2001:1:ffff:ffff:ffff:ffff:ffff:ffff", C.RESERVED, C.TUNNEL, C.BENCHMARK),
    ("2001:3::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", C.RESERVED, C.RESERVED, C.PUBLIC),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", C.DOCUMENTATION, C.PUBLIC, C.PUBLIC),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", C.DOCUMENTATION, C.PUBLIC, C.PUBLIC),
    ("3fff:1000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.PUBLIC, C.DOCUMENTATION, C.RESERVED),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.RESERVED, C.RESERVED, C.RESERVED),
    ("fc00::", "fd00:41:ffff:ffff:ffff:ffff:ffff:ffff", C.UNIQUE_LOCAL, C.RESERVED, C.UNIQUE_LOCAL),
    ("fd00:ec2::", "fd00:ec2:ffff:ffff:ffff:ffff:ffff:ffff", C.METADATA, C.UNIQUE_LOCAL, C.UNIQUE_LOCAL),
    ("fdff::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.UNIQUE_LOCAL, C.UNIQUE_LOCAL, C.RESERVED),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.LINK_LOCAL, C.RESERVED, C.SITE_LOCAL),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.SITE_LOCAL, C.LINK_LOCAL, C.MULTICAST),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", C.MULTICAST, C.SITE_LOCAL, None),
]  # fmt: skip


@pytest.mark.parametrize(("first", "last", "inside", "below", "above"), BOUNDARIES)
def test_d6_classes_begin_and_end_where_they_should(first, last, inside, below, above):
    """Both ends of every range and the addresses next to them; a table is wrong by one before it is wrong by more."""
    start, end = ip_address(first), ip_address(last)
    assert classify(start) is inside
    assert classify(end) is inside
    if below is not None:
        assert classify(start - 1) is below
    if above is not None:
        assert classify(end + 1) is above
    assert is_public(start) is (inside is C.PUBLIC)


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254", "169.254.170.2", "169.254.0.23", "fe80::a9fe:a9fe", "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::100:200",
    ],
)  # fmt: skip
def test_d5_metadata_services_are_not_public(text: str):
    """They hand out the machine's credentials to whoever asks."""
    assert not is_public(ip_address(text))
    assert classify(ip_address(text)) in {C.METADATA, C.LINK_LOCAL}


@pytest.mark.parametrize(
    "text",
    [
        "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "224.0.0.1", "ff02::1", "168.63.129.16", "192.88.99.1",
        "5f00::1", "3fff::1", "100.64.0.1",
    ],
)  # fmt: skip
def test_d6_what_the_standard_library_calls_global_or_not_private_is_closed(text: str):
    """Each of these passes ``is_global`` or fails ``is_private`` in some version of Python."""
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["0.0.0.0", "0.1.2.3", "::"])
def test_d3_unspecified_addresses_are_not_public(text: str):
    """Linux connects them to itself."""
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:10.0.0.1", ["10.0.0.1"]),
        ("::10.0.0.1", ["10.0.0.1"]),
        ("::ffff:0:10.0.0.1", ["10.0.0.1"]),
        ("64:ff9b::10.0.0.1", ["10.0.0.1"]),
        ("64:ff9b:1::10.0.0.1", ["10.0.0.1"]),
        ("2002:a00:1::", ["10.0.0.1"]),
        ("2002:a00:1:2:3:4:5:6", ["10.0.0.1"]),
        ("2001:0:102:304:0:0:f5ff:fffe", ["1.2.3.4", "10.0.0.1"]),
        ("::", []),
        ("::1", []),
        ("2606:4700::1", []),
        ("2001:db8::10.0.0.1", []),
        ("10.0.0.1", []),
    ],
)
def test_d2_embedded_addresses_are_found(text: str, inner: list[str]):
    """A translator or tunnel on the way sends the packet on to the IPv4 address inside."""
    assert [str(address) for address in embedded_ipv4(ip_address(text))] == inner


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("2002:808:808::", True),
        ("2002:a00:1::", False),
        ("2002:7f00:1::1", False),
        ("64:ff9b::8.8.8.8", False),
        ("2001:0:808:808::f7f7:f7f7", False),
        ("::ffff:8.8.8.8", True),
        ("::ffff:127.0.0.1", False),
        ("::8.8.8.8", False),
        ("::ffff:0:8.8.8.8", False),
    ],
)
def test_d2_every_form_must_be_public(text: str, public: bool):
    """IPv6 outside 2000::/3 never is; 6to4 is as public as the address in it."""
    assert is_public(ip_address(text)) is public


def test_forms_are_the_address_and_what_it_carries():
    """A mapped address has one form only: the one that is dialled."""
    assert forms(IPv6Address("::ffff:10.0.0.1")) == (IPv4Address("10.0.0.1"),)
    assert forms(IPv6Address("2002:a00:1::")) == (IPv6Address("2002:a00:1::"), IPv4Address("10.0.0.1"))
    assert forms(IPv4Address("1.2.3.4")) == (IPv4Address("1.2.3.4"),)


@given(st.ip_addresses(v=6))
def test_ipv6_is_public_only_inside_2000_3(address: IPv6Address):
    """Whatever IANA gives out next, it isn't public before the table says so."""
    if classify(address) is C.PUBLIC and address.ipv4_mapped is None:
        assert address in IPv6Network("2000::/3")


def test_a_table_finds_the_smallest_range():
    """Ranges nest, and begin and end together."""
    texts = [
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.255.0/24",
        "10.255.255.255/32",
        "0.0.0.0/0",
        "2001:db8::/32",
        "10.0.0.0/8",
    ]
    table = PrefixTable(parse_network(text) for text in texts)
    for text, network in [
        ("10.0.0.0", "10.0.0.0/16"),
        ("10.0.255.255", "10.0.255.0/24"),
        ("10.1.0.0", "10.0.0.0/8"),
        ("10.255.255.254", "10.0.0.0/8"),
        ("10.255.255.255", "10.255.255.255/32"),
        ("11.0.0.0", "0.0.0.0/0"),
        ("2001:db8::1", "2001:db8::/32"),
        ("::ffff:10.1.0.0", "10.0.0.0/8"),
    ]:
        assert str(table.find(ip_address(text))) == network
    assert table.find(IPv6Address("2001:db9::")) is None
    assert IPv6Address("2001:db9::") not in table
    assert IPv4Address("1.1.1.1") in table


def test_a_table_is_a_value():
    """Empty ones find nothing; equal ones are equal; the printed form is short."""
    assert PrefixTable().find(IPv4Address("1.1.1.1")) is None
    one = PrefixTable([IPv4Network("10.0.0.0/8")])
    assert one == PrefixTable([IPv4Network("10.0.0.0/8")])
    assert hash(one) == hash(PrefixTable([IPv4Network("10.0.0.0/8")]))
    assert one != PrefixTable()
    assert one != "x"
    assert list(one) == [IPv4Network("10.0.0.0/8")]
    assert repr(one) == "<PrefixTable of 1>"


def test_d1_a_mapped_range_given_as_an_object_is_unwrapped():
    """A caller may have made it without ``parse_network``."""
    table = PrefixTable([IPv6Network("::ffff:10.0.0.0/104")])
    assert str(table.find(IPv4Address("10.1.2.3"))) == "10.0.0.0/8"
    assert table.find(IPv4Address("11.0.0.0")) is None


@st.composite
def networks(draw) -> IPNetwork:
    """Ranges that crowd into a corner of the address space, so that they nest and touch."""
    if draw(st.booleans()):
        prefix = draw(st.integers(0, 32))
        return IPv4Network((draw(st.integers(0, 63)) << 26, prefix), strict=False)
    prefix = draw(st.integers(0, 128))
    return IPv6Network((draw(st.integers(0, 127)) << 121, prefix), strict=False)


@given(st.lists(networks(), max_size=30))
def test_a_table_agrees_with_looking_at_every_range(listed: list[IPNetwork]):
    """Against a scan, on addresses at and next to every boundary."""
    table = PrefixTable(listed)
    edges = [edge for network in listed for edge in (network[0], network[-1])]
    candidates = {IPv4Address(0), IPv6Address(0), *edges}
    for edge in edges:
        number = int(edge)
        if number > 0:
            candidates.add(type(edge)(number - 1))
        if number < (1 << edge.max_prefixlen) - 1:
            candidates.add(type(edge)(number + 1))
    for address in candidates:
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            continue
        holding = [network for network in listed if address.version == network.version and address in network]
        longest = max(holding, key=lambda network: network.prefixlen, default=None)
        assert table.find(address) == longest
