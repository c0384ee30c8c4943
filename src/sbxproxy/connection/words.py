"""What a client is told, in its own protocol where that has words for it, when its connection is ended."""

from __future__ import annotations

__all__ = ["denial", "failure"]

from sbxproxy.fronts.http import refusal_bytes
from sbxproxy.policy.decision import Deny, Reason, Wire
from sbxproxy.wire.postgres import error_response
from sbxproxy.wire.tls import Alert, alert_record


def denial(wire: str | None, deny: Deny, *, promised_tls: bool = False) -> bytes:
    """Say no as the protocol of the first bytes does; empty where there is no way but a reset.

    Args:
        wire: what they are.
        deny: the verdict.
        promised_tls: a PostgreSQL client was told to begin its handshake: it no longer understands plain text.
    """
    match wire:
        case Wire.TLS | Wire.POSTGRES_TLS:
            return alert_record(Alert.ACCESS_DENIED)
        case Wire.HTTP:
            return refusal_bytes(deny)
        case Wire.POSTGRES_REQUEST:
            # Without a promise there is no answer that whoever put bytes behind a request might not misread.
            return alert_record(Alert.ACCESS_DENIED) if promised_tls else b""
        case Wire.POSTGRES:
            code = "08P01" if deny.reason == Reason.BAD_STARTUP else "28000"
            return error_response(
                f"the sandbox's policy denies this: {deny.detail} [{deny.reason}]", code=code, hint=deny.remedy or ""
            )
        case _:
            return b""


def failure(wire: str | None) -> bytes:
    """Say that what was allowed can't be had; empty where there is no way but to close."""
    return alert_record(Alert.INTERNAL_ERROR) if wire in {Wire.TLS, Wire.POSTGRES_TLS} else b""
