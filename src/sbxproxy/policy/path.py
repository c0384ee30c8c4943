"""Paths that every program reads alike, and the one form in which they are matched.

A rule for ``/v1/`` must not be dodged with ``/v1/../admin``, ``/%61dmin`` or ``/a;x=y``. Servers differ in
what they do with these, so a request that spells its path in a way that some server would rewrite is
*ambiguous*: where rules look at paths it is refused, not guessed at. What is left differs in one way only:
characters that may stand plain or encoded (``@`` and ``%40``). Those are decoded for matching, in the request
and in the rule alike; what is sent on is never changed.
"""

from __future__ import annotations

__all__ = ["canonical_path", "canonical_rule_path", "is_ambiguous_path"]

import re
from urllib.parse import unquote_to_bytes

from sbxproxy.policy.fault import Fault

# sub-delims, ":" and "@" of RFC 3986 section 3.3, which may stand plain in a path. Not ";": parameters of
# segments (RFC 2396) are cut off by some servers and kept by others.
_EITHER_WAY = "!$&'()*+,=:@"
_UNRESERVED = "A-Za-z0-9._~"

# Must be encoded, and harmless so. Missing on purpose: the unreserved characters (RFC 3986 section 2.3:
# encoding those says nothing), control characters, and % / \ ; # ? which turn into syntax if something on the
# way decodes once more than it should.
_ENCODED_ONLY = ' "<>[]^`{|}'


def _triplets(characters: str) -> str:
    return "|".join(f"{ord(character):02X}" for character in characters)


# Hexadecimal digits in upper case only: %c3 and %C3 are the same octet, and would be two different texts to a
# rule.
_PATH = re.compile(
    rf"(?:/(?:[{_UNRESERVED}{re.escape(_EITHER_WAY)}-]++"
    rf"|%(?:{_triplets(_EITHER_WAY)}|{_triplets(_ENCODED_ONLY)}|[89A-F][0-9A-F]))+)*/?"
)
_DOT_SEGMENT = re.compile(r"/\.\.?(?:/|\Z)")
_DECODED_TO_MATCH = re.compile(f"%(?:{_triplets(_EITHER_WAY)})")


def _decoded(path: str) -> str:
    return _DECODED_TO_MATCH.sub(lambda triplet: chr(int(triplet[0][1:], 16)), path)


def _is_utf8(path: str) -> bool:
    """Tell whether *path* encodes UTF-8; careless decoders take the octets C0 AF for a slash."""
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def canonical_path(target: str) -> str | None:
    """Return the path of an origin-form request target as rules match it, or ``None`` if it is ambiguous.

    The query, from the first ``?``, is left out. ``*`` (of ``OPTIONS *``) is returned as it is.
    """
    if "#" in target:  # a fragment has no place in a request (RFC 9112 section 3.2.1)
        return None
    path = target.partition("?")[0]
    if path == "*":
        return path
    if not path or not _PATH.fullmatch(path) or _DOT_SEGMENT.search(path):
        return None
    if "%" not in path:
        return path
    return _decoded(path) if _is_utf8(path) else None


def is_ambiguous_path(target: str) -> bool:
    """Tell whether two programs could take the path of *target* for different ones."""
    return canonical_path(target) is None


def canonical_rule_path(text: str, *, whole: bool) -> str:
    """Return the path of a rule as requests' paths are matched against it.

    Args:
        text: what the author wrote.
        whole: it is the whole path, not the start of one.

    Raises:
        Fault: no request's path can match, since such a path would be refused as ambiguous.
    """
    if not text.startswith("/"):
        raise Fault("a path starts with /", 'such as "/v1/"')
    if "?" in text:
        raise Fault("a path has no query", "match on queryString beside path")
    # The start of a path may end anywhere in a segment: /. is the start of /.well-known.
    probe = text if whole else text.rstrip(".") + "x"
    if canonical_path(probe) is None:
        raise Fault(
            "requests with such a path are refused as ambiguous, so it would never match",
            "no empty, . or .. segments, no ; # or \\, octets encoded only where they must be, as %C3%A9",
        )
    return _decoded(text)
