from __future__ import annotations

import pytest

from sbxproxy.address import parse_address
from sbxproxy.policy.decision import Deny, Dial, Relay, Wire
from sbxproxy.testing import client_hello, make_flow, make_request
from sbxproxy.wire.tls import ClientHello, parse_client_hello


def test_a_flow_by_default_is_one_that_a_domain_rule_allowed():
    """No event loop runs here: a plugin's plain tests can use it."""
    flow = make_flow()
    address = parse_address("1.2.3.4")
    assert flow.facts.server_name == flow.facts.host == "api.example.com"
    assert flow.decision == Relay(
        reason="domain-allowed", matched="api.example.com", dial=Dial("api.example.com", (address,), 443)
    )


def test_a_flow_to_an_address_has_no_name_unless_given():
    flow = make_flow("1.2.3.4", wire=Wire.UNKNOWN)
    assert flow.facts.server_name is None
    assert flow.facts.alpn == ()
    assert flow.decision.dial.name is None
    assert make_flow("1.2.3.4", server_name="API.example.com").facts.server_name == "api.example.com"


def test_a_flow_takes_a_decision():
    deny = Deny(reason="no", detail="no")
    assert make_flow(decision=deny).decision is deny


@pytest.mark.parametrize("bad", [{"host": "a b"}, {"server_name": "127.1"}, {"addresses": ["1.2.3"]}])
def test_a_flow_of_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match=r"not a|neither"):
        make_flow(**bad)


def test_requests_take_headers_as_a_mapping_or_as_pairs():
    assert make_request(headers={"a": "1"}).headers.fields == ((b"a", b"1"),)
    twice = make_request("POST", "/x?y", host="h.example", headers=[("a", "1"), (b"A", b"\xe9")], body=b"z")
    assert twice.headers.get_all("a") == ["1", "é"]
    assert (twice.method, twice.path, twice.query, twice.host, twice.body) == ("POST", "/x", "y", "h.example", b"z")


@pytest.mark.parametrize("record_size", [1, 40, 16384])
def test_a_hello_is_read_back_whatever_its_records(record_size):
    data = client_hello("www.example.org", alpn=[b"h2", b"http/1.1"], padding=300, record_size=record_size)
    assert parse_client_hello(data) == ClientHello(b"www.example.org", (b"h2", b"http/1.1"), (0x0304,), len(data))


def test_a_hello_without_a_name():
    assert parse_client_hello(client_hello(None, alpn=())).server_name is None


@pytest.mark.parametrize("record_size", [0, 16385])
def test_a_hello_in_impossible_records_is_refused(record_size):
    with pytest.raises(ValueError, match="record_size"):
        client_hello(record_size=record_size)
