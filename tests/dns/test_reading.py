"""What is kept of a name server's answer."""

import itertools

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.dns.message import Answer, Query, Rcode, parse_query, render
from sbxproxy.dns.reading import MOST_ALIASES, MOST_RECORDS, read_answer
from support.dns import reply, texts

QUERY = dns.message.make_query("example.com", "TXT")
NAME = QUERY.question[0].name.to_wire()


def read(*records, rcode=0, rdtype=16) -> Answer:
    return read_answer(reply(QUERY, *records, rcode=rcode).to_wire(), NAME, rdtype)


def seen(answer: Answer, rdtype="TXT") -> list[str]:
    """As a client reads it."""
    query = parse_query(dns.message.make_query("example.com", rdtype).to_wire())
    assert isinstance(query, Query)
    return texts(dns.message.from_wire(render(query, answer, udp=False)))


def test_the_records_asked_for_are_kept():
    answer = read('example.com. 60 TXT "a"', 'example.com. 60 TXT "b"')
    assert seen(answer) == ['example.com. TXT "a"', 'example.com. TXT "b"']
    assert answer.rcode is Rcode.NOERROR


def test_r4_a_chain_of_aliases_is_followed_and_nothing_beside_it():
    answer = read(
        'evil.example. 60 TXT "x"',
        'b.example. 60 TXT "end"',
        "a.example. 60 CNAME b.example.",
        "example.com. 60 CNAME a.example.",
        "other.example. 60 CNAME b.example.",
        "example.com. 60 A 192.0.2.1",
    )
    assert seen(answer) == ["example.com. CNAME a.example.", "a.example. CNAME b.example.", 'b.example. TXT "end"']


def test_r4_a_chain_that_leads_nowhere_is_its_own_answer():
    assert seen(read("example.com. 60 CNAME a.example.")) == ["example.com. CNAME a.example."]


def test_an_alias_itself_can_be_asked_for():
    answer = read("example.com. 60 CNAME a.example.", 'a.example. 60 TXT "x"', rdtype=5)
    assert seen(answer, "CNAME") == ["example.com. CNAME a.example."]


@pytest.mark.parametrize("links", [MOST_ALIASES, MOST_ALIASES + 1])
def test_r4_a_chain_has_a_greatest_length(links):
    names = ["example.com.", *(f"n{n}.example." for n in range(links))]
    records = [f"{one} 60 CNAME {other}" for one, other in itertools.pairwise(names)]
    records.append(f'{names[-1]} 60 TXT "x"')
    if links == MOST_ALIASES:
        assert len(read(*records).records) == links + 1
    else:
        with pytest.raises(ValueError, match="chain of aliases"):
            read(*records)


def test_r4_a_loop_of_aliases_ends():
    with pytest.raises(ValueError, match="chain of aliases"):
        read("example.com. 60 CNAME a.example.", "a.example. 60 CNAME example.com.")


def test_authority_and_additional_sections_are_dropped():
    message = reply(QUERY, 'example.com. 60 TXT "a"')
    message.authority.append(dns.rrset.from_text("example.com.", 60, "IN", "NS", "ns.evil.example."))
    message.additional.append(dns.rrset.from_text("api.example.com.", 60, "IN", "A", "192.0.2.66"))
    assert len(read_answer(message.to_wire(), NAME, 16).records) == 1


@pytest.mark.parametrize(("ttl", "kept"), [(0, 1), (1, 1), (299, 299), (86400, 300), (2**31 - 1, 300), (2**32 - 1, 1)])
def test_r5_lifetimes_are_put_within_bounds(ttl, kept):
    data = reply(QUERY, 'example.com. 77 TXT "a"').to_wire().replace((77).to_bytes(4), ttl.to_bytes(4))
    assert [record.ttl for record in read_answer(data, NAME, 16).records] == [kept]


def test_r8_an_answer_of_thousands_of_records_is_cut():
    assert len(read(*(f'example.com. 60 TXT "{n}"' for n in range(1000))).records) == MOST_RECORDS


def test_no_such_name_is_an_answer():
    assert read(rcode=dns.rcode.NXDOMAIN).rcode is Rcode.NXDOMAIN


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR", "NOTIMP", "YXDOMAIN"])
def test_an_error_is_none(rcode):
    with pytest.raises(ValueError, match="an error"):
        read(rcode=dns.rcode.from_text(rcode))


WHOLE = reply(QUERY, "example.com. 60 CNAME a.example.", 'a.example. 60 TXT "hello"').to_wire()


def test_r8_every_prefix_is_malformed():
    for length in range(len(WHOLE)):
        with pytest.raises(ValueError, match="malformed"):
            read_answer(WHOLE[:length], NAME, 16)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=8))
def test_r8_hostile_answers_are_read_or_malformed_and_nothing_else(changes):
    changed = bytearray(WHOLE)
    for place, value in changes:
        changed[place % len(changed)] = value
    try:
        answer = read_answer(bytes(changed), NAME, 16)
    except ValueError:
        return
    assert len(answer.records) <= 2
