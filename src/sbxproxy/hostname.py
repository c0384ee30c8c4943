"""Host names in their one canonical form.

A name is made canonical once, from the bytes that came in; policy, resolver, TLS and logs see only the
result. The surprising part is what is no name at all: ``127.1``, ``2130706433`` and ``0x7f.1`` are addresses
to the C library's resolver, and a NUL cuts a name short there, so neither ever becomes a ``Hostname``.
"""

from __future__ import annotations

__all__ = ["MAX_NAME", "Hostname", "canonical_hostname"]

import re
from typing import NewType

Hostname = NewType("Hostname", str)
"""A canonical name: lower-case ASCII, no trailing dot, no address. Made by ``canonical_hostname`` only."""

MAX_NAME = 253
"""Bytes of the longest name without its trailing dot: 255 octets on the wire less two length octets (RFC 1035
section 2.3.4)."""

# Underscores are no host-name letters in RFC 952, but names with them resolve and verify (`_` in DNS-01, in
# S3 buckets).
_NAME = re.compile(rb"[a-z0-9_-]{1,63}+(?:\.[a-z0-9_-]{1,63}+)*")

_CANONICAL = re.compile(_NAME.pattern.decode())

# The "ends in a number" test of the WHATWG URL standard, section 3.5: such a host can only be an IPv4 address
# or an error.
_NUMBER = re.compile(rb"[0-9]+|0x[0-9a-f]*")


def canonical_hostname(raw: bytes | str) -> Hostname | None:
    """Make *raw* canonical, or answer ``None`` if it is no acceptable name.

    ASCII letters are folded to lower case and one trailing dot is dropped. Labels are 1 to 63 of
    ``[a-z0-9_-]``, the whole is at most 253 bytes, and the last label is neither all digits nor ``0x`` and
    hex digits, which leaves out every spelling of an IPv4 address. Bytes above 0x7F are refused, not folded:
    Unicode has look-alikes that lower-case to ASCII letters. A canonical name comes back as it is.
    """
    # Length first: what follows costs time in proportion to it.
    if len(raw) > MAX_NAME + 1:
        return None
    if isinstance(raw, str):
        if not raw.isascii():
            return None
        # Nearly all are canonical already, and only a last label that begins with a digit can be a number.
        if len(raw) <= MAX_NAME and _CANONICAL.fullmatch(raw) and raw[raw.rfind(".") + 1] > "9":
            return Hostname(raw)
        raw = raw.encode("ascii")
    name = raw.lower().removesuffix(b".")
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        return None
    if _NUMBER.fullmatch(name, name.rfind(b".") + 1):
        return None
    return Hostname(name.decode("ascii"))
