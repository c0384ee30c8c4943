"""The short way of a plain tunnel: from its first bytes to its end without a task of its own.

    accepted ─▶ head of a CONNECT ─▶ ClientHello ─▶ judge ─▶ connect ─▶ tunnel ─▶ end
                      │                    │           │         │
                      └────────────────────┴───────────┴─────────┴──▶ anything else: a task, and the ordinary way

A tunnel that rules don't touch is what most connections are, and half of its time went into beginning to wait, being woken
and passing through coroutines. Here the engine calls when there is news, and what is done then takes no longer than copying a
chunk. It is the story that ``story`` tells, by the same parts: head, sniffers, judge, addresses, checks, events and ends. What
is surprising is how little it may do: whatever is not exactly the common shape is left to the story, at the place where it was
noticed and with all bytes still there, so that nothing unusual is handled in two places.

Structure is kept by one task, ``keep``, for all connections of a group of listeners: while it runs they may live, and however
it ends, they end with it. So none outlives the nursery that it came by, as if each had a task there.
"""

from __future__ import annotations

__all__ = ["Express"]

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from sbxproxy.connection.context import Context
from sbxproxy.connection.passage import Passage
from sbxproxy.connection.places import Places
from sbxproxy.fronts.ask import StreamAsk
from sbxproxy.net.bare import BareStream
from sbxproxy.net.engine import Engine


class Express:
    """Carries connections of listeners with an explicit front that asks for no password, or of captured ones.

    Attributes:
        context: what the sandbox's connections share.
        engine: what waits and moves bytes.
        places: where requests have led lately.
    """

    __slots__ = ("_broke", "_done", "_empty", "_finishing", "_ordinary", "_passages", "_start", "context", "engine", "places")

    def __init__(
        self,
        context: Context,
        engine: Engine,
        *,
        start: Callable[[Callable[[], Awaitable[object]]], object],
        ordinary: Callable[[BareStream, float], Awaitable[object]],
        done: Callable[[BareStream], None],
        broke: Callable[[BaseException], None],
    ) -> None:
        """Take nothing yet; ``keep`` has to be running when it does.

        Args:
            context: what the sandbox's connections share; no sniffers or policy stages of third parties, and the dialler is ours.
            engine: it has to be running.
            start: runs a task among those of the connections.
            ordinary: serves a connection of which nothing was answered yet, accepted at a time by Trio's clock.
            done: closes a connection's stream and gives its slot back; called once for each.
            broke: tells of an exception that should not have been.
        """
        self.context = context
        self.engine = engine
        self.places = Places(context)
        self._start = start
        self._ordinary = ordinary
        self._done = done
        self._broke = broke
        self._passages: dict[Passage, None] = {}
        self._finishing = False
        self._empty = trio.Event()

    async def keep(self) -> None:
        """Let connections live until they have ended after ``finish``; cut them if this is cancelled before."""
        try:
            await self._empty.wait()
        finally:
            self._finishing = True
            for passage in tuple(self._passages):
                passage.end("cancelled")

    def admit(self, client: BareStream, ask: StreamAsk | None = None) -> bool:
        """Take over a connection that has just been accepted, with its slot; false if that can't be.

        Args:
            client: the program's side.
            ask: the wish, where the kernel knows it; else it is read.
        """
        if self._finishing or not self.engine.running:
            return False
        passage = Passage(self, client)
        self._passages[passage] = None
        passage.begin(None if ask is None else self.places.of(ask))
        return True

    def finish(self) -> None:
        """Take no more; what does not stand yet goes the ordinary way."""
        self._finishing = True
        for passage in tuple(self._passages):
            passage.hurry()
        self._look_whether_empty()

    def _look_whether_empty(self) -> None:
        if self._finishing and not self._passages:
            self._empty.set()

    # -- for its passages

    def leave_to_task(self, passage: Passage, run: Callable[[], Awaitable[object]]) -> None:
        """Carry *passage* in a task from now on."""

        async def carry() -> None:
            try:
                await run()
            except* Exception as group:  # noqa: BLE001 - nothing of one connection can end another's
                self._broke(group)
            finally:
                self._done(passage.client)

        self._start(carry)
        del self._passages[passage]
        self._look_whether_empty()

    def leave_to_front(self, passage: Passage) -> None:
        """Carry a connection in a task, from its beginning."""
        self.leave_to_task(passage, partial(self._ordinary, passage.client, passage.started))

    def carries(self, passage: Passage) -> bool:
        """Tell whether *passage* has neither ended nor been left to a task."""
        return passage in self._passages

    def over(self, passage: Passage) -> None:
        """See *passage* gone."""
        del self._passages[passage]
        self._done(passage.client)
        self._look_whether_empty()

    def broke(self, error: BaseException) -> None:
        """Tell of a defect."""
        self._broke(error)
