"""Whom a request is for. On every request the authority must be the one that the connection was judged on.

A certificate, a policy rule and a credential were chosen for one name. A ``Host`` that says another is domain
fronting, and the first request of a connection having been fine says nothing about the second.
"""

from __future__ import annotations

__all__ = ["check_target", "is_elsewhere"]

from sbxproxy.errors import ClientProtocolError
from sbxproxy.http.handler import Origin
from sbxproxy.policy.decision import Reason
from sbxproxy.wire.authority import parse_absolute_target, parse_authority
from sbxproxy.wire.http1 import RequestHead, TargetForm

_REFUSED_METHODS = frozenset({"CONNECT", "TRACE", "TRACK"})
"""A tunnel inside a tunnel; and what makes a server send back the credentials that were put in."""


def is_elsewhere(head: RequestHead, origin: Origin) -> bool:
    """Tell whether a request to a plain HTTP proxy is for another target than *origin*.

    Raises:
        ClientProtocolError: the absolute-form target is malformed.
    """
    if head.form is not TargetForm.ABSOLUTE:
        return head.form is TargetForm.AUTHORITY
    target = parse_absolute_target(head.target)
    return (target.scheme, str(target.host), target.port) != (origin.scheme, origin.host, origin.port)


def check_target(head: RequestHead, origin: Origin, *, proxying: bool) -> str:
    """Return the target in origin-form (or ``*``) of a request that is for *origin*.

    Args:
        head: the request.
        origin: the only acceptable authority. ``Host`` may leave its port out.
        proxying: the client takes us for its proxy, and must write the target in absolute-form.

    Raises:
        ClientProtocolError: 405 for CONNECT, TRACE and TRACK; 421 ``host-mismatch`` if the target or Host is
            another authority, or none; 400 for a target that suits no proxy.
    """
    if head.method in _REFUSED_METHODS:
        raise ClientProtocolError(Reason.METHOD_NOT_ALLOWED, "this method is not let through", status=405)
    target = head.target
    if head.form is TargetForm.ABSOLUTE:
        if is_elsewhere(head, origin):
            raise _mismatch()
        target = parse_absolute_target(target).origin_form
    elif proxying:
        raise ClientProtocolError(Reason.BAD_REQUEST, "a request to a proxy needs an absolute target")
    if head.host == origin.authority.encode():
        return target.decode("ascii")
    if head.host is None:
        raise ClientProtocolError(Reason.BAD_REQUEST, "no Host field")  # only HTTP/1.0 gets this far
    try:
        host, port = parse_authority(head.host, origin.port)
    except ClientProtocolError:
        raise _mismatch() from None
    if (str(host), port) != (origin.host, origin.port):
        raise _mismatch()
    return target.decode("ascii")


def _mismatch() -> ClientProtocolError:
    return ClientProtocolError(Reason.HOST_MISMATCH, "Host is not the name that this connection was opened for", status=421)
