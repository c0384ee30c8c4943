"""The responses that are ours: fixed JSON that tells a reason id, and never a byte of the request."""

from __future__ import annotations

__all__ = ["DENY_HEADER", "deny_reply", "error_reply", "reply_to"]

import json

from sbxproxy.errors import ClientProtocolError, StageError, UpstreamError
from sbxproxy.http.handler import Denied
from sbxproxy.http.message import Headers, Response
from sbxproxy.policy.decision import Reason

DENY_HEADER = "x-sbxproxy-deny"

_DENIALS = frozenset({Reason.HOST_MISMATCH, Reason.METHOD_NOT_ALLOWED})
"""Protocol errors that are a verdict of the firewall rather than a mistake of the client."""


def error_reply(status: int, reason: str, message: str) -> Response:
    """Make ``{"error": reason, "message": message}``, not to be cached."""
    body = json.dumps({"error": reason, "message": message}).encode() + b"\n"
    headers = Headers(((b"content-type", b"application/json"), (b"cache-control", b"no-store")))
    return Response(status=status, headers=headers, body=body)


def deny_reply(status: int, reason: str, message: str) -> Response:
    """Make an error reply with its reason in a header too, so that nobody takes it for the upstream's."""
    reply = error_reply(status, reason, message)
    try:
        return reply.with_header(DENY_HEADER, reason)
    except ValueError:  # a plugin's own reason id
        return reply


def reply_to(error: Denied | ClientProtocolError | UpstreamError | StageError) -> Response:
    """Make the reply to an error; its text is fixed by whoever raised it and holds nothing of the request."""
    match error:
        case Denied():
            return deny_reply(error.status, error.reason, error.detail)
        case ClientProtocolError() if error.reason in _DENIALS:
            return deny_reply(error.status, error.reason, str(error))
        case ClientProtocolError() | UpstreamError():
            return error_reply(error.status, error.reason, str(error))
        case StageError():  # its text is for observers
            return deny_reply(502, Reason.STAGE_FAILED, "a part of the proxy failed on this request")
