"""Modules that serving takes and starting doesn't: imported in a thread, as soon as there is time for it or once they are needed.

In the event loop's own thread an import of a tenth of a second would hold up every connection. What is imported this way is
imported again where it is used, in a function, and found there without any waiting.
"""

from __future__ import annotations

__all__ = ["Loading", "collect_seldom"]

import gc
import sys
from importlib import import_module

import trio


class Loading:
    """Imports modules once, in a thread. For one event loop."""

    __slots__ = ("_done", "_lock", "_modules")

    def __init__(self, *modules: str) -> None:
        """Take their names; nothing is imported yet."""
        self._modules = modules
        self._done = False
        self._lock = trio.Lock()

    async def finish(self) -> None:
        """Import what isn't there yet; returns at once when all is. Waits for others who are at it."""
        if not self._done:
            async with self._lock:
                await self._finish()

    async def _finish(self) -> None:
        if not self._done and not all(map(_is_there, self._modules)):
            await trio.to_thread.run_sync(self._import)
        self._done = True

    def _import(self) -> None:
        for name in self._modules:
            trio.from_thread.check_cancelled()  # who ends meanwhile waits for one module, not for all
            import_module(name)


def collect_seldom() -> None:
    """Let the garbage collector look for cycles, but not often; for processes of our own, once what they need first is loaded."""
    gc.freeze()  # what was imported stays; from here on there may be garbage
    # A flow leaves hardly any cycles; looking for them after every few flows takes a twentieth of the time.
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


def _is_there(name: str) -> bool:
    module = sys.modules.get(name)
    # A module is listed before it has run; the import system notes in its spec that another thread is still at it.
    return module is not None and not getattr(module.__spec__, "_initializing", False)
