"""Which header fields pass a proxy. What is hop-by-hop ends here, before any transform looks.

The order is what makes it safe: a client that names ``authorization`` in ``Connection`` would otherwise have
the next hop remove the credential that was put in (CVE-2022-31813, CVE-2021-33197).
"""

from __future__ import annotations

__all__ = ["end_to_end", "list_of", "outgoing", "wants_websocket"]

import re
from collections.abc import Sequence

from sbxproxy.errors import StageError
from sbxproxy.http.message import Headers, fold_name

Fields = Sequence[tuple[bytes, bytes]]

_NOT_OURS_TO_PASS = frozenset(
    {
        b"connection",  # RFC 9110 section 7.6.1, and what it lists
        b"keep-alive",
        b"proxy-connection",  # in no standard, and sent all the same
        b"te",
        b"trailer",  # trailers are dropped
        b"upgrade",
        b"http2-settings",  # goes with Upgrade: h2c (RFC 7540 section 3.2.1)
        b"proxy-authenticate",  # between the client and this proxy
        b"proxy-authorization",
        b"proxy-authentication-info",
        # Made anew from what was understood of the message:
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"expect",
    }
)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")


def list_of(fields: Fields, name: bytes) -> list[bytes]:
    """Return the members, lower-cased, of all lines of the comma-separated header *name* (given lower-cased)."""
    return [
        member
        for field_name, value in fields
        if len(field_name) == len(name) and field_name.lower() == name
        for part in value.lower().split(b",")
        if (member := part.strip(b" \t"))
    ]


def end_to_end(fields: Fields, names: Sequence[bytes] | None = None) -> Headers:
    """Keep what is meant for the far end: no hop-by-hop fields, none that ``Connection`` lists, no framing.

    Names compare with ``_`` as ``-``, since servers behind CGI or WSGI can't tell them apart.

    Args:
        fields: as received.
        names: of a plain head, its names in lower case; its ``Connection``, if any, lists nothing but ``keep-alive``.
    """
    if names is not None:
        return Headers(tuple([pair for pair, name in zip(fields, names, strict=True) if name not in _NOT_OURS_TO_PASS]))
    gone = _NOT_OURS_TO_PASS.union(map(fold_name, list_of(fields, b"connection")))
    return Headers(tuple(pair for pair in fields if fold_name(pair[0]) not in gone))


def outgoing(headers: Headers) -> list[tuple[bytes, bytes]]:
    """List what a handler wants sent, without what it has no say in (framing, Host, hop-by-hop).

    Raises:
        StageError: a name is no token or a value can't stand in a header; the message shows neither.
    """
    try:
        proper = all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers.fields)
    except (TypeError, ValueError):  # text instead of bytes, or no pairs
        proper = False
    if not proper:
        raise StageError("a header made by a transform is malformed")
    return [pair for pair in headers.fields if fold_name(pair[0]) not in _NOT_OURS_TO_PASS]


def wants_websocket(fields: Fields) -> bool:
    """Tell whether a head asks for WebSocket, or accepts it (RFC 6455 section 4). Nothing else is upgraded to."""
    return b"upgrade" in list_of(fields, b"connection") and b"websocket" in list_of(fields, b"upgrade")
