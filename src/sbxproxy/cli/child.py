"""The command that ``run`` runs: signalled, stopped and continued as if sbxproxy weren't there.

On a terminal it gets a process group of its own and the foreground, so that Ctrl-C and Ctrl-Z reach it and not us. When it stops, we
give the terminal back and stop ourselves, and when the shell continues us we continue it. In a pipeline it stays in our group, which
is also that of its neighbours: a pager next to it would lose the terminal otherwise.
"""

from __future__ import annotations

__all__ = ["Command", "attend", "receive_signals"]

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol, assert_never

import trio

from sbxproxy.capture.confined import Exited, Stopped
from sbxproxy.cli.terminal import FORWARDED, foreground, in_foreground, release

_FROM_KEYBOARD = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH})
"""Signals that the terminal sends to the whole foreground group."""


class Command(Protocol):
    """A running command, confined or not."""

    @property
    def pid(self) -> int:
        """Its process id, and with a terminal also its process group's, as seen from here."""
        ...

    async def next_change(self) -> Stopped | Exited:
        """Wait until it stops or ends."""
        ...

    def signal(self, number: int, /) -> None:
        """Send it a signal; nothing happens if it has ended."""
        ...

    def resume(self, *, foreground: bool) -> None:
        """Continue it after ``Stopped``, in its process group's foreground if so said."""
        ...


def receive_signals(on_hangup: Callable[[], Awaitable[object]] | None) -> AbstractContextManager[AsyncIterator[int]]:
    """Catch, for a block, what ``attend`` passes on. To be entered before the command is started, so that nothing is lost.

    Args:
        on_hangup: as for ``attend``.
    """
    return trio.open_signal_receiver(*FORWARDED, *(() if on_hangup is None else (signal.SIGHUP,)))


async def attend(
    command: Command,
    signals: AsyncIterator[int],
    *,
    terminal: int | None,
    on_hangup: Callable[[], Awaitable[object]] | None = None,
) -> int:
    """Stay with a command to its end.

    Args:
        command: which.
        signals: from ``receive_signals``.
        terminal: the terminal that is its own to use; see ``own_terminal``.
        on_hangup: called for SIGHUP instead of passing it on.

    Returns:
        Its exit code as a shell would show it: 128 + N after signal N.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, signals, command, terminal, on_hangup)
        while True:
            match await command.next_change():
                case Stopped(number):
                    _stop_with(command, terminal, number)
                case Exited(code):
                    nursery.cancel_scope.cancel(reason="the command has ended")
                    return code
                case unknown:
                    assert_never(unknown)


async def _pass_on(
    signals: AsyncIterator[int], command: Command, terminal: int | None, on_hangup: Callable[[], Awaitable[object]] | None
) -> None:
    async for number in signals:
        if number == signal.SIGHUP and on_hangup is not None:
            await on_hangup()
        elif not (number in _FROM_KEYBOARD and terminal is None and in_foreground()):
            # In our own process group the command has had from the terminal what we have had.
            command.signal(number)


def _stop_with(command: Command, terminal: int | None, number: int) -> None:
    """Stop as the command has, so that the shell takes over, and continue it when the shell continues us."""
    if terminal is None:
        return
    if number in {signal.SIGTTIN, signal.SIGTTOU} and foreground(terminal) == os.getpgrp():
        command.resume(foreground=True)  # it asked for the terminal before it had been given it
        return
    release(terminal, command.pid)
    os.kill(os.getpid(), signal.SIGSTOP)
    command.resume(foreground=foreground(terminal) == os.getpgrp())  # by fg and not by bg
