"""Texts that name secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.errors import SecretError
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.template import Template


@pytest.mark.parametrize(
    ("text", "secrets", "rendered"),
    [
        ("plain", (), "plain"),
        ("", (), ""),
        ("Bearer ${secret:github}", ("github",), "Bearer <github>"),
        ("${secret:a}${secret:b}", ("a", "b"), "<a><b>"),
        ("${secret:a}:${secret:a}", ("a",), "<a>:<a>"),
        ("$${secret:a}", (), "${secret:a}"),
        ("$${${secret:a}}", ("a",), "${<a>}"),
        ("$$${secret:a}", (), "$${secret:a}"),
        ("costs $5 or $$", (), "costs $5 or $$"),
        ("${secret:team/prod.key-1_x}", ("team/prod.key-1_x",), "<team/prod.key-1_x>"),
    ],
)
def test_templates_name_secrets_and_render(text: str, secrets: tuple[str, ...], rendered: str):
    """Placeholders are replaced, $${ is a literal ${, everything else stays."""
    template = Template.parse(text)
    assert template.secrets == secrets
    assert template.render({name: f"<{name}>" for name in secrets}) == rendered


@pytest.mark.parametrize(
    "text",
    [
        "${github}",
        "${secret:}",
        "${secret:a b}",
        "${secret:a",
        "${",
        "${}",
        "x ${env:HOME}",
        "${ secret:a}",
        "${secret:${secret:a}}",
    ],
)
def test_wrong_placeholders_are_faults(text: str):
    """A misspelt placeholder would go out as it stands, which tells the other side more than an error tells the author."""
    with pytest.raises(Fault, match="names no secret"):
        Template.parse(text)


def test_redacted_values_are_refused():
    """A policy that was read back has lost its values; putting it in force would send the marker."""
    with pytest.raises(Fault, match="hidden"):
        Template.parse("Bearer <redacted>")


def test_values_are_not_read_as_templates():
    """A secret that holds ${ is sent as it is."""
    assert Template.parse("${secret:a}").render({"a": "${secret:b}"}) == "${secret:b}"


def test_a_missing_secret_is_an_error_that_names_it():
    """And shows none of the others."""
    with pytest.raises(SecretError, match="'b'") as caught:
        Template.parse("${secret:a} ${secret:b}").render({"a": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_c11_repr_shows_names_only():
    """The literal part may be the token itself."""
    shown = repr(Template.parse("s3cret ${secret:name}"))
    assert "s3cret" not in shown
    assert "name" in shown


@given(st.text())
def test_doubling_the_dollar_makes_any_text_literal(text: str):
    """The escape is complete: every text can be written."""
    if "<redacted>" not in text:
        assert Template.parse(text.replace("${", "$${")).render({}) == text
