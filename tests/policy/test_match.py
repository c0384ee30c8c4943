"""What a rule asks of a request."""

import pytest

from sbxproxy.policy.fault import Fault
from sbxproxy.policy.match import Form, KeyValue, Matcher, RequestMatch

EXACT, STARTS, REGEX = Form.EXACT, Form.STARTS_WITH, Form.REGEX


def fits(match: RequestMatch, target: str = "/", *, method: str = "GET", headers=()) -> bool:
    return match.fits(method=method, target=target, headers=headers)


@pytest.mark.parametrize(
    ("form", "text", "value", "expected"),
    [
        (EXACT, "a", "a", True),
        (EXACT, "a", "A", False),
        (EXACT, "", "", True),
        (STARTS, "ab", "abc", True),
        (STARTS, "ab", "cab", False),
        (REGEX, "b+", "abbc", True),
        (REGEX, "^b", "ab", False),
        (REGEX, "^a.c$", "abc", True),
        (REGEX, "B", "abc", False),
        (REGEX, "é", "café", True),
    ],
)
def test_matchers_compare(form: Form, text: str, value: str, expected: bool):
    """A regular expression is found anywhere unless it is anchored."""
    assert Matcher.of(form, text).fits(value) is expected


@pytest.mark.parametrize("form", list(Form))
def test_names_of_header_fields_compare_without_case(form: Form):
    """In every form, on both sides."""
    assert Matcher.of(form, "X-Api", fold=True).fits("x-aPI")


@pytest.mark.parametrize("pattern", ["(s3cret", "(?=s3cret)", r"(s3cret)\1", "s3cret{1001}", "[s3cret"])
def test_n13_what_re2_does_not_do_is_a_fault(pattern: str, capfd):
    """Look-around and back-references take exponential time elsewhere; nothing of the pattern is printed or shown."""
    with pytest.raises(Fault, match="not a regular expression") as caught:
        Matcher.of(REGEX, pattern)
    assert "s3cret" not in f"{caught.value} {caught.value.expected}"
    assert caught.value.__suppress_context__
    assert capfd.readouterr() == ("", "")


def test_n13_an_expression_cannot_be_made_slow():
    """A classic of backtracking engines, on a text of 100 kB."""
    assert not Matcher.of(REGEX, "^(a+)+$").fits("a" * 100_000 + "b")


def test_an_empty_start_is_a_fault():
    """Everything starts with it."""
    with pytest.raises(Fault, match="empty"):
        Matcher.of(STARTS, "")


def test_matchers_are_values_that_hide_their_text():
    """Equal when written the same, and silent about what may be a token."""
    assert Matcher.of(REGEX, "s3cret") == Matcher.of(REGEX, "s3cret")
    assert Matcher.of(EXACT, "a") != Matcher.of(STARTS, "a")
    assert "s3cret" not in repr(Matcher.of(REGEX, "s3cret"))
    assert "s3cret" not in repr(Matcher.of(EXACT, "s3cret"))


@pytest.mark.parametrize(
    ("form", "text", "target", "expected"),
    [
        (EXACT, "/v1/x", "/v1/x?a=b", True),
        (EXACT, "/v1/x", "/v1/X", False),
        (EXACT, "/v1/x", "/v1/x/", False),
        (STARTS, "/v1/", "/v1/x", True),
        (STARTS, "/v1/", "/v1", False),
        (STARTS, "/v1/", "/v1/../admin", False),
        (REGEX, "^/v[12]/", "/v2/x", True),
        (REGEX, "x=y", "/?x=y", False),
        (EXACT, "/user%40x", "/user@x", True),
        (EXACT, "/user@x", "/user%40x", True),
        (REGEX, "^/user@x$", "/user%40x", True),
        (REGEX, ".*", "/v1//x", False),
    ],
)
def test_h20_paths_match_without_their_query_in_one_form(form: Form, text: str, target: str, expected: bool):
    """No spelling of a path dodges a rule for it; an ambiguous one fits none."""
    assert fits(RequestMatch(path=Matcher.of_path(form, text)), target) is expected


def test_methods_are_alternatives_and_have_case():
    """Any of the listed ones."""
    match = RequestMatch(methods=frozenset({"GET", "POST"}))
    assert fits(match, method="POST")
    assert not fits(match, method="PUT")
    assert not fits(match, method="post")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/?key=value", True),
        ("/?k%65y=val%75e", True),
        ("/?a=b&key=value", True),
        ("/?key=other&key=value", True),
        ("/?Key=value", False),
        ("/?key=Value", False),
        ("/?key=other&other=value", False),
        ("/?key", False),
        ("/", False),
        ("/key=value", False),
    ],
)
def test_query_parameters_are_decoded_and_pair_up(target: str, expected: bool):
    """Key and value must fit in the same pair; repeated ones are alternatives."""
    pair = KeyValue(Matcher.of(EXACT, "key"), Matcher.of(EXACT, "value"))
    assert fits(RequestMatch(query=(pair,)), target) is expected


def test_query_values_are_read_as_form_values():
    """A + is a space, blank values count, and several conditions must all hold."""
    blank = KeyValue(Matcher.of(EXACT, "a"), Matcher.of(EXACT, ""))
    space = KeyValue(None, Matcher.of(EXACT, "x y"))
    match = RequestMatch(query=(blank, space))
    assert fits(match, "/?a=&b=x+y")
    assert fits(match, "/?a&b=x%20y")
    assert not fits(match, "/?a=1&b=x+y")
    assert not fits(match, "/?a=")


def test_header_fields_fit_without_case_in_names_only():
    """Each condition needs a field; any of repeated ones will do; bytes beyond ASCII are latin-1."""
    match = RequestMatch(
        headers=(
            KeyValue(Matcher.of(EXACT, "X-Kind", fold=True), Matcher.of(STARTS, "caf\xe9")),
            KeyValue(Matcher.of(STARTS, "x-other", fold=True), None),
        )
    )
    assert fits(match, headers=[(b"x-kind", b"tea"), (b"X-KIND", b"caf\xe9 noir"), (b"X-Other-One", b"")])
    assert not fits(match, headers=[(b"x-kind", b"CAF\xe9"), (b"x-other", b"")])
    assert not fits(match, headers=[(b"x-kind", b"caf\xe9")])
    assert not fits(match)


def test_an_empty_match_takes_every_request():
    """Nothing is asked for."""
    assert RequestMatch().is_empty
    assert fits(RequestMatch(), "/v1/../admin", method="BREW")
    assert not RequestMatch(methods=frozenset({"GET"})).is_empty
