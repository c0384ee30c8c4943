"""Which header fields a policy may set."""

import pytest

from sbxproxy.policy.fault import Fault
from sbxproxy.policy.header import check_media_type, check_name, check_value, folded


@pytest.mark.parametrize("name", ["authorization", "X-Api-Key", "x_api_key", "cookie", "user-agent", "!#$%&'*+-.^_`|~"])
def test_names_that_may_be_set(name: str):
    """Any token that the proxy doesn't make itself."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\0", "é", "a\n", "(a)", ":path", "a/b"])
def test_c3_names_that_are_no_tokens(name: str):
    """A header name with a line end in it is another header."""
    with pytest.raises(Fault, match="not a header name"):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "Host", "content-length", "Content_Length", "Transfer-Encoding", "connection", "Keep-Alive", "TE", "trailer", "Upgrade",
        "Proxy-Authorization", "proxy_connection", "Expect", "HTTP2-Settings",
    ],
)  # fmt: skip
def test_c2_names_that_the_proxy_owns(name: str):
    """Framing and the verified host are made by the core; a policy that could set them could break both."""
    with pytest.raises(Fault, match="makes this header itself"):
        check_name(name)


@pytest.mark.parametrize("value", ["s3cret\r\nX: y", "s3cret\n", "s3cret\0", "s3cret\x7f", "s3cret\x1b", "s3crét", "\ud800"])
def test_c3_values_that_cannot_stand_in_a_header(value: str):
    """The message tells what is wrong and doesn't show the value."""
    with pytest.raises(Fault, match="control or non-ASCII") as caught:
        check_value(value)
    assert "s3cr" not in f"{caught.value} {caught.value.expected} {caught.value!r}"


def test_values_are_templates():
    """Printable ASCII and tabs pass, and may name secrets."""
    assert check_value("a\t~ ${secret:x}").secrets == ("x",)


def test_folding_makes_names_comparable():
    """As WSGI and CGI servers see them."""
    assert folded("X_Api-Key") == folded("x-api_KEY")


def test_media_types():
    """A content type is a header value too."""
    assert check_media_type("application/json; charset=utf-8")
    for wrong in ("json", "", "a/b\r\nx: y"):
        with pytest.raises(Fault):
            check_media_type(wrong)
