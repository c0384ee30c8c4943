"""TLS alerts in the clear: how a handshake is refused so that the client can say why."""

from __future__ import annotations

__all__ = ["Alert", "alert_record"]

from enum import IntEnum


class Alert(IntEnum):
    """Alert descriptions (RFC 8446 section 6, RFC 6066, RFC 7301)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    ILLEGAL_PARAMETER = 47
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    PROTOCOL_VERSION = 70
    INTERNAL_ERROR = 80
    UNRECOGNIZED_NAME = 112
    NO_APPLICATION_PROTOCOL = 120


def alert_record(alert: Alert, *, fatal: bool = True) -> bytes:
    """Return *alert* as a record in the clear: what may be sent to a peer before any key is agreed on."""
    return bytes((21, 3, 3, 0, 2, 2 if fatal else 1, alert))
