"""What a request asks of this hop, beside being passed on."""

from __future__ import annotations

__all__ = ["asks_for_websocket", "expects_continue", "loggable_path"]

from sbxproxy.errors import ClientProtocolError
from sbxproxy.http.fields import list_of, wants_websocket
from sbxproxy.policy.decision import Reason
from sbxproxy.wire.http1 import RequestHead, TargetForm


def expects_continue(head: RequestHead) -> bool:
    """Tell whether the head expects ``100-continue`` (RFC 9110 section 10.1.1).

    Raises:
        ClientProtocolError: 417, it expects something else.
    """
    expected = set(list_of(head.fields, b"expect"))
    if head.version == (1, 0) or not expected:
        return False
    if expected != {b"100-continue"}:
        raise ClientProtocolError(Reason.BAD_REQUEST, "unknown expectation", status=417)
    return True


def asks_for_websocket(head: RequestHead) -> bool:
    """Tell whether the head begins a WebSocket handshake (RFC 6455 section 4.1).

    One with a body, another method or version begins none: it is passed on without its ``Upgrade``.
    """
    plain = head.method == "GET" and head.version == (1, 1) and not head.chunked and not head.content_length
    return plain and wants_websocket(head.fields)


def loggable_path(head: RequestHead) -> str:
    """Return the target's path: without the query, which may hold a secret, and without an authority."""
    target = head.target.partition(b"?")[0]
    if head.form is TargetForm.ORIGIN:
        return target.decode("ascii")
    if b"://" in target and not target.startswith(b"/"):
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target.decode("ascii")
