"""``host:port`` as HTTP writes it: strictly, or two readers connect to two places (RFC 3986, 3.2).

No user information, no list, no zone id, no percent-encoding; brackets stand round IPv6 addresses and round
nothing else.
"""

from __future__ import annotations

__all__ = ["AbsoluteTarget", "parse_absolute_target", "parse_authority", "parse_host"]

import re
from dataclasses import dataclass

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.errors import ClientProtocolError
from sbxproxy.hostname import Hostname, canonical_hostname

# What is in the groups is judged by parse_host and parse_address; this only cuts.
_AUTHORITY = re.compile(rb"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"([A-Za-z]{1,16})://([^/?#]*)([^#]*)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_host(raw: bytes) -> Hostname | IPAddress | None:
    """Read a canonical name or an unbracketed address; ``None`` for everything that is exactly neither."""
    name = canonical_hostname(raw)
    if name is not None:
        return name
    return parse_address(raw.decode("ascii")) if raw.isascii() else None


def parse_authority(raw: bytes, default_port: int | None = None) -> tuple[Hostname | IPAddress, int]:
    """Read ``host:port``, or ``host`` if there is a default port.

    Raises:
        ClientProtocolError: ``bad-name`` if the host is neither a name nor an address, ``bad-request`` for
            the rest.
    """
    match = _AUTHORITY.fullmatch(raw)
    if match is None:
        raise ClientProtocolError("bad-request", "the authority is not host:port")
    bracketed, bare, digits = match.groups()
    host: Hostname | IPAddress | None
    if bracketed is None:
        host = parse_host(bare)
    else:
        # An address without a colon could only be IPv4, which has no brackets.
        host = parse_address(bracketed.decode("ascii")) if bracketed.isascii() and b":" in bracketed else None
    if host is None:
        raise ClientProtocolError("bad-name", "the host is neither a host name nor an IP address")
    port = default_port if digits is None else int(digits)
    if port is None:
        raise ClientProtocolError("bad-request", "the authority has no port")
    if not 1 <= port <= 65535:
        raise ClientProtocolError("bad-request", "the port is not within 1 to 65535")
    return host, port


@dataclass(frozen=True, slots=True)
class AbsoluteTarget:
    """A request target in absolute-form, taken apart (RFC 9112 section 3.2.2).

    Attributes:
        scheme: in lower case, ``http`` or ``https``.
        host: canonical.
        port: the scheme's own if none was given.
        origin_form: path and query as sent, beginning with a slash.
    """

    scheme: str
    host: Hostname | IPAddress
    port: int
    origin_form: bytes


def parse_absolute_target(target: bytes) -> AbsoluteTarget:
    """Take ``http://host[:port][/path][?query]`` apart.

    Raises:
        ClientProtocolError: another scheme, a fragment, or what ``parse_authority`` raises.
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise ClientProtocolError("bad-request", "the request target is not an absolute URI")
    scheme = match[1].decode("ascii").lower()
    if scheme not in _DEFAULT_PORTS:
        raise ClientProtocolError("bad-request", "the request target's scheme is neither http nor https")
    host, port = parse_authority(match[2], _DEFAULT_PORTS[scheme])
    rest = match[3]
    return AbsoluteTarget(scheme, host, port, rest if rest.startswith(b"/") else b"/" + rest)
