"""Kernel pipes for ``splice``, shared by all relays of one event loop and few by intent.

A pipe costs two descriptors and up to 1 MiB of kernel memory, so none belongs to a relay: one is borrowed
while bytes are on their way through it and given back empty. A pipe that is given back with bytes in it is
closed, since what one connection left there must never come out into another.
"""

from __future__ import annotations

__all__ = ["Pipe", "PipePool", "pipe_pool"]

import fcntl
import os
from contextlib import suppress

import trio

from sbxproxy.net.descriptors import descriptor_limit

PIPE_SIZE = 1024 * 1024
"""Wanted capacity in bytes: Linux's default maximum for the unprivileged (``/proc/sys/fs/pipe-max-size``)."""

LEAST_SIZE = 64 * 1024
"""Linux's default capacity. A user over the soft limit of pipe pages gets pipes of a page or two; those cost
more than they save."""

MOST_PIPES = 64
"""Pipes in existence at once: up to 64 MiB and 128 descriptors, with sinks that all stopped reading."""

MOST_IDLE = 16


class Pipe:
    """One pipe; ``held`` is what was put in and not taken out, kept by whoever moves the bytes."""

    __slots__ = ("held", "read", "size", "write")

    def __init__(self) -> None:
        """Make a non-blocking pipe as large as allowed.

        Raises:
            OSError: no descriptors are left.
        """
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.size: int = fcntl.fcntl(self.write, fcntl.F_GETPIPE_SZ)
        self.held = 0

    def close(self) -> None:
        """Give both descriptors and what is inside back to the kernel."""
        os.close(self.read)
        os.close(self.write)


class PipePool:
    """At most *most* pipes, made on demand; idle ones are closed when the last user leaves."""

    __slots__ = ("_idle", "_most", "_users", "made")

    def __init__(self, most: int) -> None:
        """Make an empty pool."""
        self._most = most
        self._idle: list[Pipe] = []
        self._users = 0
        self.made = 0  # pipes in existence, idle or lent

    def join(self) -> None:
        """Announce a user; each calls ``leave`` once."""
        self._users += 1

    def leave(self) -> None:
        """Say that a user has gone, with nothing borrowed."""
        self._users -= 1
        if not self._users:
            while self._idle:
                self._drop(self._idle.pop())

    def take(self) -> Pipe | None:
        """Borrow an empty pipe; ``None`` if there are enough in use or the kernel gives none worth having."""
        if self._idle:
            return self._idle.pop()
        if self.made >= self._most:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.size < LEAST_SIZE:
            pipe.close()
            return None
        self.made += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Give a borrowed pipe back; it is closed if anything is in it."""
        if pipe.held or len(self._idle) >= MOST_IDLE:
            self._drop(pipe)
        else:
            self._idle.append(pipe)

    def _drop(self, pipe: Pipe) -> None:
        self.made -= 1
        pipe.close()


_pool: trio.lowlevel.RunVar[PipePool] = trio.lowlevel.RunVar("sbxproxy pipes")


def pipe_pool() -> PipePool:
    """Return the pool of the running event loop."""
    try:
        return _pool.get()
    except LookupError:
        # A small descriptor limit is for connections; an eighth of it may go into pipes.
        pool = PipePool(max(1, min(MOST_PIPES, descriptor_limit() // 16)))
        _pool.set(pool)
        return pool
