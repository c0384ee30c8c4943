"""One connection of one sandbox, from accept to close."""

from __future__ import annotations

__all__ = ["CUT_PATIENCE", "Flow", "all_finished", "number_from"]

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from sbxproxy.address import IPAddress
from sbxproxy.policy.decision import Decision, Facts

CUT_PATIENCE = 1.0
"""Seconds to wait for flows that were cut to be closed on both sides."""

_ids = itertools.count(1)


def number_from(first: int) -> None:
    """Give the flows of this process ids from *first* on, so that those of several processes can be told apart."""
    global _ids  # noqa: PLW0603 - it belongs to the process, as the ids do
    _ids = itertools.count(first)


@dataclass(slots=True, eq=False, kw_only=True)
class Flow:
    """What is known of one connection, filled in as it goes; its sandbox's table of live flows holds it until it ends.

    Plugins read it; only the core writes it.

    Attributes:
        sandbox: the sandbox's name.
        front: how the client named its target: ``connect``, ``socks5``, ``http``, ``proxy-protocol``, ``stream``.
        facts: what it was, or will be, judged on.
        decision: what was decided last; ``None`` until then.
        address: the address connected to; ``None`` until then.
        bytes_up: bytes relayed from the client, not counting what the front read for itself.
        bytes_down: bytes relayed to the client.
        requests: requests on an inspected connection.
        ended: why it ended (``eof``, ``denied``, ``idle``, ``policy-changed``, …); empty while it lives.
        started: ``trio.current_time()`` at accept.
        id: unique in this process, ascending.
    """

    sandbox: str
    front: str
    facts: Facts
    decision: Decision | None = None
    address: IPAddress | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    requests: int = 0
    ended: str = ""
    started: float = field(default_factory=trio.current_time)
    id: int = field(default_factory=lambda: next(_ids))
    _finished: trio.Event | None = field(default=None, init=False, repr=False)
    _over: bool = field(default=False, init=False, repr=False)
    _scope: trio.CancelScope | None = field(default=None, init=False, repr=False)
    _stop: Callable[[], None] | None = field(default=None, init=False, repr=False)

    @property
    def finished(self) -> trio.Event:
        """Set once everything of the flow is closed. It is made when somebody asks for it: hardly anybody does."""
        if self._finished is None:
            self._finished = trio.Event()
            if self._over:
                self._finished.set()
        return self._finished

    def finish(self) -> None:
        """Say that everything of the flow is closed; for the core alone."""
        self._over = True
        if self._finished is not None:
            self._finished.set()

    def cut(self, why: str) -> None:
        """End the flow now; the first reason given stands."""
        if not self.ended:
            self.ended = why
        if self._stop is not None:
            self._stop()
        else:
            self.scope.cancel(reason=why)

    # -- for the core alone

    @property
    def scope(self) -> trio.CancelScope:
        """What the task that carries the flow runs in; cancelled by ``cut``."""
        if self._scope is None:
            self._scope = trio.CancelScope()
        return self._scope

    def stop_by(self, stop: Callable[[], None] | None) -> None:
        """Let ``cut`` call *stop* while no task carries the flow, or one that only waits; ``None`` for a task in ``scope`` again."""
        self._stop = stop


async def all_finished(flows: Iterable[Flow], patience: float) -> None:
    """Wait until everything of *flows* is closed, at most *patience* seconds."""
    with trio.move_on_after(patience):
        for flow in flows:
            await flow.finished.wait()
