"""A request that was decided on, on its way."""

from __future__ import annotations

__all__ = ["Job", "Tally", "check_request"]

import re
from dataclasses import dataclass

from sbxproxy.errors import StageError
from sbxproxy.http.body import Body, LengthBody
from sbxproxy.http.handler import Forward
from sbxproxy.wire.http1 import RequestHead

_ORIGIN_FORM = re.compile(r"/[!-~]*")


@dataclass(slots=True)
class Tally:
    """What is counted while a request is served."""

    bytes_up: int = 0
    bytes_down: int = 0
    status: int = 0

    def reset(self) -> None:
        """Begin with the next request."""
        self.bytes_up = self.bytes_down = self.status = 0


@dataclass(slots=True)
class Job:
    """A request that was decided on, and what the client said of it.

    Attributes:
        head: as the client sent it.
        body: what the client sends, or has sent.
        forward: what the handler made of it.
        content: the body, if it is at hand; ``None`` to stream *body*.
        awaits_continue: the client sends its body once it has seen ``100 Continue``.
        websocket: the client asks for an upgrade.
    """

    head: RequestHead
    body: Body | LengthBody
    forward: Forward
    content: bytes | None
    awaits_continue: bool
    websocket: bool


def check_request(job: Job) -> None:
    """Check what a handler made of a request's first line.

    Raises:
        StageError: the target is none, or the method is another.
    """
    request = job.forward.request
    if not (_ORIGIN_FORM.fullmatch(request.target) or (request.target == "*" and request.method == "OPTIONS")):
        raise StageError("a transform made a request target that is none")
    if request.method != job.head.method:
        raise StageError("a transform changed the method")
