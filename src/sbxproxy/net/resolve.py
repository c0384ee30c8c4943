"""Names to addresses, by the system's resolver, which can neither be trusted nor be stopped.

Theory of operation. The C library cuts a name at a NUL and takes ``127.1`` for an address, so nothing but a
canonical name ever reaches it, and what it answers is parsed as strictly as any other text. A call of it
can't be cancelled: it runs in a thread that nobody owns. The thread, not a task, delivers the answer: it
posts it to the event loop, where it goes into the cache and wakes whoever still waits. So callers with the
same name share one look-up, any of them may be cancelled at any time, and an answer that comes too late for
all of them is there for the next.

While all threads are stuck, names from the cache are still answered at once, and others wait in line, outside
of any thread, until their time is up.
"""

from __future__ import annotations

__all__ = ["Resolver", "SystemResolver"]

import math
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import outcome
import trio

from sbxproxy.address import IPAddress, parse_address, unmapped
from sbxproxy.errors import ConfigurationError, UpstreamNoAddressError, UpstreamResolveError
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.settings import Limits

LEAST_TTL = 1.0
MOST_TTL = 300.0
"""Bounds of how long an answer is kept, in seconds: not so short that each connection asks, and not so long
that a moved service stays lost."""

MOST_ADDRESSES = 32
"""Addresses of one name that are kept; a hostile zone may list thousands."""

_GetAddrInfo = Callable[..., Sequence[tuple[Any, ...]]]

_DEFAULTS = Limits()


class Resolver(Protocol):
    """What resolves names for all sandboxes of a proxy.

    It may be called by many tasks at once and any call may be cancelled. It judges no address: whoever asks
    must, and connects to what passed and to nothing else.
    """

    async def resolve(self, name: Hostname) -> tuple[IPAddress, ...]:
        """Return the addresses of *name*, best first, without repetition; at least one.

        Raises:
            UpstreamNoAddressError: there are none, but the name exists.
            UpstreamResolveError: there is no such name, or no answer in time; who can't tell that a name exists raises
                this too.
        """
        ...


@dataclass(slots=True, eq=False)
class _Lookup:
    """A look-up in progress, or in line for a thread."""

    name: Hostname
    token: trio.lowlevel.TrioToken
    done: trio.Event = field(default_factory=trio.Event)
    answer: tuple[IPAddress, ...] | UpstreamResolveError | None = None
    waiting: int = 0
    started: bool = False


class SystemResolver:
    """``getaddrinfo`` in threads, with a cache, and the operator's own addresses before it.

    The system's configuration stands as it is, ``/etc/hosts`` and search domains included. Nothing runs in
    the background and nothing needs closing; one event loop may use it.
    """

    __slots__ = (
        "_cache",
        "_free",
        "_getaddrinfo",
        "_line",
        "_lookups",
        "_negative_ttl",
        "_overrides",
        "_size",
        "_timeout",
        "_ttl",
    )

    def __init__(
        self,
        *,
        overrides: Mapping[Hostname, Sequence[IPAddress]] | None = None,
        threads: int = _DEFAULTS.resolver_threads,
        cache: int = _DEFAULTS.resolver_cache,
        timeout: float = _DEFAULTS.resolve,
        ttl: float = 30.0,
        negative_ttl: float = 3.0,
        getaddrinfo: _GetAddrInfo = socket.getaddrinfo,  # noqa: TID251 - this is the one place
    ) -> None:
        """Start nothing.

        Args:
            overrides: addresses for names, given instead of a look-up.
            threads: look-ups at once, stuck ones included.
            cache: names kept, the least recently used go first.
            timeout: seconds that one call of ``resolve`` waits, in line and for the answer.
            ttl: seconds an answer is kept, put within 1 and 300; the C library does not tell the records'
                own.
            negative_ttl: seconds that "no such name" is kept. Failures of the resolver itself are not kept.
            getaddrinfo: what to call, in a thread; like ``socket.getaddrinfo``.

        Raises:
            ConfigurationError: an override's name is not canonical, or has no address.
        """
        self._overrides: dict[Hostname, tuple[IPAddress, ...]] = {}
        for name, addresses in (overrides or {}).items():
            if canonical_hostname(name) != name:
                raise ConfigurationError("resolve: a name is not a canonical host name")
            if not addresses:
                raise ConfigurationError(f"resolve: {name} has no address")
            self._overrides[name] = tuple(dict.fromkeys(map(unmapped, addresses)))
        self._free = threads
        self._size = cache
        self._timeout = timeout
        self._ttl = min(max(ttl, LEAST_TTL), MOST_TTL)
        self._negative_ttl = min(negative_ttl, self._ttl)
        self._getaddrinfo = getaddrinfo
        self._cache: OrderedDict[Hostname, tuple[float, tuple[IPAddress, ...] | None]] = OrderedDict()
        self._lookups: dict[Hostname, _Lookup] = {}
        self._line: deque[_Lookup] = deque()

    async def resolve(self, name: Hostname) -> tuple[IPAddress, ...]:
        """Return the addresses of *name*, from the overrides, the cache or the system; others get a turn only for the last.

        Raises:
            UpstreamNoAddressError: the name exists, and has no usable address.
            UpstreamResolveError: ``reason`` is ``name-not-resolved`` (it has no usable address),
                ``resolve-timeout`` (status 504) or ``resolver-failed``.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if (known := self.known(name)) is not None:
            return known
        if (kept := self._cache.get(name)) is not None:
            raise _no_such_name() if kept[1] is None else _no_address()
        if canonical_hostname(name) != name:  # nothing else was ever kept
            raise UpstreamResolveError("not a canonical host name")
        return await self._join(name)

    def known(self, name: Hostname) -> tuple[IPAddress, ...] | None:
        """Return the addresses of *name* that ``resolve`` would give at once; ``None`` if it would have to ask, or raise."""
        if (fixed := self._overrides.get(name)) is not None:
            return fixed
        if (kept := self._cache.get(name)) is not None:
            expires, addresses = kept
            if trio.current_time() < expires:
                self._cache.move_to_end(name)
                return addresses or None
            del self._cache[name]
        return None

    async def _join(self, name: Hostname) -> tuple[IPAddress, ...]:
        """Wait for the look-up of *name*, which is begun if there is none."""
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = self._lookups[name] = _Lookup(name, trio.lowlevel.current_trio_token())
            self._line.append(lookup)
            self._start_next()
        lookup.waiting += 1
        try:
            with trio.move_on_after(self._timeout):
                await lookup.done.wait()
        finally:
            lookup.waiting -= 1
            if not lookup.waiting and not lookup.started and self._lookups.get(name) is lookup:
                # Nobody wants it any more, and its turn has not come.
                self._line.remove(lookup)
                del self._lookups[name]
        match lookup.answer:
            case None:
                raise UpstreamResolveError("the resolver did not answer in time", reason="resolve-timeout", status=504)
            case UpstreamResolveError() as error:
                # One exception object raised by several tasks would gather all their tracebacks.
                raise type(error)(str(error), reason=error.reason, status=error.status)
            case addresses:
                return addresses

    def _start_next(self) -> None:
        """Give free threads to the look-ups in line."""
        while self._free > 0 and self._line:
            lookup = self._line.popleft()
            lookup.started = True
            self._free -= 1
            raw_name = lookup.name.encode("ascii")  # as bytes, since text would go through the ``idna`` codec

            def work(raw_name: bytes = raw_name) -> Sequence[tuple[Any, ...]]:
                return self._getaddrinfo(raw_name, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)

            def deliver(result: outcome.Outcome[Sequence[tuple[Any, ...]]], lookup: _Lookup = lookup) -> None:
                with suppress(trio.RunFinishedError):  # it came after everything had ended
                    lookup.token.run_sync_soon(self._finish, lookup, result)

            try:
                trio.lowlevel.start_thread_soon(work, deliver, name="sbxproxy resolver")
            except RuntimeError as error:  # the system has no thread left for us
                self._finish(lookup, outcome.Error(error))

    def _finish(self, lookup: _Lookup, result: outcome.Outcome[Sequence[tuple[Any, ...]]]) -> None:
        """Keep an answer and wake those who wait; runs on the event loop and must not raise."""
        self._free += 1
        del self._lookups[lookup.name]
        lookup.answer = answer = _read(result)
        if not isinstance(answer, UpstreamResolveError):
            self._keep(lookup.name, answer, self._ttl)
        elif answer.reason == UpstreamResolveError.reason:
            self._keep(lookup.name, () if isinstance(answer, UpstreamNoAddressError) else None, self._negative_ttl)
        lookup.done.set()
        self._start_next()

    def _keep(self, name: Hostname, addresses: tuple[IPAddress, ...] | None, ttl: float) -> None:
        if ttl <= 0 or math.isnan(ttl):
            return
        self._cache[name] = (trio.current_time() + ttl, addresses)
        self._cache.move_to_end(name)
        while len(self._cache) > self._size:
            self._cache.popitem(last=False)


def _read(
    result: outcome.Outcome[Sequence[tuple[Any, ...]]],
) -> tuple[IPAddress, ...] | UpstreamResolveError:
    """Read what ``getaddrinfo`` gave; anything unexpected is a failure of the resolver."""
    try:
        entries = result.unwrap()
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            return _no_such_name()
        if error.errno in _NO_ADDRESS:
            return _no_address()
        return _resolver_failed()
    except Exception:  # noqa: BLE001 - whatever happened in that thread, it is no answer
        return _resolver_failed()
    addresses: dict[IPAddress, None] = {}
    for family, _, _, _, sockaddr in entries:
        if family not in {socket.AF_INET, socket.AF_INET6} or len(addresses) >= MOST_ADDRESSES:
            continue
        # A scope id (of link-local addresses) shows as a fourth element or as text after "%".
        if len(sockaddr) > 3 and sockaddr[3]:
            continue
        if (address := parse_address(sockaddr[0])) is not None:
            addresses[address] = None
    return tuple(addresses) or _no_address()


# Not every C library tells a name without addresses from no name; then both are EAI_NONAME.
_NO_ADDRESS = frozenset(getattr(socket, name) for name in ("EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name))


def _no_such_name() -> UpstreamResolveError:
    return UpstreamResolveError("the name has no usable address")


def _no_address() -> UpstreamNoAddressError:
    return UpstreamNoAddressError("the name has no usable address")


def _resolver_failed() -> UpstreamResolveError:
    return UpstreamResolveError("the resolver failed", reason="resolver-failed")
