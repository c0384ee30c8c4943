"""Domain patterns: what they may look like, what they match, and which one wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.hostname import canonical_hostname
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.pattern import PatternTable, parse_pattern


def matches(pattern: str, name: str) -> bool:
    canonical = canonical_hostname(name)
    assert canonical is not None
    return PatternTable([parse_pattern(pattern)]).find(canonical) is not None


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("example.com", "evil-example.com", False),
        ("example.com", "example.com.evil.net", False),
        ("*.example.com", "evil-example.com", False),
        ("*.example.com", "a.example.com.evil.net", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "b.a.example.com", True),
        ("a.*.com", "a.b.com", True),
        ("a.*.com", "a.b.c.com", False),
        ("a.*.com", "a.com", False),
        ("s3.*.amazonaws.com", "s3.eu-west-1.amazonaws.com", True),
        ("s3.*.amazonaws.com", "x.s3.eu-west-1.amazonaws.com", False),
        ("*.s3.*.amazonaws.com", "x.y.s3.eu-west-1.amazonaws.com", True),
        ("*.*.x", "a.b.x", True),
        ("*.*.x", "a.b.c.x", True),
        ("*.*.x", "b.x", False),
        ("example.*", "example.com", True),
        ("example.*", "example.co.uk", False),
        ("*", "localhost", True),
        ("*", "a.b.c.d", True),
        ("localhost", "localhost", True),
    ],
)
def test_n1_n2_n3_patterns_match_whole_labels(pattern: str, name: str, expected: bool):
    """A suffix is no domain, the apex is not covered, a leading * takes any depth and an inner one a single label."""
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("*.Example.com.", "*.example.com"),
        ("*", "*"),
        ("*.com", "*.com"),
        ("*.*.x", "*.*.x"),
        ("пример.example", "xn--e1afmkfd.example"),
        ("*.пример.example", "*.xn--e1afmkfd.example"),
        ("faß.de", "xn--fa-hia.de"),
        ("xn--e1afmkfd.example", "xn--e1afmkfd.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
    ],
)
def test_n5_n6_patterns_become_canonical(text: str, pattern: str):
    """They compare with canonical names, so they take the same form; U-labels become A-labels (IDNA 2008, not 2003)."""
    assert parse_pattern(text) == pattern
    assert parse_pattern(pattern) == pattern


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("*.", "without a domain"),
        (".", "not a host name"),
        ("*..", "not a host name"),
        ("*example.com", "whole label"),
        ("api*.example.com", "whole label"),
        ("**.example.com", "whole label"),
        ("*.exa*mple.com", "whole label"),
        ("a..com", "not a host name"),
        ("-\0.com", "not a host name"),
        ("localhost\0.example.com", "not a host name"),
        ("a b.com", "not a host name"),
        ("https://example.com", "a URL"),
        ("example.com/path", "not a host name"),
        ("10.0.0.0/8", "not a host name"),
        ("example.com:443", "port"),
        ("10.0.0.1", "an address"),
        ("::1", "an address"),
        ("2130706433", "an address"),
        ("example.0x7f", "end in a number"),
        ("\u212aelvin.com", "normal form"),
        ("ｅxample.com", "normal form"),
        ("ПРИМЕР.example", "normal form"),
        ("a。b.com", "normal form"),
        ("a\u00ad\u0431.com", "normal form"),
        ("\u2603\ud800.com", "internationalised"),
        ("a" * 64 + ".com", "not a host name"),
    ],
)  # fmt: skip
def test_n3_n6_n7_faulty_patterns_say_what_is_wrong(text: str, hint: str):
    """Each mistake that people make is told apart."""
    with pytest.raises(Fault, match=hint) as caught:
        parse_pattern(text)
    assert caught.value.expected


def test_n13_long_patterns_are_refused_before_idna_sees_them(monkeypatch):
    """IDNA takes time in proportion to more than the length."""
    import idna

    monkeypatch.setattr(idna, "encode", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(Fault, match="longer"):
        parse_pattern("é" * 60_000)


@pytest.mark.parametrize(
    ("patterns", "name", "winner"),
    [
        (["*", "*.x.com", "a.x.com"], "a.x.com", "a.x.com"),
        (["*", "*.x.com", "*.b.x.com"], "a.b.x.com", "*.b.x.com"),
        (["*.x.com", "a.*.x.com"], "a.b.x.com", "a.*.x.com"),
        (["*.*.x.com", "*.x.com"], "a.b.x.com", "*.*.x.com"),
        (["a.*.x.com", "*.b.x.com"], "a.b.x.com", "*.b.x.com"),
        (["*.*.com", "a.*.com"], "a.b.com", "a.*.com"),
        (["a.b.*", "*.com"], "a.b.com", "*.com"),
        (["*", "a.*"], "a.b", "a.*"),
        (["z.*.x.com", "*"], "a.b.x.com", "*"),
        (["q.b.x.com", "*.x.com"], "a.b.x.com", "*.x.com"),
    ],
)
def test_the_most_specific_pattern_wins(patterns: list[str], name: str, winner: str):
    """Exact, then literals from the right, then an inner * before a leading one; the order in the policy is no matter."""
    canonical = canonical_hostname(name)
    assert canonical is not None
    for listed in (patterns, patterns[::-1]):
        table = PatternTable(listed)
        assert table.find(canonical) == winner
        assert table.find_all(canonical)[0] == winner


def test_all_matches_come_most_specific_first():
    """For explanations and lint."""
    patterns = ["*", "*.com", "*.x.com", "*.b.x.com", "a.*.x.com", "a.b.x.com", "*.y.com", "b.x.com"]
    table = PatternTable(patterns)
    name = canonical_hostname("a.b.x.com")
    assert name is not None
    expected = ["a.b.x.com", "*.b.x.com", "a.*.x.com", "*.x.com", "*.com", "*"]
    assert table.find_all(name) == expected


def naive_match(pattern: str, name: str) -> bool:
    """The definition, label by label from the right."""
    wanted, labels = pattern.split(".")[::-1], name.split(".")[::-1]
    for position, want in enumerate(wanted):
        if want == "*" and position == len(wanted) - 1:
            return len(labels) > position
        if position >= len(labels) or want not in {"*", labels[position]}:
            return False
    return len(labels) == len(wanted)


def naive_rank(pattern: str) -> tuple[object, ...]:
    """The order of the definition: exact; then, from the right, literal over inner * over leading *."""
    labels = pattern.split(".")
    kinds = [0 if label != "*" else 1 if position else 2 for position, label in enumerate(labels)]
    return ("*" in labels, kinds[::-1])


ALPHABET = st.sampled_from(["a", "b", "c", "*"])
PATTERNS = st.lists(ALPHABET, min_size=1, max_size=4).map(".".join)
NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(".".join)


@given(st.lists(PATTERNS, max_size=12), NAMES)
def test_the_table_agrees_with_the_definition(patterns: list[str], name: str):
    """Few labels, so that patterns compete."""
    table = PatternTable(patterns)
    canonical = canonical_hostname(name)
    assert canonical is not None
    fitting = sorted({pattern for pattern in patterns if naive_match(pattern, name)}, key=naive_rank)
    assert table.find(canonical) == (fitting[0] if fitting else None)
    assert table.find_all(canonical) == fitting


@given(st.text(max_size=40) | st.text("abc*.-_xn", max_size=40))
def test_any_text_is_a_canonical_pattern_or_a_fault(text: str):
    """Whatever comes out comes out again, and nothing else is ever raised."""
    try:
        pattern = parse_pattern(text)
    except Fault:
        return
    assert parse_pattern(pattern) == pattern
    assert pattern.isascii()
