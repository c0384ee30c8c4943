"""Paths that two programs could read differently are told from those that they can't."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.policy.fault import Fault
from sbxproxy.policy.path import canonical_path, canonical_rule_path, is_ambiguous_path

AMBIGUOUS = [
    "/v1/../admin", "/v1/..", "/..", "/v1/./x", "/.", "/v1/.", "/%2e%2e/admin", "/v1/%2E%2E/admin", "/v1/.%2e/admin",
    "/v1/%2e/admin", "/v1%2fadmin", "/v1%2Fadmin", "/v1/..%2fadmin", "/v1/..%5cadmin", "/v1%5C..%5Cadmin", "/v1\\..\\admin",
    "\\admin", "//admin", "/v1//admin", "/v1/x;y=z", "/v1;x=y/admin", "/v1/..;/admin", "/v1/..;foo=bar/admin", "/v1/%3bx",
    "/v1/%3Bx=y", "/admin#frag", "/v1?x#frag", "/v1/%23x", "/v1/%3Fx", "/v1/%252e%252e/admin", "/v1/%25", "/%61dmin", "/%41dmin",
    "/v1/%7Euser", "/v1/%00", "/v1/%0a", "/v1/%0D", "/v1/%7F", "/v1/%", "/v1/%4", "/v1/%zz", "/v1/%u002e", "/v1/a b", "/v1/a\tb",
    "/v1/\0", "/v1/é", "/v1/\x80", "/v1/%c3%a9", "/v1/%C0%AF", "/v1/%C0%AE%C0%AE/x", "/v1/%E9", "/v1/%ED%A0%80", '/v1/"x"', "/v1/<x>",
    "/v1/{x}", "/v1/x|y", "/v1/x^y", "/v1/`x`", "/v1/[x]", "v1/x", "", "?x", "http://example.com/", "example.com:443", "**", "*?x#",
]  # fmt: skip

CLEAR = [
    ("/", "/"),
    ("/v1/admin", "/v1/admin"),
    ("/v1/", "/v1/"),
    ("/v1/x?y=../..//;%2f", "/v1/x"),
    ("/v1/.well-known/...", "/v1/.well-known/..."),
    ("/v1/..x/x..", "/v1/..x/x.."),
    ("/a-b_c~d.e!f$g&h'i(j)k*l+m,n:o=p@q", "/a-b_c~d.e!f$g&h'i(j)k*l+m,n:o=p@q"),
    ("/v1/user%40example.com", "/v1/user@example.com"),
    ("/v1/arn%3Aaws%3As3", "/v1/arn:aws:s3"),
    ("/a%20b", "/a%20b"),
    ("/caf%C3%A9", "/caf%C3%A9"),
    ("/%7Bid%7D", "/%7Bid%7D"),
    ("/a%2Bb", "/a+b"),
    ("*", "*"),
]


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_h20_ambiguous_paths(target: str):
    """Some server reads each of these as another path than another server does."""
    assert is_ambiguous_path(target)
    assert canonical_path(target) is None


@pytest.mark.parametrize(("target", "canonical"), CLEAR)
def test_h20_clear_paths(target: str, canonical: str):
    """Ordinary paths pass; what may stand plain or encoded is matched plain."""
    assert not is_ambiguous_path(target)
    assert canonical_path(target) == canonical


@pytest.mark.parametrize("target", [target for target in AMBIGUOUS if target.startswith("/") and "?" not in target])
def test_h20_rules_for_ambiguous_paths_are_faults(target: str):
    """They could never match, and their author should know."""
    if canonical_path(target.rstrip(".") + "x") is None:
        with pytest.raises(Fault, match="never match"):
            canonical_rule_path(target, whole=False)
    with pytest.raises(Fault, match="never match"):
        canonical_rule_path(target, whole=True)


def test_rule_paths_are_matched_in_the_same_form():
    """The author may write either spelling; the start of a path may end within a segment."""
    assert canonical_rule_path("/user%40x", whole=True) == "/user@x"
    assert canonical_rule_path("/user@x", whole=True) == "/user@x"
    assert canonical_rule_path("/", whole=False) == "/"
    assert canonical_rule_path("/v1/.", whole=False) == "/v1/."
    assert canonical_rule_path("/v1/..", whole=False) == "/v1/.."
    for wrong, hint in (
        ("v1", "starts with /"),
        ("", "starts with /"),
        ("/a?b=c", "queryString"),
        ("/a%", "never"),
    ):
        with pytest.raises(Fault) as caught:
            canonical_rule_path(wrong, whole=False)
        assert hint in f"{caught.value.problem} {caught.value.expected}"


@given(st.text("/.%25eEfFcC;\\ab?#@40 ", max_size=20))
def test_h20_canonical_paths_stay_what_they_are(target: str):
    """Reading the canonical form again changes nothing, and no dot segment, slash or dot hides in it."""
    path = canonical_path("/" + target)
    if path is None:
        return
    assert canonical_path(path) == path
    assert not {"", ".", ".."} & set(path.split("/")[1:-1])
    assert not any(hidden in path.lower() for hidden in ("%2e", "%2f", "%5c", "%25", "%3b", "//", "\\", ";", "#", "?"))
