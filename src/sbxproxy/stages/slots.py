"""The slots of the pipeline: what a plugin implements, one small Protocol each.

Slots, not a priority list: policy comes before a terminator and a terminator before transforms because there is no other way to
write it down. Whatever a part raises, and whatever takes longer than ``Limits.stage``, is a denial of that one flow or
request; observers are told which part and which class of exception, and the client only that something failed.
"""

from __future__ import annotations

__all__ = [
    "Handler",
    "PolicyStage",
    "Terminator",
    "Transform",
    "TransformFactory",
    "check_handler",
    "check_observer",
    "check_policy",
    "check_sniffer",
    "check_terminator",
    "check_transform",
]

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from trio.abc import Stream

from sbxproxy.flow import Flow
from sbxproxy.hostname import Hostname
from sbxproxy.http.message import Request, Response
from sbxproxy.policy.decision import Decision, Deny


class PolicyStage(Protocol):
    """Narrows what the sandbox's own policy allowed; it is never asked about a flow that the policy denies.

    ``flow.decision`` holds the policy's decision. Return it unchanged to agree, or a ``Deny``, or a ``Handle`` that names a
    registered handler and keeps ``flow.decision.dial``. Anything else counts as a failed stage: a plugin can't open what the
    policy closed.
    It is asked again, with the same facts, when the sandbox's policy changes.
    """

    async def decide(self, flow: Flow) -> Decision:
        """Decide on *flow*, looking at ``flow.facts`` and ``flow.decision``."""
        ...


class Terminator(Protocol):
    """Makes plain text out of both ends of an inspected flow.

    Both methods take ownership of the stream they are given and close it when they raise. ``connect`` is called first and has
    verified the upstream when it returns; only then is ``accept`` called, so that a client never completes a handshake on
    behalf of an upstream that isn't who it says.
    """

    async def accept(self, flow: Flow, client: Stream) -> Stream:
        """Complete the client's handshake under ``flow.facts.server_name``; raise ``ClientError`` if it fails."""
        ...

    async def connect(self, flow: Flow, upstream: Stream, name: Hostname) -> Stream:
        """Complete a handshake with *name* and verify it; raise ``UpstreamTlsError`` if it isn't *name*."""
        ...


class Transform(Protocol):
    """Changes a request on its way out, or answers it.

    When it runs, ``host`` is the verified server name, hop-by-hop fields are gone and framing is the core's business. Two
    optional members: ``body_limit: int``, an attribute of the class or factory (most bytes of the body it wants to see in
    ``request.body``; longer ones are refused with 413; without it bodies are streamed and ``request.body`` is ``None``), and
    ``async on_response(flow, request, response) -> Response``.
    """

    async def on_request(self, flow: Flow, request: Request) -> Request | Response | Deny:
        """Return the request to send, or a response to answer with, or a denial."""
        ...


class Handler(Protocol):
    """Carries another protocol between both ends; it need not close them, the core does when it returns or raises."""

    async def handle(self, flow: Flow, client: Stream, upstream: Stream) -> None:
        """Relay until the conversation ends; the first bytes that were looked at come out of *client* again."""
        ...


TransformFactory = Callable[..., Transform]
"""Called with a rule's ``config`` as keyword arguments; values with ``${secret:…}`` arrive as ``Secret``."""

_OPTIONAL = {"on_response", "on_request"}


def check_sniffer(part: Any) -> None:
    """Check that *part* is a plain callable of one argument.

    Raises:
        TypeError: it isn't; the message names the part and what it needs.
    """
    _check_plain(part, f"sniffer {part!r} must be a plain function: (data: bytes) -> Sniffed | Hint")


def check_observer(part: Any) -> None:
    """Check that *part* is a plain callable of one argument; raises ``TypeError`` if not."""
    _check_plain(part, f"observer {part!r} must be a plain function: (event) -> None")


def check_policy(part: Any) -> None:
    """Check that *part* has ``async decide(flow)``; raises ``TypeError`` if not."""
    _check_instance(part, "policy stage")
    _check_method(part, "decide", 1, "policy stage")


def check_terminator(part: Any) -> None:
    """Check that *part* has ``async accept(flow, client)`` and ``async connect(flow, upstream, name)``; ``TypeError`` if not."""
    _check_instance(part, "terminator")
    _check_method(part, "accept", 2, "terminator")
    _check_method(part, "connect", 3, "terminator")


def check_handler(part: Any) -> None:
    """Check that *part* has ``async handle(flow, client, upstream)``; raises ``TypeError`` if not."""
    _check_instance(part, "handler")
    _check_method(part, "handle", 3, "handler")


def check_transform(part: Any) -> None:
    """Check that *part* has ``async on_request(flow, request)`` and no ``on_…`` that nothing would call.

    *part* may be an instance or a class. A misspelt hook is an error here rather than a hole at run time.

    Raises:
        TypeError: it doesn't fit; the message says what does.
    """
    _check_method(part, "on_request", 2, "transform")
    for name in dir(part):
        if name.startswith("on_") and name not in _OPTIONAL:
            raise TypeError(f"transform {_name(part)} has {name}, which nothing calls; hooks are on_request and on_response")
    if hasattr(part, "on_response"):
        _check_method(part, "on_response", 3, "transform")
    limit = getattr(part, "body_limit", 0)
    if not inspect.isclass(part) and not (isinstance(limit, int) and limit >= 0):
        raise TypeError(f"transform {_name(part)}: body_limit must be a number of bytes, 0 or more")


def _check_plain(part: Any, message: str) -> None:
    if not callable(part) or inspect.isclass(part):
        raise TypeError(message)
    if inspect.iscoroutinefunction(part) or inspect.iscoroutinefunction(type(part).__call__):
        raise TypeError(message)
    _check_arity(part, 1, message)


def _check_method(part: Any, method: str, arity: int, slot: str) -> None:
    function = getattr(part, method, None)
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{slot} {_name(part)} needs `async def {method}` with {arity} arguments; it has {_methods(part)}")
    bound = not inspect.isclass(part) or isinstance(inspect.getattr_static(part, method), staticmethod | classmethod)
    message = f"{slot} {_name(part)}: {method} must take exactly {arity} positional arguments"
    _check_arity(function, arity if bound else arity + 1, message)


def _check_instance(part: Any, slot: str) -> None:
    if inspect.isclass(part):
        raise TypeError(f"{slot} {_name(part)} is a class: put an instance of it")


def _check_arity(function: Any, arity: int, message: str) -> None:
    try:
        inspect.signature(function).bind(*range(arity))
    except (TypeError, ValueError):  # ValueError: a function in C that doesn't tell
        raise TypeError(message) from None


def _name(part: Any) -> str:
    return part.__name__ if inspect.isclass(part) else type(part).__name__


def _methods(part: Any) -> str:
    names = [name for name in dir(part) if not name.startswith("_") and callable(getattr(part, name, None))]
    return ", ".join(names) or "no methods"
