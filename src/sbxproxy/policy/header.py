"""Which header fields a policy may set, and with what (RFC 9110 sections 5.1 and 5.5)."""

from __future__ import annotations

__all__ = ["check_media_type", "check_name", "check_names", "check_value", "folded", "is_value"]

import re

from sbxproxy.policy.fault import Fault
from sbxproxy.policy.place import key_place
from sbxproxy.policy.template import Template

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Printable ASCII and tab. RFC 9110 also allows obs-text, but no two programs agree on its encoding; CR, LF
# and NUL end fields.
_VALUE = re.compile(r"[\t -~]*")

# The core makes these itself from the verified name, the framing it chose and its own connection handling.
_OWNED = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "http2-settings",
    }
)
_OWNED_PREFIXES = ("proxy-", ":")


def folded(name: str) -> str:
    """Make a name comparable: lower case, and ``_`` as ``-``, the same to WSGI and CGI servers."""
    return name.lower().replace("_", "-")


def check_name(name: str) -> str:
    """Return *name* if a policy may set that header.

    Raises:
        Fault: it is no token, or belongs to the proxy.
    """
    if not _TOKEN.fullmatch(name):
        raise Fault("not a header name", "letters, digits and !#$%&'*+-.^_`|~, without the colon")
    if folded(name) in _OWNED or folded(name).startswith(_OWNED_PREFIXES):
        raise Fault("the proxy makes this header itself", "leave it out")
    return name


def check_names(headers: dict[str, Template]) -> dict[str, Template]:
    """Return *headers* if their names differ.

    Raises:
        Fault: two are the same to some server.
    """
    seen: set[str] = set()
    for position, name in enumerate(headers):
        if folded(name) in seen:
            raise Fault(
                "the same header twice",
                "each name once; case and _ or - make no other",
                within=key_place(name, position),
            )
        seen.add(folded(name))
    return headers


def is_value(text: str) -> bool:
    """Tell whether *text* can stand in a header: printable ASCII and tabs."""
    return _VALUE.fullmatch(text) is not None


def check_value(text: str) -> Template:
    """Read a header value, which may name secrets.

    Raises:
        Fault: it can't stand in a header, or a placeholder in it is wrong.
    """
    if not is_value(text):
        raise Fault("a control or non-ASCII character in a header value", "printable ASCII, on one line")
    return Template.parse(text)


def check_media_type(text: str) -> str:
    """Return *text* if it can be a ``content-type``.

    Raises:
        Fault: it can't.
    """
    if not is_value(text) or "/" not in text:
        raise Fault("not a media type", "such as application/json; charset=utf-8")
    return text
