"""Idle upstream connections of one sandbox, kept for its next request to the same origin.

One pool per sandbox and none shared: a connection carries what its sandbox sent, credentials included. All
bookkeeping is synchronous, so that a connection is in one place at any time. Who takes connections out closes
them; ``bury`` closes those that the pool gave up.
"""

from __future__ import annotations

__all__ = ["Pool"]

import select
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from trio.abc import Stream

from sbxproxy.net.bare import BareStream
from sbxproxy.net.sockets import socket_below
from sbxproxy.settings import Limits

if TYPE_CHECKING:
    from sbxproxy.http.handler import Origin

_GRACE = 1.0
"""Seconds for which more may be kept."""
_BURST = 4
"""How many times as many."""


@dataclass(slots=True, eq=False)
class _Idle:
    origin: Origin
    stream: Stream
    until: float


class Pool:
    """At most ``Limits.pooled_per_sandbox`` connections, each idle for at most ``Limits.keep_alive``.

    For a second it may be four times as many: many requests at once leave their connections behind at once, and the next
    ones would else open as many again. ``tidy`` closes those when nobody asks any more.

    Attributes:
        generation: how often everything was forgotten; what was opened before the last time is not kept.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin empty."""
        self.generation = 0
        self._limits = limits
        self._idle: OrderedDict[_Idle, None] = OrderedDict()  # oldest first
        self._by_origin: dict[Origin, list[_Idle]] = {}  # likewise; some may be empty, for the next one to come back
        self._dead: list[Stream] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def __repr__(self) -> str:
        return f"<Pool {len(self._idle)} idle>"

    def take(self, origin: Origin, now: float | None = None) -> Stream | None:
        """Take out the connection to *origin* that was idle for the shortest time, or ``None``.

        One that has something to read is given up: an idle upstream has nothing to say but that it is closing,
        or a response that nobody asked for.
        """
        idle = self._idle
        if now is None or (idle and next(iter(idle)).until <= now):
            self.expire(now)
        same = self._by_origin.get(origin)
        while same:
            stream = same[-1].stream
            readable = _readable(stream)
            del idle[same.pop()]
            if not readable:
                return stream
            self._dead.append(stream)
        return None

    def idle(self, origin: Origin, now: float | None = None) -> Stream | None:
        """Return the connection that ``take`` would, and leave it where it is: it stays the pool's."""
        self.expire(now)
        same = self._by_origin.get(origin)
        while same:
            stream = same[-1].stream
            if not _readable(stream):
                return stream
            del self._idle[same.pop()]
            self._dead.append(stream)
        return None

    def _oldest(self) -> _Idle:
        idle, _ = self._idle.popitem(last=False)
        self._by_origin[idle.origin].remove(idle)
        return idle

    def give(self, origin: Origin, stream: Stream, *, generation: int | None = None, now: float | None = None) -> None:
        """Put in a verified connection to *origin* on which nothing is under way; the pool owns it now.

        *generation* is what it was when the connection was begun, or taken out.
        """
        if self._closed or generation not in {None, self.generation}:
            self._dead.append(stream)
            return
        if now is None:
            now = trio.current_time()
        self.expire(now)
        if len(self._idle) >= self._limits.pooled_per_sandbox:
            self._make_room(now, 1)
        idle = _Idle(origin, stream, now + self._limits.keep_alive)
        self._idle[idle] = None
        same = self._by_origin.get(origin)
        if same is None:
            if len(self._by_origin) >= 2 * self._limits.pooled_per_sandbox:
                self._by_origin = {origin: idles for origin, idles in self._by_origin.items() if idles}
            self._by_origin[origin] = [idle]
        else:
            same.append(idle)

    def _make_room(self, now: float, room: int) -> None:
        """Give up the oldest connections beyond what may be kept."""
        most = self._limits.pooled_per_sandbox - room
        while len(self._idle) > most:
            oldest = next(iter(self._idle))
            since = oldest.until - self._limits.keep_alive
            if now - since < _GRACE and len(self._idle) <= _BURST * self._limits.pooled_per_sandbox - room:
                return
            self._dead.append(self._oldest().stream)

    def forget(self) -> None:
        """Give up all connections, now or when they come back: the policy they were opened under is replaced."""
        self.generation += 1
        self._dead += [idle.stream for idle in self._idle]
        self._idle.clear()
        self._by_origin.clear()

    @property
    def has_dead(self) -> bool:
        """There is something for ``bury`` to do."""
        return bool(self._dead)

    async def bury(self) -> None:
        """Close what was given up; it does not wait for any peer and can't be cancelled."""
        if not self._dead:
            return
        with trio.CancelScope(shield=True):
            while self._dead:
                await trio.aclose_forcefully(self._dead.pop())

    async def tidy(self) -> None:
        """Close connections that are too old, or too many now that a burst is over."""
        now = trio.current_time()
        self.expire(now)
        self._make_room(now, 0)
        await self.bury()

    async def aclose_all(self) -> None:
        """Close all, and from now on keep nothing."""
        self._closed = True
        self.forget()
        await self.bury()

    def expire(self, now: float | None = None) -> None:
        """Give up connections that are too old (*now*, if the time is known); ``bury`` closes them."""
        if now is None:
            now = trio.current_time()
        while self._idle and next(iter(self._idle)).until <= now:
            self._dead.append(self._oldest().stream)


def _readable(stream: Stream) -> bool:
    """Tell whether the socket below has bytes, an end or an error waiting; false if there is no socket."""
    bare = getattr(stream, "transport", stream)
    sock = bare.socket if type(bare) is BareStream else socket_below(stream)
    if sock is None:
        return False
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
