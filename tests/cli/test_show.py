"""Commands that only look."""

import json

import pytest

from support.program import one_sentence, sbxproxy, write

POLICY = """{"allow": {"api.example.com": [{"match": {"path": {"startsWith": "/v1/"}},
  "transform": [{"headers": {"authorization": "Bearer canary-token"}}]}], "*.example.org": []},
  "subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.9/32"]}}"""


@pytest.fixture
def policy(tmp_path):
    return write(tmp_path / "policy.json", POLICY)


@pytest.mark.parametrize(
    ("target", "code", "reason"),
    [
        ("https://api.example.com/v1/x", 0, "domain-allowed"),
        ("a.example.org:8443", 0, "domain-allowed"),
        ("example.org:443", 3, "domain-not-allowed"),
        ("http://api.example.com/", 3, "plain-http"),
        ("203.0.113.1:22", 0, "range-allowed"),
        ("203.0.113.9:22", 3, None),
        ("[2001:db8::1]:443", 3, None),
    ],
)
def test_explain_says_what_would_happen_and_why(policy, target, code, reason):
    done = sbxproxy("explain", policy, target, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    if reason is not None:
        assert json.loads(done.stdout)["reason"] == reason


def test_explain_names_the_rule_and_no_value(policy):
    done = sbxproxy("explain", policy, "https://api.example.com/v1/x")
    assert "sets authorization" in done.stdout
    assert "canary" not in done.stdout
    other = sbxproxy(
        "explain", policy, "https://api.example.com/", "--path", "/v2/x", "--method", "POST", "--header", "a: b", "--json"
    )
    assert json.loads(other.stdout)["rule"] is None


def test_explain_takes_the_operators_options(policy):
    at = ("--resolve", "a.example.org:10.1.2.3")
    assert sbxproxy("explain", *at, policy, "a.example.org:443").returncode == 3
    assert sbxproxy("explain", *at, "--private-network", "10.0.0.0/8", policy, "a.example.org:443").returncode == 0
    assert (
        sbxproxy(
            "explain", *at, "--private-network", "10.0.0.0/8", "--never", "10.1.0.0/16", policy, "a.example.org:443"
        ).returncode
        == 3
    )


@pytest.mark.parametrize(
    "arguments", [["a example:1"], ["a.example:0"], ["ftp://a.example/"], ["a.example:1", "--header", "nocolon"]]
)
def test_explain_wrong_use_is_2(policy, arguments):
    done = sbxproxy("explain", policy, *arguments)
    one_sentence(done)
    assert done.returncode == 2


def test_lint_finds_and_finds_nothing(tmp_path, policy):
    assert sbxproxy("lint", write(tmp_path / "fine.json", '{"allow": ["api.example.com"]}')).returncode == 0
    done = sbxproxy("lint", policy, "--json")
    assert done.returncode == 1
    assert "apex-gap" in [finding["id"] for finding in json.loads(done.stdout)]
    assert "apex-gap" in sbxproxy("lint", policy).stdout
    bad = sbxproxy("lint", write(tmp_path / "bad.json", "[]"))
    one_sentence(bad)
    assert bad.returncode == 2


def test_lint_reads_standard_input():
    assert sbxproxy("lint", "-", input='"deny-all"').returncode == 0


def test_schema_is_the_committed_one():
    from pathlib import Path

    committed = Path(__file__).parents[2] / "docs/policy.schema.json"
    assert json.loads(sbxproxy("schema").stdout) == json.loads(committed.read_text())


def test_ca_lists_variables_and_refuses_what_is_no_certificate(tmp_path):
    assert "SSL_CERT_FILE=BUNDLE.pem" in sbxproxy("ca").stdout
    assert "no PEM certificate" in one_sentence(sbxproxy("ca", write(tmp_path / "x.pem", "x")))


def test_version_plugins_and_help():
    assert sbxproxy("version").stdout.startswith("sbxproxy 0.")
    assert sbxproxy("plugins").returncode == 0
    assert "Run a command behind a policy" in sbxproxy("--help").stdout
    assert one_sentence(sbxproxy("nonsense"))


def test_help_needs_no_event_loop_and_no_tls():
    """The program answers at once, and start-up stays cheap."""
    import subprocess
    import sys

    code = "import sys; from sbxproxy.cli.app import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for module in ("'trio'", "'OpenSSL'", "'pydantic'", "'h11'"):
        assert module not in done.stdout


def test_explain_shows_an_address_as_it_was_written(policy):
    """A bracketed address must not be taken for markup of the terminal library."""
    assert "[fe80::1]:443" in sbxproxy("explain", policy, "[fe80::1]:443").stdout
