"""What is allowed and seldom meant."""

import pytest

from sbxproxy.policy.lint import Severity, lint
from sbxproxy.policy.model import Policy

SET = [{"transform": [{"headers": {"authorization": "s3cret"}}]}]
ANSWER = [{"response": {"statusCode": 403}}]


def findings(document: object) -> list[tuple[str, str]]:
    return [(finding.id, finding.place) for finding in lint(Policy.parse(document))]


CASES = [
    ("allow-all", []),
    ("deny-all", []),
    ({"allow": ["api.github.com", "pypi.org"]}, []),
    ({"allow": ["*.example.com"]}, [("apex-gap", 'allow["*.example.com"]')]),
    ({"allow": ["*.example.com", "example.com"]}, []),
    ({"allow": ["*.example.org", "*.org"]}, [("shared-suffix", 'allow["*.org"]')]),
    ({"allow": ["*.github.io"]}, [("shared-suffix", 'allow["*.github.io"]')]),
    ({"allow": ["*.vercel.app"]}, [("shared-suffix", 'allow["*.vercel.app"]')]),
    ({"allow": ["*.amazonaws.com"]}, [("shared-suffix", 'allow["*.amazonaws.com"]')]),
    ({"allow": ["*.s3.*.amazonaws.com"]}, [("shared-suffix", 'allow["*.s3.*.amazonaws.com"]')]),
    ({"allow": ["*.windows.net"]}, [("shared-suffix", 'allow["*.windows.net"]')]),
    ({"allow": ["*.co.uk"]}, [("shared-suffix", 'allow["*.co.uk"]')]),
    ({"allow": ["me.github.io", "s3.*.amazonaws.com"]}, []),
    ({"allow": ["*"]}, [("any-domain", 'allow["*"]')]),
    ({"allow": ["cloudflare-ech.com"]}, [("ech-public-name", 'allow["cloudflare-ech.com"]')]),
    ({"allow": {"*.example.com": SET, "example.com": []}}, [("broad-credential", 'allow["*.example.com"]')]),
    ({"allow": {"*.example.com": ANSWER, "example.com": []}}, []),
    ({"allow": {"a.example.com": [*SET, *SET]}}, [("unreachable-rule", 'allow["a.example.com"][1]')]),
    (
        {"allow": {"a.example.com": [{"match": {"method": ["GET"]}, **SET[0]}, {"match": {"method": {"exact": "GET"}}, **ANSWER[0]}]}},
        [("unreachable-rule", 'allow["a.example.com"][1]')],
    ),
    ({"allow": {"a.example.com": [{"match": {"method": ["GET"]}, **SET[0]}, {"match": {"method": ["PUT"]}, **SET[0]}, *SET]}}, []),
    (
        {"allow": {"*.example.com": ANSWER, "a.example.com": [], "example.com": [], "b.example.com": SET}},
        [("shadowed-rules", 'allow["*.example.com"]')],
    ),
    ({"allow": {"*.x.example.com": ANSWER, "*.a.x.example.com": ANSWER, "x.example.com": [], "a.x.example.com": []}}, [("shadowed-rules", 'allow["*.x.example.com"]')]),
    ({"allow": ["a.example.com"], "subnets": {"allow": ["0.0.0.0/0"]}}, [("range-opens-everything", "subnets.allow")]),
    ({"allow": {"a.example.com": SET}, "subnets": {"allow": ["203.0.113.0/24"]}}, [("range-avoids-rules", "subnets.allow")]),
    ({"allow": ["a.example.com"], "subnets": {"allow": ["203.0.113.0/24"]}}, []),
    ({"subnets": {"allow": ["203.0.113.0/24"]}}, [("open-dns", "subnets.allow")]),
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), CASES)
def test_n3_t6_findings(document: object, expected: list[tuple[str, str]]):
    """Each kind where it should be, and nothing where nothing is wrong."""
    expected = [*expected, ("rules-https-only", "allow")] if Policy.parse(document).has_rules else expected
    assert findings(document) == expected


def test_findings_say_what_to_do_and_show_no_value():
    """For people; an apex gap only surprises, the rest open or lose something."""
    for document, _ in CASES:
        for finding in lint(Policy.parse(document)):
            assert len(finding.message) > 30
            assert "s3cret" not in repr(finding)
            assert (finding.severity is Severity.NOTE) == (finding.id in {"apex-gap", "rules-https-only"})


def test_shadowed_patterns_are_counted():
    """One finding for the general pattern, however many it loses."""
    finding, _ = lint(Policy.parse({"allow": {"*.a.example": ANSWER, "a.example": [], **{f"{n}.a.example": [] for n in "xyz"}}}))
    assert "x.a.example and 2 more" in finding.message
