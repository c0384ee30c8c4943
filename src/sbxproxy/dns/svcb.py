"""HTTPS and SVCB records, made fit for a program whose connections go through the proxy (RFC 9460).

Three things in them would lead around it or nowhere: keys for Encrypted Client Hello, which hides the name that connections
are judged by; address hints that may not be dialled; and HTTP/3, since UDP is closed.
"""

from __future__ import annotations

__all__ = ["HTTPS", "SVCB", "fit_svcb"]

import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

from sbxproxy.address import IPAddress
from sbxproxy.dns.message import hostname_of
from sbxproxy.hostname import Hostname

SVCB, HTTPS = 64, 65

MANDATORY, ALPN, NO_DEFAULT_ALPN, IPV4HINT, ECH, IPV6HINT = 0, 1, 2, 4, 5, 6

_PAIR = struct.Struct("!HH")


def fit_svcb(
    rdata: bytes, *, may_dial: Callable[[IPAddress], bool], may_resolve: Callable[[Hostname], bool], ipv6: bool
) -> bytes | None:
    """Return *rdata* without what can't be used, or ``None`` if then nothing of the record can.

    Args:
        rdata: well-formed record data, its target uncompressed.
        may_dial: judges a hint.
        may_resolve: judges a target other than the owner itself; a client could not look up a denied one.
        ipv6: whether hints of that family are of use.
    """
    end = 2
    while rdata[end]:
        end += rdata[end] + 1
    end += 1
    target = rdata[2:end]
    if target != b"\0":
        name = hostname_of(target.lower())  # length octets are no letters
        if name is None or not may_resolve(name):
            return None
    params = dict(_params(rdata, end))
    before = frozenset(params)
    params.pop(ECH, None)
    if IPV4HINT in params:
        params[IPV4HINT] = b"".join(hint for hint in _cut(params[IPV4HINT], 4) if may_dial(IPv4Address(hint)))
    if IPV6HINT in params:
        hints = _cut(params[IPV6HINT], 16) if ipv6 else ()
        params[IPV6HINT] = b"".join(hint for hint in hints if may_dial(IPv6Address(hint)))
    if ALPN in params:
        protocols = [protocol for protocol in _strings(params[ALPN]) if protocol != b"h3" and not protocol.startswith(b"h3-")]
        params[ALPN] = b"".join(bytes([len(protocol)]) + protocol for protocol in protocols)
        if not protocols and NO_DEFAULT_ALPN in params:
            return None  # it offers HTTP/3 and nothing else
    for key in (ALPN, IPV4HINT, IPV6HINT):
        if params.get(key) == b"":
            del params[key]
    if MANDATORY in params:
        removed = before - frozenset(params)
        keys = (key for key in _cut(params[MANDATORY], 2) if int.from_bytes(key) not in removed)
        params[MANDATORY] = b"".join(keys)
        if not params[MANDATORY]:
            del params[MANDATORY]
    return rdata[:end] + b"".join(_PAIR.pack(key, len(value)) + value for key, value in sorted(params.items()))


def _params(rdata: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at < len(rdata):
        key, length = _PAIR.unpack_from(rdata, at)
        at += _PAIR.size
        yield key, rdata[at : at + length]
        at += length


def _cut(value: bytes, size: int) -> Iterator[bytes]:
    return (value[at : at + size] for at in range(0, len(value), size))


def _strings(value: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(value):
        length = value[at]
        yield value[at + 1 : at + 1 + length]
        at += length + 1
