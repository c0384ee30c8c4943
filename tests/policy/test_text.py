"""JSON text: read in pieces, it comes to the same as read at once, faults included."""

import gc
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.errors import PolicyError
from sbxproxy.policy import text as module
from sbxproxy.policy.model import Policy
from sbxproxy.policy.text import load


def loaded(text: str | bytes, large: int) -> object:
    """What comes of *text* if texts of *large* characters are large; in place of an error, its problems."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "_LARGE", large)
        try:
            return load(text)
        except PolicyError as error:
            return error.problems


def check_same(text: str) -> None:
    assert repr(loaded(text, 0)) == repr(loaded(text, len(text) + 1))


names = st.sampled_from(["a.example", "*.b.example", "c", "é", "", 'q"', "\\", "\n", ":", "x:[],y", "[", "allow", "\ud800"])
leaves = names | st.none() | st.booleans() | st.integers(-9, 9) | st.just(1.5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(names, inner, max_size=6), max_leaves=30
)
maps = st.dictionaries(names, st.just([]) | values, max_size=12)
documents = values | st.fixed_dictionaries({"allow": st.lists(names, max_size=12) | maps}, optional={"subnets": maps})
layouts = st.sampled_from([(None, None), (2, None), (None, (" ,\t", "\r\n: ")), (None, (",", ":"))])


def written(document: object, layout: tuple[int | None, tuple[str, str] | None], plain: bool) -> str:
    indent, separators = layout
    return json.dumps(document, indent=indent, separators=separators, ensure_ascii=not plain)


@settings(deadline=None)
@given(document=documents, layout=layouts, plain=st.booleans())
def test_pieces_come_to_the_whole(document: object, layout, plain):
    text = written(document, layout, plain)
    assert loaded(text, 0) == document
    check_same(text)


@settings(deadline=None)
@given(document=documents, layout=layouts, plain=st.booleans(), data=st.data())
def test_faults_are_told_as_at_once(document: object, layout, plain, data):
    """Something is cut out, said twice, or put in, anywhere."""
    text = written(document, layout, plain)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    inserted = data.draw(st.sampled_from(["", text[first:last] * 2, ",", "[", "]", "{", "}", '"', ":", " ", "\x00", "NaN", "\\"]))
    check_same(text[:first] + inserted + text[last:])


@settings(max_examples=20, deadline=None)
@given(document=documents)
def test_every_beginning_is_refused_as_at_once(document: object):
    text = json.dumps(document)
    for end in range(len(text)):
        check_same(text[:end])


@pytest.mark.parametrize(
    "text",
    [
        '{"allow": {"a": [], "b": [], "a": [], "c": []}}',
        '{"allow": {"a": [], "b": [], "c": [], "a": []}}',
        '{"allow": [], "subnets": {}, "allow": ["a"]}',
        '{"allow": {"a": [{"match": {}, "match": {}}]}}',
        '{"allow": ["a", "b", "c",]}',
        '{"allow": {"a": [], "b": [],}}',
        '{"allow": ["a", "b", "c"]} x',
        '{1: ["a"]}',
        '{["a"]: 1}',
        '{"allow": ["a" "b", "c"]}',
        '{"a": 1]',
        '["a", "b", "c"}',
        '["a\n", "b", "c"]',
        '["a", NaN]',
        "[" * 100_000,
        " " * 10,
        "",
    ],
)
def test_what_is_wrong_is_told_as_at_once(text: str):
    assert isinstance(loaded(text, 0), tuple)
    check_same(text)


def test_bytes_are_utf8():
    assert loaded('["é", "a", "b"]'.encode(), 0) == ["é", "a", "b"]
    assert loaded(b'["\xff"]', 0) == loaded(b'["\xff"]', 99)


def test_a_long_run_is_read_to_its_end():
    """Longer than what is read at once, twice over."""
    listed = [f"n{number}.example" for number in range(5001)]
    assert loaded(json.dumps(listed), 0) == listed
    keyed: dict[str, list[object]] = {name: [] for name in listed}
    assert loaded(json.dumps(keyed), 0) == keyed


@pytest.mark.parametrize("keyed", [False, True])
def test_a_large_policy_is_hardly_any_objects_to_collect(keyed):
    """Each would be looked at again and again while the policy is read, with the interpreter held."""
    size = 20_000
    listed = [f"{'*.' * (number % 10 == 0)}d{number}.example" for number in range(size)]
    ranges = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(size)]
    text = json.dumps({"allow": {name: [] for name in listed} if keyed else listed, "subnets": {"allow": ranges, "deny": ranges}})
    gc.collect()
    before = len(gc.get_objects())
    policy = Policy.from_json(text)
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    assert (len(policy.domains), len(policy.allow), len(policy.deny)) == (size, size, size)


def test_another_thread_runs_while_a_large_policy_is_read():
    """It gets a turn far more often than the interpreter would give it one by itself."""
    text = json.dumps({"allow": [f"d{number}.example" for number in range(50_000)]})
    turns, done = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not done.wait(0.0001):
            turns += 1

    other = threading.Thread(target=take_turns)
    other.start()
    try:
        Policy.from_json(text)
    finally:
        done.set()
        other.join()
    assert turns > 20
