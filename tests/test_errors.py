"""Errors say who is to blame, and carry what a caller decides on as data."""

import pytest

from sbxproxy import errors
from sbxproxy.errors import (
    ClientError,
    ClientProtocolError,
    ConfigurationError,
    LimitError,
    PolicyError,
    PolicyProblem,
    SbxproxyError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResolveError,
    UpstreamTlsError,
)


def test_all_have_one_base():
    """So that an embedder can tell them from everybody else's."""
    for name in errors.__all__:
        if name != "PolicyProblem":
            assert issubclass(getattr(errors, name), SbxproxyError), name


def test_what_an_author_or_operator_got_wrong_is_a_value_error():
    assert issubclass(PolicyError, ValueError)
    assert issubclass(ConfigurationError, ValueError)


def test_a_policy_error_lists_every_problem_on_a_line_of_its_own():
    error = PolicyError(PolicyProblem("allow[0]", "not a name", "a host name"), PolicyProblem("", "no mode"))
    assert str(error) == "allow[0]: not a name (a host name)\nno mode"
    assert [problem.place for problem in error.problems] == ["allow[0]", ""]


def test_a_limit_error_names_the_field():
    assert LimitError("flows").limit == "flows"
    assert "flows" in str(LimitError("flows"))


def test_a_client_protocol_error_has_a_reason_and_a_status():
    error = ClientProtocolError("bad-request", "no", status=431)
    assert (error.reason, error.status, str(error)) == ("bad-request", 431, "no")
    assert ClientProtocolError("a", "b").status == 400
    assert isinstance(error, ClientError)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (UpstreamError, "upstream-failed"),
        (UpstreamResolveError, "name-not-resolved"),
        (UpstreamConnectError, "connect-failed"),
        (UpstreamTlsError, "upstream-tls"),
        (UpstreamProtocolError, "upstream-protocol"),
    ],
)
def test_an_upstream_error_has_a_reason_of_its_class_unless_told_another(kind, reason):
    error = kind("text")
    assert (error.reason, error.status, str(error)) == (reason, 502, "text")
    refined = kind("text", reason="timed-out", status=504)
    assert (refined.reason, refined.status) == ("timed-out", 504)
    assert (kind.reason, kind.status) == (reason, 502)
