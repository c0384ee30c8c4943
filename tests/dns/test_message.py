"""Queries from bytes and answers to bytes, held against dnspython."""

import struct

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sbxproxy.dns.message import (
    MAX_UDP,
    Answer,
    Ede,
    Query,
    Rcode,
    Record,
    Unreadable,
    parse_query,
    render,
    render_unreadable,
    shown_name,
    type_name,
)


def wire(name="api.example.com", rdtype="A", **options):
    return dns.message.make_query(name, rdtype, id=0x1234, **options).to_wire()


def parsed(data) -> Query:
    query = parse_query(data)
    assert isinstance(query, Query)
    return query


def test_a_query_is_read_whole():
    message = dns.message.make_query("aPi.eXample.COM", "HTTPS", use_edns=0, payload=4096, want_dnssec=True)
    query = parsed(message.to_wire())
    assert query.id == message.id
    assert query.question == b"\x03aPi\x07eXample\x03COM\0\0\x41\0\x01"
    assert query.name == b"\x03api\x07example\x03com\0"
    assert query.hostname == "api.example.com"
    assert (query.rdtype, query.rdclass, query.edns, query.dnssec) == (65, 1, 4096, True)


def test_without_edns():
    query = parsed(wire())
    assert (query.edns, query.dnssec) == (None, False)


def rest(data):
    """Flags and everything after them."""
    return struct.unpack("!HHHH", data[4:12])


HEAD = b"\x12\x34\x01\0"
QUESTION = b"\x01a\x02bc\0\0\x01\0\x01"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def message(question=QUESTION, *, flags=b"\x01\0", counts=(1, 0, 0, 0), more=b""):
    return b"\x12\x34" + flags + struct.pack("!HHHH", *counts) + question + more


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (message(flags=b"\x09\0"), Rcode.NOTIMP),  # inverse query
        (message(flags=b"\x11\0"), Rcode.NOTIMP),  # status
        (message(flags=b"\x21\0"), Rcode.NOTIMP),  # notify
        (message(flags=b"\x29\0"), Rcode.NOTIMP),  # update
        (message(b"", counts=(0, 0, 0, 0)), Rcode.FORMERR),
        (message(QUESTION * 2, counts=(2, 0, 0, 0)), Rcode.FORMERR),
        (message(counts=(1, 1, 0, 0), more=b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\1\2\3\4"), Rcode.FORMERR),
        (message(counts=(1, 0, 1, 0), more=b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\1\2\3\4"), Rcode.FORMERR),
        (message(more=b"x"), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1)), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 2), more=OPT * 2), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), more=b"\x01a" + OPT), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), more=b"\xc0\x0c" + OPT[1:]), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), more=OPT[:-1] + b"\x03\0\x0a\0"), Rcode.FORMERR),  # half an option
        (message(counts=(1, 0, 0, 1), more=OPT[:-1] + b"\x04\0\x0a\0\x01"), Rcode.FORMERR),  # longer than the record
        (message(counts=(1, 0, 0, 1), more=OPT[:-1] + b"\x01"), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 65), more=OPT), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), more=b"\0\0\x29\x04\xd0\0\x01\0\0\0\0"), Rcode.BADVERS),
        (message(b"\xc0\x0c\0\x01\0\x01"), Rcode.FORMERR),  # a name that is itself
        (message(b"\x01a\xc0\x0c\0\x01\0\x01"), Rcode.FORMERR),
        (message(b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01"), Rcode.FORMERR),  # a label of 64
        (message(b"\x80a\0\0\x01\0\x01"), Rcode.FORMERR),
        (message((b"\x3f" + b"a" * 63) * 4 + b"\0\0\x01\0\x01"), Rcode.FORMERR),  # 257 octets
        (message(b"\x01a" * 127 + b"\x01a\0\0\x01\0\x01"), Rcode.FORMERR),
    ],
)
def test_r3_r8_what_is_no_plain_query_gets_its_error(data, rcode):
    found = parse_query(data)
    assert isinstance(found, Unreadable)
    assert found.rcode is rcode
    answer = render_unreadable(found)
    assert answer[:2] == b"\x12\x34"
    assert answer[2] & 0x80
    assert dns.message.from_wire(answer).rcode() == rcode


def test_r8_a_name_of_the_greatest_length_is_read():
    name = b"\x3f" + b"a" * 63
    assert parsed(message(name * 3 + b"\x3d" + b"a" * 61 + b"\0\0\x01\0\x01")).hostname == ".".join(["a" * 63] * 3 + ["a" * 61])


@pytest.mark.parametrize("data", [b"", b"\0" * 11, message(flags=b"\x81\x80"), message(flags=b"\x81\x80", more=b"\xff" * 99)])
def test_r8_what_asks_nothing_gets_no_answer(data):
    """Or two servers could be set to answering each other for ever."""
    assert parse_query(data) is None


def test_an_error_to_a_client_with_edns_has_edns_too():
    found = parse_query(message(counts=(1, 0, 0, 1), more=b"\0\0\x29\x04\xd0\0\x01\0\0\0\0"))
    assert isinstance(found, Unreadable)
    answer = dns.message.from_wire(render_unreadable(found))
    assert (answer.edns, answer.rcode()) == (0, dns.rcode.BADVERS)


def test_signatures_and_options_are_passed_over():
    cookie = dns.edns.GenericOption(10, b"12345678")
    assert parsed(wire(use_edns=0, options=[cookie])).edns == 1232
    # An unsigned answer to a signed query: the client drops it, as it must.
    tsig = b"\x03key\0\0\xfa\0\xff\0\0\0\0\0\x02xx"
    assert parsed(message(counts=(1, 0, 0, 2), more=OPT + tsig)).edns == 1232


def test_r3_an_incremental_transfer_is_read_as_far_as_its_question():
    data = message(QUESTION[:-4] + b"\0\xfb\0\x01", counts=(1, 0, 1, 0), more=b"\xc0\x0c whatever")
    assert parsed(data).rdtype == 251


@pytest.mark.parametrize("data", [wire(), wire(use_edns=0), wire("_a._b.example.com", "SRV", use_edns=0, want_dnssec=True)])
def test_r8_every_prefix_is_an_error_or_nothing(data):
    for length in range(len(data)):
        found = parse_query(data[:length])
        assert found is None if length < 12 else isinstance(found, Unreadable), length
    assert isinstance(parse_query(data), Query)


NAMES = {
    b"\x03api\x07example\x03com\0": "api.example.com",
    b"\x05_acme\x01a\0": "_acme.a",
    b"\0": None,
    b"\x03a.b\x03com\0": None,  # one label that reads as two
    b"\x03a\0b\x03com\0": None,
    b"\x09127.0.0.1\0": None,
    b"\x03127\x010\x010\x011\0": None,
    b"\x030x7\x02f1\x010\0": None,
    b"\x02\xc3\xa9\x03com\0": None,
    b"\x01 \x03com\0": None,
    b"\x01*\x03com\0": None,
}


@pytest.mark.parametrize(("name", "hostname"), NAMES.items())
def test_n7_n11_only_what_spells_a_host_name_is_one(name, hostname):
    assert parsed(message(name + b"\0\x01\0\x01")).hostname == hostname


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\x03API\x03com\0", "api.com"),
        (b"\0", "."),
        (b"\x03a.b\x03com\0", r"a\046b.com"),
        (b"\x05\x1b[31m\x03com\0", r"\027\09131m.com"),
        (b"\x02\n\\\x03com\0", r"\010\092.com"),
        (b"\x02\xff\0\x03com\0", r"\255\000.com"),
    ],
)
def test_x14_a_name_is_shown_in_letters_that_do_no_harm(name, shown):
    found = shown_name(parsed(message(name + b"\0\x01\0\x01")))
    assert found == shown
    assert found.isascii()
    assert found.isprintable()


def test_types_have_dnspython_s_names():
    for number in range(0x10000):
        name = type_name(number)
        assert not name.startswith("TYPE") or name == f"TYPE{number}"
        if not name.startswith("TYPE"):
            assert dns.rdatatype.from_text(name) == number


LABELS = st.lists(st.binary(min_size=1, max_size=12), max_size=6)


NO_IXFR = st.integers(0, 0xFFFF).filter(lambda rdtype: rdtype != dns.rdatatype.IXFR)
"""Of a transfer nothing is read but what its refusal takes."""


@given(LABELS, NO_IXFR, st.integers(0, 0xFFFF), st.sampled_from([None, 0, 512, 4096]), st.booleans())
def test_r8_what_is_read_is_what_dnspython_reads(labels, rdtype, id_, edns, dnssec):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    opt = b"" if edns is None else struct.pack("!BHHIH", 0, 41, edns, 0x8000 if dnssec else 0, 0)
    data = struct.pack("!HHHHHH", id_, 0x0100, 1, 0, 0, 1 if opt else 0) + name + struct.pack("!HH", rdtype, 1) + opt
    query, theirs = parsed(data), dns.message.from_wire(data)
    assert query.id == theirs.id
    assert query.name == theirs.question[0].name.canonicalize().to_wire()
    assert query.rdtype == theirs.question[0].rdtype
    assert (query.edns is not None) == (theirs.edns == 0)
    if edns is not None:
        assert (query.edns, query.dnssec) == (theirs.payload, bool(theirs.ednsflags & dns.flags.DO))


GOOD = st.sampled_from([wire(), wire(use_edns=0), wire("x" * 60 + ".example.com", "TXT", use_edns=0)])


@given(GOOD, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6), st.binary(max_size=20))
@example(wire(), [(2, 0x80)], b"")
def test_r8_bytes_changed_anywhere_never_crash_and_are_never_read_otherwise(data, changes, more):
    """What we accept, dnspython must accept, and see the same question in."""
    changed = bytearray(data + more)
    for place, value in changes:
        changed[place % len(changed)] = value
    found = parse_query(bytes(changed))
    if isinstance(found, Unreadable):
        assert render_unreadable(found)[:2] == changed[:2]
    if not isinstance(found, Query) or found.rdtype == 251:
        return
    try:
        theirs = dns.message.from_wire(bytes(changed), ignore_trailing=False)
    except (dns.exception.DNSException, ValueError):
        # It also looks into signatures and options, and knows classes and types that can't be in a question.
        assert changed[11] or found.rdclass != 1
        return
    assert theirs.question[0].name.canonicalize().to_wire() == found.name
    assert theirs.question[0].rdtype == found.rdtype


@given(st.binary(max_size=300))
def test_r8_any_bytes_are_read_without_an_exception(data):
    parse_query(data)
    parse_query(message(data))


# -- answers


def address(number: int) -> Record:
    return Record(None, 1, 30, bytes([192, 0, 2, number % 256]))


def answered(query: Query, answer: Answer, *, udp=False, age=0) -> dns.message.Message:
    return dns.message.from_wire(render(query, answer, udp=udp, age=age))


def test_an_answer_fits_its_question():
    question = dns.message.make_query("aPi.Example.com", "A", use_edns=0, want_dnssec=True)
    question.flags |= dns.flags.CD | dns.flags.AD
    found = answered(parsed(question.to_wire()), Answer(rcode=Rcode.NOERROR, records=[address(1), address(2)]))
    assert question.is_response(found)
    assert found.question[0].name.to_text() == "aPi.Example.com."  # the case that the client wrote: it is its nonce
    assert found.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA | dns.flags.CD
    assert found.ednsflags & dns.flags.DO
    assert [str(rdata) for rdata in found.answer[0]] == ["192.0.2.1", "192.0.2.2"]
    assert found.answer[0].ttl == 30


def test_b9_a_denial_has_no_soa_and_tells_why():
    query = parsed(wire(use_edns=0))
    found = answered(query, Answer(rcode=Rcode.NXDOMAIN, ede=(Ede.BLOCKED, "domain-not-allowed")))
    assert found.rcode() == dns.rcode.NXDOMAIN
    assert (found.answer, found.authority, found.additional) == ([], [], [])
    (option,) = found.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (15, "domain-not-allowed")


def test_a_client_without_edns_gets_none():
    found = answered(parsed(wire()), Answer(rcode=Rcode.NXDOMAIN, ede=(Ede.BLOCKED, "x")))
    assert found.edns == -1


@pytest.mark.parametrize(("edns", "limit"), [(None, 512), (0, 512), (700, 700), (1232, 1232), (65535, MAX_UDP)])
def test_a_datagram_has_what_fits_and_tells_that_there_is_more(edns, limit):
    """As many as fit: old clients never come back over TCP."""
    query = parsed(wire() if edns is None else wire(use_edns=0, payload=edns))
    answer = Answer(rcode=Rcode.NOERROR, records=[address(n) for n in range(200)])
    data = render(query, answer, udp=True)
    assert limit - 16 < len(data) <= limit
    found = dns.message.from_wire(data)
    assert found.flags & dns.flags.TC
    whole = render(query, answer, udp=False)
    assert not dns.message.from_wire(whole).flags & dns.flags.TC
    assert dns.message.from_wire(whole).answer[0].ttl == 30
    assert len(dns.message.from_wire(whole).answer[0]) == 200


def test_even_over_tcp_no_answer_is_longer_than_its_length_can_say():
    query = parsed(wire("example.com", "TXT"))
    answer = Answer(rcode=Rcode.NOERROR, records=[Record(None, 16, 30, b"\xff" + bytes([n]) * 255) for n in range(250)] * 2)
    data = render(query, answer, udp=False)
    assert 65_000 < len(data) <= 65_535
    assert data[2] & 2


def test_lifetimes_run_down_and_never_out():
    answer = Answer(rcode=Rcode.NOERROR, records=[Record(None, 1, 30, b"\1\2\3\4"), Record(b"\x01x\0", 1, 5, b"\1\2\3\4")])
    found = answered(parsed(wire()), answer, age=10)
    assert [rrset.ttl for rrset in found.answer] == [20, 1]
    assert found.answer[1].name.to_text() == "x."
