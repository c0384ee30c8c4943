"""Serves listeners: each connection has a task, or is taken over by whoever carries it without, and a slot for as long as it is open.

What is surprising is that Trio's ``serve_listeners`` is not used: it closes each stream once more, by force, which costs
more than accepting it.
"""

from __future__ import annotations

__all__ = ["serve_bounded"]

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from sbxproxy.net.listen import BoundedListener, Slots


async def serve_bounded(
    handler: Callable[[trio.abc.Stream], Awaitable[object]],
    listeners: Sequence[trio.abc.Listener[Any]],
    slots: Slots,
    *,
    flows: trio.Nursery,
    admit: Callable[[trio.abc.Stream], bool] = lambda _stream: False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept on *listeners* while slots are free and run ``handler(stream)`` for each connection, until cancelled.

    The listeners are closed then; connections go on. A stream is closed when its handler is done with it, however that
    ends, and its slot given back. What a handler raises goes to *flows*.

    Args:
        handler: carries one connection.
        listeners: open ones; taken over.
        slots: bound the connections of all of them together.
        flows: the handlers run in it; it has to outlive this call.
        admit: takes a connection over, with its slot, and says so; else the handler carries it.
        task_status: started once connections are accepted.

    Raises:
        OSError: from a listener; running out of descriptors or memory is waited out.
    """
    handle = slots.bound(handler)

    async def accept(listener: BoundedListener) -> None:
        async with listener:
            while True:
                stream = await listener.accept()
                if not admit(stream):
                    flows.start_soon(handle, stream)

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(accept, BoundedListener(listener, slots))
        task_status.started()
