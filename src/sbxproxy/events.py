"""What observers are told: one canonical record per flow, inspected request, DNS query and policy change.

Events are frozen and hold no header values, no bodies, no query strings and no raw bytes of the client: whatever a program puts
into a name or a path can't break a log line, because the JSON form escapes it.
"""

from __future__ import annotations

__all__ = [
    "DnsAnswered",
    "Event",
    "FlowClosed",
    "FlowOpened",
    "JsonLines",
    "Observer",
    "PolicyChanged",
    "Problem",
    "RequestDone",
    "as_dict",
    "as_json",
    "from_dict",
    "kinds",
    "telling",
]

import atexit
import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from math import isfinite
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import IO, Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stamped:
    """What every event has.

    Attributes:
        sandbox: the sandbox's name.
        time: seconds since the Unix epoch.
    """

    sandbox: str
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOpened(_Stamped):
    """A flow was admitted and is connected.

    Attributes:
        flow: the flow's id, unique in the process.
        target: what the client asked for, ``host:port``.
        server_name: the canonical name in its ClientHello.
        decision: ``relay``, ``inspect`` or ``handle``.
        reason: the reason id.
        rule: the pattern or range of the policy that allowed it.
        address: what was dialled, ``address:port``.
    """

    flow: int
    target: str
    server_name: str | None
    decision: str
    reason: str
    rule: str | None
    address: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowClosed(_Stamped):
    """The whole story of one connection, told once when it ends, denied ones included.

    Attributes:
        flow: the flow's id, unique in the process.
        front: how the client named its target: ``connect``, ``http``, ``socks5``, ``proxy-protocol``, ``stream``.
        target: what the client asked for, ``host:port``; empty if it never said.
        wire: what its first bytes were (``tls``, ``http``, ``postgres``, ``unknown``, ``silent``), ``None`` if not looked at.
        server_name: the canonical name in its ClientHello.
        decision: ``relay``, ``inspect``, ``handle``, ``deny``, or ``error`` when it failed without a verdict.
        reason: the reason id of the decision, or of the failure.
        rule: the pattern or range of the policy that decided.
        detail: one sentence for people; empty where the reason says it all.
        remedy: the policy line that would allow it; ``None`` where none would.
        address: what was dialled, ``address:port``; ``None`` if nothing was.
        bytes_up: bytes from the client to the upstream, as the client sent them.
        bytes_down: bytes from the upstream to the client.
        requests: requests served, on inspected flows.
        duration: seconds from accept to close.
        ended: why it ended: ``eof``, ``denied``, ``idle``, ``policy-changed``, ``drained``, ``client-reset``, …
    """

    flow: int
    front: str
    target: str
    wire: str | None
    server_name: str | None
    decision: str
    reason: str
    rule: str | None
    detail: str = ""
    remedy: str | None = None
    address: str | None
    bytes_up: int
    bytes_down: int
    requests: int
    duration: float
    ended: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDone(_Stamped):
    """One request of an inspected flow, or one forwarded plain-text request.

    Attributes:
        flow: the flow's id.
        method: upper-case token.
        host: the server name it was pinned to.
        path: without the query, which often holds secrets.
        rule: index of the rule that applied, from 0; ``None`` if none did and the request went out unchanged.
        reason: the reason id if it was refused or failed, else ``None``.
        status: the status sent to the client; 0 if none could be.
        bytes_up: body bytes from the client.
        bytes_down: body bytes to the client.
        duration: seconds from the head to the end of the response.
    """

    flow: int
    method: str
    host: str
    path: str
    rule: int | None
    reason: str | None
    status: int
    bytes_up: int
    bytes_down: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged(_Stamped):
    """A policy was put in force.

    Attributes:
        mode: ``allow-all``, ``deny-all`` or ``user-defined``.
        cut: ids of the flows that it ended.
        kept: how many live flows it left.
    """

    mode: str
    cut: tuple[int, ...]
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(_Stamped):
    """Something that an operator should see and that ended no more than one flow: a failed plugin, an unreadable secret.

    Attributes:
        flow: the flow's id, where there is one.
        reason: a stable id.
        detail: one sentence, free of secrets and of client bytes.
    """

    flow: int | None
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsAnswered(_Stamped):
    r"""A DNS query of a program was answered, by yes or no.

    Attributes:
        name: the name asked for, in lower case, with everything but letters, digits, ``-`` and ``_`` written ``\DDD``; ``.``
            for the root, empty if the query could not be read.
        type: the record type's mnemonic, or ``TYPE`` and its number; empty if the query could not be read.
        rcode: the answer's code: ``NOERROR``, ``NXDOMAIN``, ``SERVFAIL``, ``REFUSED``, …
        answers: records in the answer section.
        decision: ``allow``, ``deny``, or ``error`` when what was allowed could not be had.
        reason: the reason id of the decision, or of the failure.
        rule: the pattern of the policy that allowed it; ``None`` where none did.
        remedy: the policy line that would allow it; ``None`` where none would.
    """

    name: str
    type: str
    rcode: str
    answers: int
    decision: str
    reason: str
    rule: str | None
    remedy: str | None = None


Event = FlowOpened | FlowClosed | RequestDone | PolicyChanged | Problem | DnsAnswered

Observer = Callable[[Event], None]
"""Called synchronously, on the event loop; it can't delay, change or end a flow, and what it raises is swallowed."""


def telling(observers: Iterable[Observer]) -> Observer:
    """Return what tells all of *observers*, those behind one that raises too."""
    told = tuple(observers)

    def tell(event: Event) -> None:
        for observer in told:
            try:  # noqa: SIM105 - suppress() would cost more than an observer does
                observer(event)
            except Exception:  # noqa: BLE001, S110 - an observer can't end or change a flow; its loss is its own
                pass

    return tell


_KINDS = {
    FlowOpened: "flow-opened",
    FlowClosed: "flow-closed",
    RequestDone: "request",
    PolicyChanged: "policy-changed",
    Problem: "problem",
    DnsAnswered: "dns",
}


def _fields(kind: type[Event]) -> tuple[tuple[str, ...], Callable[[Event], tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)


# The standard library's asdict copies each value in depth, which takes longer than all else that is done for an event.
_FIELDS = {kind: _fields(kind) for kind in _KINDS}

_encode = json.JSONEncoder(separators=(",", ":")).encode

_known_text = lru_cache(maxsize=4096)(encode_basestring_ascii)
"""The same few names, patterns and reasons stand in event after event."""

_LONGEST_KNOWN = 256


def _text(value: str) -> str:
    return _known_text(value) if len(value) <= _LONGEST_KNOWN else encode_basestring_ascii(value)


_SCALARS: dict[type, Callable[[Any], str]] = {
    str: _text,
    int: int.__repr__,
    float: lambda number: float.__repr__(number) if isfinite(number) else _encode(number),
    type(None): lambda _none: "null",
}


def _template(kind: type[Event]) -> str:
    fields = (f'"{name}":%s' for name in _FIELDS[kind][0])
    return f'{{"event":"{_KINDS[kind]}",{",".join(fields)}}}'


_TEMPLATES = {kind: _template(kind) for kind in _KINDS}


def as_json(event: Event) -> str:
    """Return the event as one line of JSON in printable ASCII, as ``json.dumps(as_dict(event))`` would but for spaces.

    An event is a flat value of known names, so a template does, at a third of what the general encoder costs.
    """
    kind = type(event)
    try:
        values = tuple([_SCALARS[type(value)](value) for value in _FIELDS[kind][1](event)])
    except KeyError:  # something that isn't flat
        return _encode(as_dict(event))
    return _TEMPLATES[kind] % values


def as_dict(event: Event) -> dict[str, Any]:
    """Return the event as JSON-ready values, its kind under ``event``."""
    names, values = _FIELDS[type(event)]
    return {"event": _KINDS[type(event)], **dict(zip(names, values(event), strict=True))}


_NAMED = {name: kind for kind, name in _KINDS.items()}


def from_dict(values: dict[str, Any]) -> Event:
    """Make the event again that ``as_dict`` has written, perhaps by way of JSON.

    Raises:
        ValueError: it is no event.
    """
    given = dict(values)
    kind = _NAMED.get(given.pop("event", None))
    if kind is None or given.keys() != set(_FIELDS[kind][0]):
        raise ValueError("not an event")
    if kind is PolicyChanged:
        given["cut"] = tuple(given["cut"])
    event: Event = kind(**given)
    return event


REST = 0.05
"""Seconds that the writing thread rests after it has caught up. Woken by each event, it would take the interpreter's lock from
the event loop twice a flow, which costs a busy proxy a fifth of its connections."""


class JsonLines:
    """An observer that writes each event as one line of JSON, from a thread of its own.

    Everything but printable ASCII is escaped, so a hostile name can neither begin a second line nor paint a terminal. A stream
    that takes nothing (a pipe that nobody reads, a hung disk) can't hold up any flow: events wait in a bounded queue, and what
    finds it full is dropped. The stream is the caller's to open and to close, after ``close``.

    Attributes:
        error: what the first failing write raised (a full disk, a broken pipe); later events are tried all the same.
    """

    def __init__(self, stream: IO[str], *, queue: int = 10_000) -> None:
        """Take an open text stream, and how many events may wait for it; the thread starts with the first event."""
        self._stream = stream
        self._waiting = queue
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._closing = threading.Event()
        self._dropped = 0
        self._failed = 0
        self.error: Exception | None = None

    @property
    def lost(self) -> int:
        """How many events were not written: the queue was full, a write failed, or they came after ``close``."""
        return self._dropped + self._failed

    def __call__(self, event: Event) -> None:
        """Take an event for writing; never waits."""
        if self._closed or self._queue.qsize() >= self._waiting:
            self._dropped += 1
            return
        self._queue.put(event)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="sbxproxy-events", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, for at most *timeout* seconds; tell whether all of it was.

        It blocks, so don't call it on the event loop while flows are open. The process's exit calls it if nobody did.
        """
        self._closed = True
        self._closing.set()
        if self._thread is None:
            return True
        atexit.unregister(self.close)
        self._queue.put(None)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return True
        with suppress(Empty):  # the thread is stuck in a write: leave it nothing but the order to end
            while self._queue.get_nowait() is not None:
                self._dropped += 1
        self._queue.put(None)
        return False

    def _write_all(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                self._stream.write(as_json(event) + "\n")
                if self._queue.empty():
                    self._stream.flush()
            except Exception as error:  # noqa: BLE001  # ValueError: the stream was closed under us
                self.error = self.error or error
                self._failed += 1
            if self._queue.empty():
                self._closing.wait(REST)


def kinds(error: BaseException) -> str:
    """Name the types in *error*, those of a group one by one.

    That is all that may be told of a failure whose text may quote what a client sent, or a secret.
    """
    return ", ".join(sorted({type(leaf).__name__ for leaf in _leaves(error)}))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
