"""TLS as far as an observer needs it: ``alert``, ``client_hello``, the sniffer, and HelloRetryRequest."""

from __future__ import annotations

__all__ = [
    "MAX_HELLO_MESSAGE",
    "MAX_HELLO_WIRE",
    "Alert",
    "ClientHello",
    "Malformed",
    "alert_record",
    "is_hello_retry_request",
    "missing_hello_bytes",
    "parse_client_hello",
    "sniff_tls",
]

from typing import Literal

from sbxproxy.wire.alert import Alert, alert_record
from sbxproxy.wire.client_hello import (
    MAX_HELLO_MESSAGE,
    MAX_HELLO_WIRE,
    ClientHello,
    Malformed,
    missing_hello_bytes,
    parse_client_hello,
)
from sbxproxy.wire.result import Hint, Sniffed

_HANDSHAKE = 22
_SERVER_HELLO = 2

_HELLO_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The ServerHello.random that makes it a HelloRetryRequest (RFC 8446 section 4.1.3)."""


def sniff_tls(data: bytes) -> Sniffed | Hint:
    """Recognise a TLS handshake by its first two bytes and answer with what its ClientHello says."""
    hello = parse_client_hello(data)
    if isinstance(hello, ClientHello):
        return Sniffed("tls", hello.server_name, hello.alpn)
    if isinstance(hello, Malformed):
        return Sniffed("tls", problem=hello.problem)
    return hello


def is_hello_retry_request(data: bytes) -> bool | Literal[Hint.NEED_MORE]:
    """Tell whether the server's first bytes are a HelloRetryRequest.

    The client answers that with a second ClientHello, whose server name nothing ties to the first one's.
    A ServerHello cut into several records before the end of its random isn't recognised: no server does that.
    """
    for position, expected in (
        (0, bytes((_HANDSHAKE,))),
        (5, bytes((_SERVER_HELLO,))),
        (11, _HELLO_RETRY_RANDOM),
    ):
        seen = data[position : position + len(expected)]
        if not expected.startswith(seen):
            return False
    return True if len(data) >= 11 + len(_HELLO_RETRY_RANDOM) else Hint.NEED_MORE
