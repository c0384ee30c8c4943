"""IP addresses and ranges: strict texts, an own table of what is public, look-ups that don't slow with size.

The surprise is how much of ``ipaddress`` can't be relied on here: it accepts zone ids, keeps
``::ffff:10.0.0.1`` apart from ``10.0.0.1``, and ``is_global`` is true for multicast, for cloud metadata and
for most ways of writing 127.0.0.1 inside an IPv6 address. So parsing, classes and the notion of "the same
address in another form" are defined here.
"""

from __future__ import annotations

__all__ = [
    "AddressClass",
    "IPAddress",
    "IPNetwork",
    "PrefixTable",
    "classify",
    "embedded_ipv4",
    "forms",
    "is_public",
    "parse_address",
    "parse_network",
    "unmapped",
]

from collections.abc import Iterable, Iterator
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from sbxproxy.paced import paced
from sbxproxy.ranges import IPAddress, IPNetwork, Segments, Span, network_of, parse_span, sorted_spans, span_of, v4_number

_LONGEST_TEXT = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")
_V4_BITS = (1 << 32) - 1
_MAPPED = 0xFFFF  # ::ffff:0:0/96, as the upper 96 bits


def parse_address(text: str) -> IPAddress | None:
    """Read an address, or answer ``None`` if *text* isn't exactly one.

    No zone ids, no leading zeros in IPv4, no short or numeric forms, no white space, no brackets. An
    IPv4-mapped IPv6 address comes back as the IPv4 address.
    """
    if len(text) > _LONGEST_TEXT:
        return None
    if ":" not in text:
        number = v4_number(text)
        return None if number is None else IPv4Address(number)
    if "%" in text:
        return None
    try:
        return unmapped(IPv6Address(text))
    except AddressValueError:
        return None


def unmapped(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv4-mapped IPv6 address stands for; any other as it is."""
    if isinstance(address, IPv6Address) and int(address) >> 32 == _MAPPED:
        return IPv4Address(int(address) & _V4_BITS)
    return address


def parse_network(text: str) -> IPNetwork:
    """Read a range in CIDR notation; a bare address is the range of that one address.

    An IPv4-mapped range (``::ffff:10.0.0.0/104``) comes back as the IPv4 range, since every address is judged
    unmapped.

    Raises:
        ValueError: *text* is no range; the message says why, and what was probably meant. Host bits are an
            error and not cleared: ``10.1.2.3/8`` could mean one address or sixteen million.
    """
    return network_of(parse_span(text))


class PrefixTable:
    """An immutable set of ranges, with look-ups that take the same time for ten as for a hundred thousand.

    IPv4-mapped addresses are looked up as IPv4; other embedded forms are the caller's decision (see
    ``forms``). ``::/0`` holds all of IPv6 and nothing of IPv4.
    """

    __slots__ = ("_made", "_v4", "_v6", "spans")

    def __init__(self, networks: Iterable[IPNetwork | Span] = ()) -> None:
        """Take ranges in any order, as objects or as integers; duplicates and nesting are fine."""
        self.spans: tuple[Span, ...] = tuple(
            [network if isinstance(network, int) else span_of(network) for network in paced(networks)]
        )
        """The ranges, in the order in which they were given."""
        v4, v6 = sorted_spans(self.spans)
        self._v4: Segments[Span] = Segments(v4)
        self._v6: Segments[Span] = Segments(v6)
        self._made: dict[Span, IPNetwork] = {}

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The ranges, as objects that are made for whoever asks."""
        return tuple(self)

    def find(self, address: IPAddress) -> IPNetwork | None:
        """Return the smallest range that holds *address*, or ``None``."""
        span = self._find(address)
        if span is None:
            return None
        network = self._made.get(span)
        if network is None:  # the same few are asked for
            network = self._made[span] = network_of(span)
        return network

    def _find(self, address: IPAddress) -> Span | None:
        if not self.spans:
            return None
        number = int(address)
        if isinstance(address, IPv4Address):
            return self._v4.find(number)
        if number >> 32 == _MAPPED:
            return self._v4.find(number & _V4_BITS)
        return self._v6.find(number)

    def __contains__(self, address: IPAddress) -> bool:
        return self._find(address) is not None if self.spans else False

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[IPNetwork]:
        return map(network_of, self.spans)

    def __eq__(self, other: object) -> bool:
        return self.spans == other.spans if isinstance(other, PrefixTable) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.spans)

    def __repr__(self) -> str:
        return f"<PrefixTable of {len(self)}>"


class AddressClass(StrEnum):
    """What kind of network an address is in; only ``PUBLIC`` is the public Internet."""

    PUBLIC = "public"
    UNSPECIFIED = "unspecified"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "cloud-metadata"
    PRIVATE = "private"
    SHARED = "shared"
    UNIQUE_LOCAL = "unique-local"
    SITE_LOCAL = "site-local"
    MULTICAST = "multicast"
    DOCUMENTATION = "documentation"
    BENCHMARK = "benchmark"
    TRANSLATION = "translation"
    TUNNEL = "tunnel"
    RESERVED = "reserved"


# Sources: the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890), and the clouds' own documents for
# their metadata services. The longest prefix decides. What IANA calls reachable for a protocol's own use
# (anycast relays, 192.0.0.9) is not public here: no program in a sandbox has business there.
_CLASSES: dict[AddressClass, tuple[str, ...]] = {
    AddressClass.PUBLIC: ("0.0.0.0/0", "2000::/3"),
    AddressClass.UNSPECIFIED: ("0.0.0.0/8", "::/128"),  # Linux connects 0.0.0.0 and :: to itself
    AddressClass.LOOPBACK: ("127.0.0.0/8", "::1/128"),
    AddressClass.LINK_LOCAL: ("169.254.0.0/16", "fe80::/10"),
    AddressClass.METADATA: (
        "169.254.169.254/32",  # AWS, Azure, Google, DigitalOcean, OpenStack, …
        "169.254.170.2/32",  # AWS: credentials of ECS tasks
        "169.254.170.23/32",  # AWS: credentials of EKS pods
        "169.254.0.23/32",  # Tencent
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's WireServer: inside public space
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "fd00:c1::a9fe:a9fe/128",  # Oracle
        "fd00:42::42/128",  # Scaleway
        "fd00:a9fe:a9fe::1/128",
        "fd00:100::100:200/128",  # Alibaba
    ),
    AddressClass.PRIVATE: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    AddressClass.SHARED: ("100.64.0.0/10",),
    AddressClass.UNIQUE_LOCAL: ("fc00::/7",),
    AddressClass.SITE_LOCAL: ("fec0::/10",),
    AddressClass.MULTICAST: ("224.0.0.0/4", "ff00::/8"),
    AddressClass.DOCUMENTATION: (
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "2001:db8::/32",
        "3fff::/20",
    ),
    AddressClass.BENCHMARK: ("198.18.0.0/15", "2001:2::/48"),
    AddressClass.TRANSLATION: ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96"),
    AddressClass.TUNNEL: ("192.88.99.0/24", "2001::/32"),
    AddressClass.RESERVED: ("192.0.0.0/24", "240.0.0.0/4", "::/0", "2001::/23", "5f00::/16", "100::/64"),
}


def _class_segments() -> list[Segments[AddressClass]]:
    kinds = {parse_span(text): kind for kind, texts in _CLASSES.items() for text in texts}
    return [Segments((first, last, kinds[span]) for first, last, span in spans) for spans in sorted_spans(list(kinds))]


_V4_CLASSES, _V6_CLASSES = _class_segments()


def classify(address: IPAddress) -> AddressClass:
    """Tell what kind of network *address* is in, going by this form of it alone.

    IPv4-mapped addresses are read as IPv4. IPv6 outside 2000::/3 is never public.
    """
    number = int(address)
    if isinstance(address, IPv4Address):
        found = _V4_CLASSES.find(number)
    elif number >> 32 == _MAPPED:
        found = _V4_CLASSES.find(number & _V4_BITS)
    else:
        found = _V6_CLASSES.find(number)
    return AddressClass.RESERVED if found is None else found


# Upper 96 bits of prefixes whose last 32 bits are an IPv4 address that a translator or tunnel may send the
# packet on to.
_LAST_32 = frozenset(
    {
        _MAPPED,  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
        0xFFFF_0000,  # ::ffff:0:0:0/96, SIIT, RFC 2765
        0,  # ::/96, IPv4-compatible, RFC 4291 section 2.5.5.1
        0x0064_FF9B << 64,  # 64:ff9b::/96, NAT64, RFC 6052
    }
)


def embedded_ipv4(address: IPAddress) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries inside; empty for IPv4 and for plain IPv6.

    Known are IPv4-mapped, IPv4-compatible, SIIT, NAT64 (the well-known prefix, and 64:ff9b:1::/48 read as a
    /96), 6to4 (RFC 3056) and Teredo (RFC 4380: the server's address and the client's, which is written
    inverted).
    """
    if address.version == 4:
        return ()
    number = int(address)
    if number >> 32 in _LAST_32:
        # :: and ::1 are no IPv4-compatible addresses.
        return (IPv4Address(number & _V4_BITS),) if number > 1 else ()
    match number >> 112:
        case 0x2002:
            return (IPv4Address(number >> 80 & _V4_BITS),)
        case 0x2001 if number >> 96 == 0x2001_0000:
            return (IPv4Address(number >> 64 & _V4_BITS), IPv4Address(~number & _V4_BITS))
        case 0x0064 if number >> 80 == 0x0064_FF9B_0001:
            return (IPv4Address(number & _V4_BITS),)
    return ()


def forms(address: IPAddress) -> tuple[IPAddress, ...]:
    """Return every form in which *address* must pass: itself (unmapped), then what IPv4 it carries."""
    if isinstance(address, IPv4Address):
        return (address,)
    plain = unmapped(address)
    return (plain,) if plain.version == 4 else (plain, *embedded_ipv4(plain))


def is_public(address: IPAddress) -> bool:
    """Tell whether *address* is on the public Internet in every form it has."""
    return all(classify(form) is AddressClass.PUBLIC for form in forms(address))
