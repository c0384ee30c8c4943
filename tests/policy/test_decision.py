"""Values that are made by the quick way are what their classes make."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.address import parse_address
from sbxproxy.hostname import Hostname
from sbxproxy.policy.decision import Dial, Facts, Relay, Wire, make_dial, make_facts, make_relay

A = Hostname("a.example")
addresses = st.sampled_from(["192.0.2.1", "2001:db8::1", "192.0.2.2"]).map(parse_address)
optional_names = st.none() | st.just(A)

facts = st.fixed_dictionaries(
    {"host": addresses | st.just(A), "port": st.integers(1, 3)},
    optional={
        "wire": st.sampled_from([None, Wire.TLS, "tls", "other"]),
        "server_name": optional_names,
        "alpn": st.sampled_from([(), (b"h2",), (b"h2", b"http/1.1")]),
        "addresses": st.none() | st.lists(addresses, max_size=2).map(tuple),
        "problem": st.sampled_from([None, "malformed"]),
    },
)
dials = st.tuples(optional_names, st.lists(addresses, max_size=2).map(tuple), st.integers(1, 3))
relays = st.fixed_dictionaries(
    {"reason": st.just("allow-all"), "matched": optional_names, "dial": dials.map(lambda fields: Dial(*fields))},
    optional={"provisional": st.booleans(), "only_postgres": st.booleans()},
)

MADE = [
    (Facts(host=A, port=1), make_facts(host=A, port=1)),
    (Dial(A, (), 1), make_dial(A, (), 1)),
    (
        Relay(reason="allow-all", matched=None, dial=Dial(A, (), 1)),
        make_relay(reason="allow-all", matched=None, dial=Dial(A, (), 1)),
    ),
]


def check_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)


@given(fields=facts)
def test_facts_are_the_same(fields):
    check_same(make_facts(**fields), Facts(**fields))


@given(fields=dials)
def test_dials_are_the_same(fields):
    check_same(make_dial(*fields), Dial(*fields))


@given(fields=relays)
def test_relays_are_the_same(fields):
    check_same(make_relay(**fields), Relay(**fields))


@pytest.mark.parametrize(("proper", "made"), MADE)
def test_they_behave_as_frozen_dataclasses(proper, made):
    """Nothing about them can be changed, and they can be copied."""
    field = "port" if hasattr(made, "port") else "reason"
    with pytest.raises(FrozenInstanceError):
        setattr(made, field, 2)
    with pytest.raises(FrozenInstanceError):
        delattr(made, field)
    assert not hasattr(made, "__dict__")
    for copied in (replace(made), copy.copy(made), pickle.loads(pickle.dumps(made))):
        check_same(copied, proper)


@given(one=facts, other=facts)
def test_equal_facts_have_equal_hashes_and_others_are_told_apart(one, other):
    """Which of several addresses come after the first isn't in the hash, but in the comparison."""
    first, second = Facts(**one), Facts(**other)
    assert (hash(first) == hash(second)) >= (first == second)
    assert len({first: 1, second: 2}) == 2 - (first == second)


@given(fields=facts, others=st.none() | st.lists(addresses, max_size=2).map(tuple))
def test_facts_with_other_addresses_differ_in_nothing_else(fields, others):
    check_same(Facts(**fields).at(others), replace(Facts(**fields), addresses=others))
