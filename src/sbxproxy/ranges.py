"""Ranges of addresses, each as one integer, and the look-up among many of them.

A policy may list a hundred thousand. As objects of ``ipaddress`` they would be two hundred thousand and more for the garbage collector to
look at, again and again while the policy is read; as integers they are none.
"""

from __future__ import annotations

__all__ = ["IPAddress", "IPNetwork", "Segments", "Span", "network_of", "parse_span", "sorted_spans", "span_of", "v4_number"]

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import merge
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain, pairwise
from typing import Generic, NewType, TypeVar

from sbxproxy.paced import paced

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

Span = NewType("Span", int)
"""A range: 2 to the power of 136 if it is of IPv6, plus 256 times its first address, plus its prefix length.

So ranges sort by version, then by first address, then the largest first. None is IPv4-mapped: those are ranges of IPv4.
"""

_V6 = 1 << 136
_V4_BITS = (1 << 32) - 1
_MAPPED = 0xFFFF  # ::ffff:0:0/96, as the upper 96 bits

_OCTETS = {str(octet): octet for octet in range(256)}
_LENGTHS = {str(length): length for length in range(33)}
_HOST_BITS = tuple((1 << 32 - length) - 1 for length in range(33))

_PIECE = 2048
"""Numbers that are sorted at once. One call that sorted a hundred thousand would hold every other thread up."""


def parse_span(text: str) -> Span:
    """Read a range as ``sbxproxy.address.parse_network`` does; raises what that raises."""
    base, slash, length = text.partition("/")
    first = v4_number(base)
    prefix = _LENGTHS.get(length) if slash else 32
    if first is None or prefix is None or first & _HOST_BITS[prefix]:
        return _parse(base, slash, length)  # for what it is, or what is wrong with it
    return Span(first << 8 | prefix)


def v4_number(text: str) -> int | None:
    """Read an IPv4 address; ``None`` if *text* isn't exactly one. ``IPv4Address`` takes several times as long, above all to refuse."""
    octets = text.split(".")
    if len(octets) != 4:
        return None
    a, b, c, d = octets
    try:
        return _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
    except KeyError:
        return None


def _parse(base: str, slash: str, length: str) -> Span:
    if "%" in base or "%" in length:
        raise ValueError("zone ids (%) have no place in a range")
    try:
        address: IPAddress = IPv6Address(base) if ":" in base else IPv4Address(base)
    except AddressValueError:
        raise ValueError(_why_no_address(base)) from None
    bits: int = address.max_prefixlen
    if not slash:
        prefix = bits
    elif not (length.isascii() and length.isdigit()) or len(length) > 3 or (length[0] == "0" and length != "0"):
        raise ValueError(f"the prefix length must be a plain number from 0 to {bits}")
    else:
        prefix = int(length)
        if prefix > bits:
            raise ValueError(f"the prefix length must be from 0 to {bits}")
    number = int(address)
    if host := number & ((1 << (bits - prefix)) - 1):
        meant = type(address)(number - host)
        raise ValueError(f"host bits are set: write {meant}/{prefix} for the range or {address}/{bits} for the one address")
    return _span(number, prefix, bits)


def _why_no_address(base: str) -> str:
    if any(len(part) > 1 and part[0] == "0" for part in base.split(".") if part.isdigit()) and ":" not in base:
        return "leading zeros: some programs read them as octal, others as decimal"
    return "not an IPv4 or IPv6 address"


def _span(first: int, prefix: int, bits: int) -> Span:
    if bits == 32:
        return Span(first << 8 | prefix)
    if first >> 32 == _MAPPED:  # host bits are clear, so the prefix is at least 96
        return Span((first & _V4_BITS) << 8 | prefix - 96)
    return Span(_V6 | first << 8 | prefix)


def span_of(network: IPNetwork) -> Span:
    """Return the range as an integer; an IPv4-mapped one as the range of IPv4."""
    return _span(int(network.network_address), network.prefixlen, network.max_prefixlen)


def network_of(span: Span) -> IPNetwork:
    """Return the range as an object."""
    if span < _V6:
        return IPv4Network((span >> 8, span & 0xFF))
    return IPv6Network((span - _V6 >> 8, span & 0xFF))


def sorted_spans(spans: Sequence[Span]) -> tuple[Iterable[tuple[int, int, Span]], Iterable[tuple[int, int, Span]]]:
    """Return the ranges of IPv4 and those of IPv6 as ``Segments`` takes them, each with itself as its value."""
    return (
        ((span >> 8, _last(span), span) for span in _in_order([span for span in paced(spans) if span < _V6])),
        ((span - _V6 >> 8, _last(span), span) for span in _in_order([span for span in paced(spans) if span >= _V6])),
    )


def _last(span: Span) -> int:
    """Return the last address of a range, as a number."""
    if span < _V6:
        return span >> 8 | _HOST_BITS[span & 0xFF]
    return span - _V6 >> 8 | (1 << 128 - (span & 0xFF)) - 1


def _in_order(spans: Sequence[Span]) -> Iterable[Span]:
    pieces = [sorted(spans[start : start + _PIECE]) for start in paced(range(0, len(spans), _PIECE), piece=1)]
    if all(one[-1] <= other[0] for one, other in pairwise(pieces)):
        return chain.from_iterable(pieces)
    return merge(*pieces)


_Value = TypeVar("_Value")


class Segments(Generic[_Value]):
    """Prefixes flattened into disjoint segments of the number line; the longest prefix owns a segment.

    A look-up is one binary search over machine-made integers, whatever the number of prefixes or lengths.
    """

    __slots__ = ("_starts", "_values")

    def __init__(self, prefixes: Iterable[tuple[int, int, _Value]]) -> None:
        """Take triples of first number, last number and value, by first number, the largest first. Two prefixes nest or are disjoint."""
        starts: list[int] = []
        values: list[_Value | None] = []

        def emit(start: int, value: _Value | None) -> None:
            if starts and starts[-1] == start:
                values[-1] = value
            else:
                starts.append(start)
                values.append(value)

        around: list[tuple[int, _Value]] = []  # the prefixes that enclose the current number, outermost first
        for first, last, value in paced(prefixes):
            while around and around[-1][0] < first:
                ended, _ = around.pop()
                emit(ended + 1, around[-1][1] if around else None)
            emit(first, value)
            around.append((last, value))
        while around:
            ended, _ = around.pop()
            emit(ended + 1, around[-1][1] if around else None)
        self._starts = starts
        self._values = values

    def find(self, number: int) -> _Value | None:
        """Return the value of the smallest prefix that holds *number*, or ``None``."""
        index = bisect_right(self._starts, number) - 1
        return None if index < 0 else self._values[index]
