"""The terminal, if there is one, and who has it."""

from __future__ import annotations

__all__ = ["FORWARDED", "foreground", "give", "in_foreground", "own_terminal", "release"]

import os
import signal
import stat
import sys
from contextlib import suppress

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
"""Signals that the command gets from us."""


def own_terminal() -> int | None:
    """Return standard input's descriptor if it is a terminal whose foreground is ours to give, and nobody else's: no pipeline."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        return None
    if any(_is_pipe(number) for number in (1, 2)):
        return None
    return descriptor if foreground(descriptor) == os.getpgrp() else None


def release(terminal: int, group: int) -> None:
    """Take the terminal back from *group*, if it still has it; in the background it is the shell's."""
    if foreground(terminal) == group:
        give(terminal, os.getpgrp())


def give(terminal: int, group: int) -> None:
    """Make *group* the terminal's foreground; from the background that raises SIGTTOU, which is ignored meanwhile."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.signal(signal.SIGTTOU, before)


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:  # closed
        return False


def foreground(descriptor: int) -> int | None:
    """Return the process group that a terminal's foreground is; ``None`` if that is no terminal."""
    try:
        return os.tcgetpgrp(descriptor)
    except OSError:
        return None


def in_foreground() -> bool:
    """Tell whether our process group is the foreground of our terminal."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return foreground(descriptor) == os.getpgrp()
    finally:
        os.close(descriptor)
