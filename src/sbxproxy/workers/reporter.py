"""A worker's events on their way to the supervisor, where the observers are: in batches, and never holding up a flow."""

from __future__ import annotations

__all__ = ["Reporter"]

from collections import deque

import trio

from sbxproxy.events import Event, PolicyChanged, as_dict
from sbxproxy.workers.channel import Channel

BATCH = 256
"""Events in one message."""

WAITING = 10_000
"""Events that may wait for the supervisor; as many as ``JsonLines`` keeps."""

REST = 0.02
"""Seconds between two batches, so that a busy worker sends a message for many events."""


class Reporter:
    """An observer; ``run`` must be running."""

    __slots__ = ("_channel", "_lost", "_waiting", "_wake")

    def __init__(self, channel: Channel) -> None:
        """Report by *channel*."""
        self._channel = channel
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._wake = trio.Event()

    def __call__(self, event: Event) -> None:
        """Take an event; with too many waiting it is lost, and counted."""
        if isinstance(event, PolicyChanged):
            return  # the supervisor tells it, once, when all workers have
        if len(self._waiting) >= WAITING:
            self._lost += 1
            return
        self._waiting.append(event)
        self._wake.set()

    def flush(self) -> None:
        """Post all that waits: what happened before an answer is to be there before it."""
        while self._waiting or self._lost:
            self._post()

    def _post(self) -> None:
        waiting = self._waiting
        batch = [as_dict(waiting.popleft()) for _ in range(min(BATCH, len(waiting)))]
        lost, self._lost = self._lost, 0
        self._channel.post({"do": "events", "events": batch, "lost": lost})

    async def run(self) -> None:
        """Report until cancelled; while the supervisor reads nothing, nothing is posted."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting or self._lost:
                await self._channel.written()
                self._post()
                await trio.sleep(REST)
