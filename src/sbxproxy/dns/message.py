"""DNS messages as far as a resolver's front needs them: queries from bytes, answers to bytes (RFC 1035, 6891, 8914).

By hand, not with dnspython: it takes some hundred microseconds for a query and its answer, this takes ten; and a query has one
shape only. What is surprising: bytes that ask nothing, an answer among them, get no answer at all, so that two servers can't be
made to talk to each other.
"""

from __future__ import annotations

__all__ = [
    "MAX_UDP",
    "TYPE_NAMES",
    "Answer",
    "Ede",
    "Query",
    "Rcode",
    "Record",
    "Unreadable",
    "parse_query",
    "render",
    "render_unreadable",
    "shown_name",
    "type_name",
]

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from sbxproxy.hostname import Hostname, canonical_hostname

HEADER = struct.Struct("!HHHHHH")  # id, flags, and the records in four sections
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length
_PAIR = struct.Struct("!HH")

QR, TC, RD, RA, CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0010
CLASS_IN = 1
TYPE_OPT = 41
TYPE_IXFR = 251
DO = 0x8000

MIN_UDP = 512
"""Bytes of an answer that every client takes (RFC 1035 section 4.2.1)."""

MAX_UDP = 1232
"""The most that is sent in one datagram, whatever the client offers: it fits the IPv6 minimum MTU, so that nothing is ever
fragmented (the value of the DNS flag day 2020)."""

MAX_NAME_WIRE = 255
MAX_RECORDS = 64
"""Records in the additional section of a query; one is usual, two with a signature."""

TYPE_NAMES: dict[int, str] = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 29: "LOC",
    33: "SRV", 35: "NAPTR", 37: "CERT", 39: "DNAME", 41: "OPT", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY",
    50: "NSEC3", 52: "TLSA", 53: "SMIMEA", 61: "OPENPGPKEY", 64: "SVCB", 65: "HTTPS", 99: "SPF", 249: "TKEY", 250: "TSIG",
    251: "IXFR", 252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip


class Rcode(IntEnum):
    """Response codes, and the one extended one that is used (RFC 6891 section 6.1.3)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Ede(IntEnum):
    """Extended errors (RFC 8914): they tell a person why, and no program needs to understand them."""

    OTHER = 0
    BLOCKED = 15
    FILTERED = 17
    NOT_SUPPORTED = 21
    NO_REACHABLE_AUTHORITY = 22


@dataclass(frozen=True, slots=True)
class Query:
    """A query that can be read.

    Attributes:
        id: the client's.
        flags: the header's flags as they came.
        question: its bytes as they came, upper case included; an answer repeats them.
        name: the name's bytes, in lower case, with length octets and the final zero.
        hostname: the same as a canonical name; ``None`` if it is none: the root, odd bytes, something like an address.
        rdtype: the type asked for.
        rdclass: the class asked for.
        edns: the size of answers that the client takes over UDP; ``None`` if it doesn't speak EDNS.
        dnssec: the client's DO flag, which an answer repeats (RFC 3225).
    """

    id: int
    flags: int
    question: bytes
    name: bytes
    hostname: Hostname | None
    rdtype: int
    rdclass: int = CLASS_IN
    edns: int | None = None
    dnssec: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that gets an error without its question repeated.

    Attributes:
        head: its first four bytes: id and flags.
        rcode: what to say.
        edns: whether the client speaks EDNS.
    """

    head: bytes
    rcode: Rcode
    edns: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One record of an answer.

    Attributes:
        owner: the owner's bytes; ``None`` for the name asked for.
        rdtype: its type.
        ttl: seconds, as of when the answer was made.
        rdata: its data, without compressed names.
    """

    owner: bytes | None
    rdtype: int
    ttl: int
    rdata: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a query is answered, apart from what only its client's header decides.

    Attributes:
        rcode: the response code.
        records: the answer section; the other sections stay empty.
        ede: an extended error, and the reason id that is its text.
    """

    rcode: Rcode
    records: Sequence[Record] = ()
    ede: tuple[Ede, str] | None = None


# What follows a label's bytes must be a label again, so an ASCII table lowers a whole wire name: length octets are below "A".
_LOWER = bytes(range(256)).lower()


def parse_query(data: bytes) -> Query | Unreadable | None:
    """Read one message; ``None`` if it is no query, and must get no answer.

    Only an ordinary query (opcode 0) with one question is a ``Query``; the rest of RFC 1035's liberties, several questions
    among them (RFC 9619), is answered by an error.
    """
    if len(data) < HEADER.size:
        return None
    id_, flags, questions, answers, authorities, additionals = HEADER.unpack_from(data)
    if flags & QR:
        return None
    if flags & 0x7800:
        return Unreadable(data[:4], Rcode.NOTIMP)
    if questions != 1:
        return Unreadable(data[:4], Rcode.FORMERR)
    end = _skip_name(data, HEADER.size)
    if end is None or end + _TYPE_CLASS.size > len(data):
        return Unreadable(data[:4], Rcode.FORMERR)
    name = data[HEADER.size : end].translate(_LOWER)
    rdtype, rdclass = _TYPE_CLASS.unpack_from(data, end)
    end += _TYPE_CLASS.size
    question = data[HEADER.size : end]
    if rdtype == TYPE_IXFR:
        # It carries an SOA record in its authority section (RFC 1995); nothing after the question matters for its refusal.
        return Query(id_, flags, question, name, hostname_of(name), rdtype, rdclass)
    edns: int | None = None
    dnssec = False
    if answers or authorities or additionals > MAX_RECORDS:
        return Unreadable(data[:4], Rcode.FORMERR)
    for _ in range(additionals):
        start = end
        after = _skip_name(data, start, pointers=True)
        if after is None or after + _RECORD.size > len(data):
            return Unreadable(data[:4], Rcode.FORMERR)
        kind, size, ttl, length = _RECORD.unpack_from(data, after)
        end = after + _RECORD.size + length
        if end > len(data):
            return Unreadable(data[:4], Rcode.FORMERR)
        if kind == TYPE_OPT:
            if edns is not None or after != start + 1 or not _options_end(data, end - length, end):
                return Unreadable(data[:4], Rcode.FORMERR)
            edns, dnssec = size, bool(ttl & DO)
            if ttl >> 16 & 0xFF:
                return Unreadable(data[:4], Rcode.BADVERS, edns=True)
    if end != len(data):
        return Unreadable(data[:4], Rcode.FORMERR)
    return Query(id_, flags, question, name, hostname_of(name), rdtype, rdclass, edns, dnssec)


def _skip_name(data: bytes, at: int, *, pointers: bool = False) -> int | None:
    """Return where the name at *at* ends, or ``None`` if it is malformed.

    The first name of a message has nothing to point at, so there pointers are malformed; a pointer elsewhere is skipped, and
    never followed.
    """
    start, end = at, len(data)
    while at < end:
        length = data[at]
        if length == 0:
            return at + 1 if at + 1 - start <= MAX_NAME_WIRE else None
        if length > 63:
            if pointers and length >= 0xC0 and at + 2 <= end:
                return at + 2
            return None
        at += length + 1
    return None


def _options_end(data: bytes, at: int, end: int) -> bool:
    """Tell whether the options from *at* fill an OPT record up to *end*; what they say is not used."""
    while at + _PAIR.size <= end:
        at += _PAIR.size + _PAIR.unpack_from(data, at)[1]
    return at == end


def hostname_of(name: bytes) -> Hostname | None:
    """Return the canonical name that the bytes of *name* spell.

    A dot inside a label would make one label read as two, and so would any byte that the canonical form does not have.
    """
    labels = labels_of(name)
    if not labels or any(b"." in label for label in labels):
        return None
    return canonical_hostname(b".".join(labels))


def labels_of(name: bytes) -> list[bytes]:
    """Cut a well-formed, uncompressed name into its labels."""
    labels = []
    at = 0
    while length := name[at]:
        labels.append(name[at + 1 : at + 1 + length])
        at += length + 1
    return labels


def type_name(rdtype: int) -> str:
    """Return a type's mnemonic, or RFC 3597's way of writing one without."""
    return TYPE_NAMES.get(rdtype) or f"TYPE{rdtype}"


_SHOWN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


def shown_name(query: Query) -> str:
    r"""Return the name asked for in printable ASCII that can't be taken for another: odd bytes as ``\DDD``."""
    if query.hostname is not None:
        return query.hostname
    labels = ("".join(chr(byte) if byte in _SHOWN else f"\\{byte:03d}" for byte in label) for label in labels_of(query.name))
    return ".".join(labels) or "."


_POINTER = b"\xc0\x0c"  # to the question's name, which stands right after the header


def render(query: Query, answer: Answer, *, udp: bool, age: int = 0) -> bytes:
    """Write *answer* to *query*.

    What does not fit is left out and TC set: the client comes back over TCP, and an old one that can't gets as many
    addresses as fit.

    Args:
        query: whose id, flags, question and EDNS to answer to.
        answer: what to say.
        udp: whether it is for one datagram.
        age: seconds since the answer was made, which its records' remaining lifetimes are less.
    """
    flags = QR | RA | query.flags & (RD | CD) | answer.rcode & 15
    opt = b"" if query.edns is None else _opt(answer.rcode, DO if query.dnssec else 0, answer.ede)
    limit = 0xFFFF
    if udp:
        limit = min(max(query.edns or MIN_UDP, MIN_UDP), MAX_UDP)
    room = limit - HEADER.size - len(query.question) - len(opt)
    parts = [b"", query.question]
    count = 0
    for record in answer.records:
        rdata = record.rdata
        owner = record.owner or _POINTER
        room -= len(owner) + _RECORD.size + len(rdata)
        if room < 0:
            flags |= TC
            break
        parts += (owner, _RECORD.pack(record.rdtype, CLASS_IN, max(record.ttl - age, 1), len(rdata)), rdata)
        count += 1
    parts[0] = HEADER.pack(query.id, flags, 1, count, 0, 1 if opt else 0)
    parts.append(opt)
    return b"".join(parts)


def render_unreadable(message: Unreadable) -> bytes:
    """Write an error that repeats no more than the id."""
    id_, flags = _PAIR.unpack(message.head)
    flags = QR | RA | flags & (0x7800 | RD) | message.rcode & 15
    if not message.edns:
        return HEADER.pack(id_, flags, 0, 0, 0, 0)
    return HEADER.pack(id_, flags, 0, 0, 0, 1) + _opt(message.rcode, 0, None)


def _opt(rcode: int, flags: int, ede: tuple[Ede, str] | None) -> bytes:
    options = b""
    if ede is not None:
        code, text = ede
        said = text.encode("ascii", "replace")
        options = struct.pack("!HHH", 15, 2 + len(said), code) + said
    return b"\0" + _RECORD.pack(TYPE_OPT, MAX_UDP, (rcode >> 4) << 24 | flags, len(options)) + options
