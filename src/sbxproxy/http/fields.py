"""Which header fields pass a proxy. What is hop-by-hop ends here, before any transform looks.

The order is what makes it safe: a client that names ``authorization`` in ``Connection`` would otherwise have
the next hop remove the credential that was put in (CVE-2022-31813, CVE-2021-33197).
"""

from __future__ import annotations

__all__ = ["Fields", "end_to_end", "lines", "list_of", "outgoing", "wants_websocket"]

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
_NOT_FOR_CLIENTS = _NOT_OURS_TO_PASS | {b"alt-svc"}
"""``Alt-Svc`` would send the client to another way out (RFC 7838), of which the policy knows nothing."""

# All names, or all values, each with a line feed behind it: one search costs as much as looking at two of them one by one.
_NAMES = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++\n)*")
_VALUES = re.compile(rb"(?:(?![ \t])[\t\x20-\x7e\x80-\xff]*+(?<![ \t])\n)*")


def list_of(fields: Fields, name: bytes) -> list[bytes]:
    """Return the members, lower-cased, of all lines of the comma-separated header *name* (given lower-cased)."""
    return [
        member
        for field_name, value in fields
        if len(field_name) == len(name) and field_name.lower() == name
        for part in value.lower().split(b",")
        if (member := part.strip(b" \t"))
    ]


def end_to_end(fields: Fields, names: Sequence[bytes] | None = None, *, client: bool = False) -> Headers:
    """Keep what is meant for the far end: no hop-by-hop fields, none that ``Connection`` lists, no framing.

    Names compare with ``_`` as ``-``, since servers behind CGI or WSGI can't tell them apart.

    Args:
        fields: as received.
        names: of a plain head, its names in lower case; its ``Connection``, if any, lists nothing but ``keep-alive``.
        client: the far end is the client.
    """
    never = _NOT_FOR_CLIENTS if client else _NOT_OURS_TO_PASS
    if names is not None:
        return Headers(tuple([pair for pair, name in zip(fields, names, strict=True) if name not in never]))
    gone = never.union(map(fold_name, list_of(fields, b"connection")))
    return Headers(tuple([pair for pair in fields if fold_name(pair[0]) not in gone]))


def outgoing(headers: Headers, *, client: bool = False) -> list[tuple[bytes, bytes]]:
    """List what a handler wants sent, to the *client* or upstream, without what it has no say in (framing, Host, hop-by-hop).

    Raises:
        StageError: a name is no token or a value can't stand in a header; the message shows neither.
    """
    never = _NOT_FOR_CLIENTS if client else _NOT_OURS_TO_PASS
    try:
        fields = [(name, value) for name, value in headers.fields]
        if _are_lines(_NAMES, [name for name, _ in fields]) and _are_lines(_VALUES, [value for _, value in fields]):
            return [pair for pair in fields if fold_name(pair[0]) not in never]
    except (TypeError, ValueError, AttributeError):  # text instead of bytes, or no pairs
        pass
    raise StageError("a header made by a transform is malformed")


def _are_lines(pattern: re.Pattern[bytes], parts: list[bytes]) -> bool:
    """Tell whether each of *parts* is what *pattern* has as a line; a line feed within one would make it two."""
    parts.append(b"")
    text = b"\n".join(parts)
    return text.count(b"\n") == len(parts) - 1 and pattern.fullmatch(text) is not None


def lines(fields: Fields) -> bytes:
    """Write fields of checked parts."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def wants_websocket(fields: Fields) -> bool:
    """Tell whether a head asks for WebSocket, or accepts it (RFC 6455 section 4). Nothing else is upgraded to."""
    return b"upgrade" in list_of(fields, b"connection") and b"websocket" in list_of(fields, b"upgrade")
