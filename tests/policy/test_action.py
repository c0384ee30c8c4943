"""What rules do with requests."""

import pytest

from sbxproxy.errors import SecretError
from sbxproxy.policy.action import Forward, Respond, SetHeaders, UsePlugin
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.template import Template


def set_headers(**headers: str) -> SetHeaders:
    return SetHeaders(tuple((name, Template.parse(value)) for name, value in headers.items()))


def test_headers_render_with_their_secrets():
    """In the author's order."""
    step = set_headers(authorization="Bearer ${secret:a}", other="${secret:b}${secret:a}")
    assert step.secrets == ("a", "b")
    assert step.render({"a": "1", "b": "2"}) == (("authorization", "Bearer 1"), ("other", "21"))


@pytest.mark.parametrize("value", ["s3cret\r\nX: y", "s3cret\n", "s3cret\0", "s3crét"])
def test_c3_a_secret_that_cannot_stand_in_a_header(value: str):
    """A file that ends in a line end is the ordinary case: the error names the secret, and shows nothing of it."""
    with pytest.raises(SecretError, match=r"authorization.*github") as caught:
        set_headers(authorization="Bearer ${secret:github}").render({"github": value})
    assert "s3cr" not in str(caught.value)


def test_c11_steps_do_not_print_values():
    """Literal values of headers and options of plugins are as secret as secrets."""
    assert "s3cret" not in repr(set_headers(authorization="s3cret"))
    assert "s3cret" not in repr(UsePlugin.of("p", {"key": "s3cret"}))
    assert "s3cret" not in repr(Respond(status=200, body=b"s3cret"))


def test_plugin_options_may_name_secrets_anywhere():
    """In texts at any depth; other values pass as they are."""
    config = {"key": "${secret:a}", "deep": [{"x": "${secret:b}"}, 1, None, True, 2.5]}
    step = UsePlugin.of("aws-sigv4", config)
    assert step.secrets == ("a", "b")
    assert step.render({"a": "1", "b": "2"}) == {"key": "1", "deep": [{"x": "2"}, 1, None, True, 2.5]}
    assert step.redacted() == {"key": "<redacted>", "deep": [{"x": "<redacted>"}, 1, None, True, 2.5]}


@pytest.mark.parametrize(
    ("name", "config", "within"),
    [
        ("", {}, ".plugin"),
        ("Upper", {}, ".plugin"),
        ("a/b", {}, ".plugin"),
        ("p", {"a": ["x", "${x}"]}, '.config["a"][1]'),
        ("p", {"a": "<redacted>"}, '.config["a"]'),
        ("p", {"a": object()}, '.config["a"]'),
        ("p", {"a": {1: 2}}, '.config["a"]'),
    ],
)
def test_faulty_plugin_steps_tell_where(name: str, config, within: str):
    """The place is inside the step."""
    with pytest.raises(Fault) as caught:
        UsePlugin.of(name, config)
    assert caught.value.within == within


def test_options_nested_without_end_are_a_fault():
    """Reading them recurses."""
    config: dict[str, object] = {}
    for _ in range(40):
        config = {"a": config}
    with pytest.raises(Fault, match="too deep"):
        UsePlugin.of("p", config)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://f.example", "f.example", 443, ""),
        ("https://f.example/", "f.example", 443, ""),
        ("https://F.Example.:8443/base/", "f.example", 8443, "/base"),
        ("HTTPS://f.example/a/b", "f.example", 443, "/a/b"),
    ],
)
def test_forward_urls(url: str, host: str, port: int, path: str):
    """Where requests go instead."""
    forward = Forward.parse(url)
    assert (forward.host, forward.port, forward.path, forward.url) == (host, port, path, url)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://f.example", "inside TLS"),
        ("f.example", "inside TLS"),
        ("", "inside TLS"),
        ("ftp://f.example", "inside TLS"),
        ("https://user:s3cret@f.example", "ends up in logs"),
        ("https://@f.example", "ends up in logs"),
        ("https://f.example/?s3cret=1", "query or fragment"),
        ("https://f.example/?", "query or fragment"),
        ("https://f.example/#s3cret", "query or fragment"),
        ("https://", "no host name"),
        ("https://127.0.0.1", "no host name"),
        ("https://[::1]", "no host name"),
        ("https://2130706433/", "no host name"),
        ("https://a..b", "no host name"),
        ("https://f.example:", "no host name"),
        ("https://f.example:0", "not a URL"),
        ("https://f.example:65536", "not a URL"),
        ("https://f.example:x", "not a URL"),
        ("https://f.example\r\n", "not a URL"),
        ("https://f.example/a b", "not a URL"),
        ("https://ｆ.example", "not a URL"),
        ("https://f.example/a/../b", "ambiguous"),
        ("https://f.example//", "ambiguous"),
    ],
)
def test_faulty_forward_urls_say_what_is_wrong(url: str, hint: str):
    """And don't show the URL, which may hold a password."""
    with pytest.raises(Fault, match=hint) as caught:
        Forward.parse(url)
    assert "s3cret" not in f"{caught.value} {caught.value.expected}"
