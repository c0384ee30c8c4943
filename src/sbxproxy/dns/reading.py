"""Reads what a name server answered, with dnspython, and keeps of it the chain that leads from the question to its records.

Importing this costs a tenth of a second: whoever needs it imports it then.
"""

from __future__ import annotations

__all__ = ["MOST_ALIASES", "read_answer"]

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from sbxproxy.dns.message import Answer, Rcode, Record

MOST_ALIASES = 8
"""CNAME records that are followed; longer chains are mistakes or attacks, and resolvers give up at about as many."""

MOST_RECORDS = 128
"""Records of one answer that are passed on."""

LEAST_TTL, MOST_TTL = 1, 300
"""Bounds of a record's lifetime, in seconds, as for addresses: TTL games don't pay."""


def read_answer(data: bytes, name: bytes, rdtype: int) -> Answer:
    """Read the answer to the question for *rdtype* at *name* (in lower case).

    Records that don't belong to the chain are dropped, and so are the authority and additional sections: nobody asked for
    them, and spoofed ones are how caches were poisoned.

    Raises:
        ValueError: it is malformed, or an error, or its chain of aliases is too long.
    """
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError, AttributeError, IndexError, TypeError) as error:
        # dnspython promises the first; the others are what a bug of it on hostile bytes would look like.
        raise ValueError("the name server's answer is malformed") from error
    rcode = message.rcode()
    if rcode not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        raise ValueError("the name server answered with an error")
    owner, _ = dns.name.from_wire(name, 0)
    wanted = dns.rdatatype.RdataType.make(rdtype)
    records: list[Record] = []
    for links in range(MOST_ALIASES + 1):
        written = None if links == 0 else owner.to_wire()
        found = message.get_rrset(message.answer, owner, dns.rdataclass.IN, wanted)
        if found is not None:
            records += [_record(written, rdata, found.ttl) for rdata in list(found)[:MOST_RECORDS]]
            break
        alias = message.get_rrset(message.answer, owner, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if not alias:
            break
        records.append(_record(written, alias[0], alias.ttl))
        owner = alias[0].target
    else:
        raise ValueError("the chain of aliases is too long")
    return Answer(rcode=Rcode(rcode), records=tuple(records))


def _record(owner: bytes | None, rdata: dns.rdata.Rdata, ttl: int) -> Record:
    written = rdata.to_wire()
    assert written is not None
    return Record(owner, int(rdata.rdtype), min(max(ttl, LEAST_TTL), MOST_TTL), written)
