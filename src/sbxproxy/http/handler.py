"""What the HTTP exchange asks of the layer above it, and what it is told: one small Protocol and frozen answers.

The exchange knows HTTP and nothing of policies, secrets or addresses. Whatever is decided about a request, a
``RequestHandler`` decides; whatever keeps a decision true on the wire (framing, Host, hop-by-hop fields), the
exchange does, so that no handler can get it wrong.
"""

from __future__ import annotations

__all__ = ["AtOnce", "Denied", "Ended", "Forward", "Origin", "Record", "RequestHandler", "ask", "ask_now"]

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError, StageError, UpstreamError
from sbxproxy.http.message import Headers, Request, Response

_log = logging.getLogger("sbxproxy.http")

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request goes: the key of connection reuse, and the only source of the ``Host`` that is sent.

    Attributes:
        host: a canonical name, or an address as text (IPv6 without brackets).
        port: 1 to 65535.
        scheme: ``https`` or ``http``.
        authority: the value of ``Host`` (RFC 9110 section 7.2): the port is left out where it is the scheme's default.
    """

    host: str
    port: int
    scheme: str = "https"
    authority: str = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Write the authority once, and find the hash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        authority = host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"
        object.__setattr__(self, "authority", authority)
        object.__setattr__(self, "_hash", hash((self.host, self.port, self.scheme)))

    def __eq__(self, other: object) -> bool:
        """Compare what is compared; each connection looks its own object up among those of others, twice a request."""
        return self is other or (
            type(other) is Origin
            and self._hash == other._hash
            and self.host == other.host
            and self.port == other.port
            and self.scheme == other.scheme
        )

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Send *request* to *origin*. ``Host`` is made from the origin, whatever ``request.host`` says."""

    request: Request
    origin: Origin


class Denied(Exception):  # noqa: N818 - a verdict that may be raised from any depth, not an error of ours
    """The request is refused: the client is shown *reason*, and nothing goes upstream. Return it or raise it."""

    def __init__(self, reason: str, detail: str, *, status: int = 403) -> None:
        """Take a reason id, one fixed sentence (never the client's bytes) and an HTTP status, 400 to 599."""
        super().__init__(detail)
        if not 400 <= status <= 599:
            raise ValueError("a denial needs an error status")
        self.reason = str(reason)
        self.detail = detail
        self.status = status


@dataclass(slots=True)
class Record:
    """How one request went; the story of it for events. Holds no query, no header and no body.

    Attributes:
        method: as sent; empty if the head was not acceptable.
        path: the target without its query; empty if the head was not acceptable.
        status: of the response that the client got (101 for a tunnel), 0 if it got none.
        bytes_up: body bytes of the request that went upstream, or all bytes of a tunnel.
        bytes_down: body bytes of the response that went to the client, likewise.
        reason: ``ok``, or the reason id of what went wrong.
        seconds: from the complete head to the end of the response.
    """

    method: str
    path: str
    status: int
    bytes_up: int
    bytes_down: int
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Why serving a client connection ended.

    Attributes:
        reason: ``eof``, ``closed`` (HTTP says that the connection ends here), ``idle``, ``upgraded``,
            ``client-gone``, ``elsewhere`` (*leftover* begins with a request for another target), or the
            reason id of a failure.
        leftover: bytes of the client that were not used; only with ``elsewhere``.
    """

    reason: str
    leftover: bytes = field(default=b"", repr=False)


class RequestHandler(Protocol):
    """Decides about the requests of one client connection, one at a time, in their order.

    Any exception but ``Denied``, ``ClientProtocolError`` and ``UpstreamError`` counts as a failure of the handler:
    that one request is answered with 502 and goes nowhere.
    """

    def body_limit(self, request: Request) -> int:
        """Say how much of the body ``on_request`` must see: 0 to stream it, or a bound in bytes (413 beyond)."""
        ...

    async def on_request(self, request: Request) -> Forward | Response | Denied:
        """Decide: forward it, changed or not; answer at once, with a ``Response`` that has a body; refuse."""
        ...

    async def on_response(self, request: Request, response: Response) -> Response:
        """Look at the head of the final response to the forwarded *request*, and return what is sent.

        With a ``body`` the answer replaces the upstream's; without one the upstream's body is streamed. Not
        asked about 1xx responses, nor about an accepted upgrade.
        """
        ...

    async def connect(self, forward: Forward) -> Stream:
        """Open a new connection to ``forward.origin``; TLS is complete and verified when it returns.

        The exchange owns the stream and closes or pools it. Raises ``UpstreamError`` or ``Denied``.
        """
        ...

    def done(self, record: Record) -> None:
        """Take the story of a request that is over; must not block."""
        ...


class AtOnce(Protocol):
    """What a handler may have as ``at_once``: the decision on the usual request, made in one call and without its objects."""

    def __call__(self, method: str, target: str, headers: Headers) -> Headers | None:
        """Say with which fields the request goes to the connection's own origin, otherwise unchanged.

        ``None`` if that is not all there is to it: then ``body_limit`` and ``on_request`` are asked. Otherwise they are not, and
        ``on_response`` would have to return the response as it is: it may be left out. Raises what ``on_request`` may.
        """
        ...


_T = TypeVar("_T")


def ask_now(call: Callable[..., _T], *args: object) -> _T:
    """Call a method of a handler that answers at once; as ``ask``."""
    try:
        return call(*args)
    except (Denied, ClientProtocolError, UpstreamError, StageError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises, its request goes nowhere
        raise _failed(error) from None


async def ask(call: Callable[..., Awaitable[_T]], *args: object) -> _T:
    """Call a method of a handler; whatever it raises beyond its contract becomes a ``StageError``.

    Raises:
        Denied, ClientProtocolError, UpstreamError: as the handler raised it.
        StageError: the handler failed. Neither it nor the log has the exception's text, which may hold a secret.
    """
    try:
        return await call(*args)
    except (Denied, ClientProtocolError, UpstreamError, StageError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises, its request goes nowhere
        raise _failed(error) from None


def _failed(error: Exception) -> StageError:
    _log.error("a request handler failed with %s", type(error).__name__)
    return StageError("the request handler failed")
