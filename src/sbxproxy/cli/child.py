"""The command that ``run`` runs: started, signalled, stopped and continued as if sbxproxy weren't there.

On a terminal it gets a process group of its own and the foreground, so that Ctrl-C and Ctrl-Z reach it and not us. When it stops, we
give the terminal back and stop ourselves, and when the shell continues us we continue it. In a pipeline it stays in our group, which
is also that of its neighbours: a pager next to it would lose the terminal otherwise.
"""

from __future__ import annotations

__all__ = ["NOT_EXECUTABLE", "NOT_FOUND", "run_child"]

import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import trio

NOT_EXECUTABLE = 126
NOT_FOUND = 127

_FROM_KEYBOARD = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH})
"""Signals that the terminal sends to the whole foreground group."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


async def run_child(
    argv: Sequence[str], environment: Mapping[str, str], *, on_hangup: Callable[[], Awaitable[object]] | None = None
) -> int:
    """Run *argv* to its end and return the exit code that a shell would show: 128 + N after signal N.

    Args:
        argv: the program and its arguments; no shell.
        environment: all of its variables.
        on_hangup: called for SIGHUP instead of forwarding it.
    """
    with trio.open_signal_receiver(signal.SIGCHLD, signal.SIGHUP, *_FORWARDED) as signals:
        terminal = _terminal()
        try:
            child = subprocess.Popen(  # noqa: ASYNC220, S603 - from this thread, and running it is the point
                argv, env=dict(environment), close_fds=True, process_group=0 if terminal is not None else None
            )
        except FileNotFoundError:
            _say(f"{argv[0]}: command not found")
            return NOT_FOUND
        except (PermissionError, OSError) as error:
            _say(f"{argv[0]}: {error.strerror}")
            return NOT_EXECUTABLE
        if terminal is not None:
            _give(terminal, child.pid)
        try:
            return await _attend(child, terminal, signals, on_hangup)
        finally:
            if child.returncode is None:  # we are being cancelled: the command must not outlive its firewall
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                    child.wait()
            if terminal is not None and _foreground(terminal) == child.pid:  # in the background it is the shell's
                _give(terminal, os.getpgrp())


async def _attend(
    child: subprocess.Popen[bytes],
    terminal: int | None,
    signals: AsyncIterator[int],
    on_hangup: Callable[[], Awaitable[object]] | None,
) -> int:
    code = _look(child, terminal)
    if code is not None:
        return code
    async for number in signals:
        if number == signal.SIGCHLD:
            code = _look(child, terminal)
            if code is not None:
                return code
        elif number == signal.SIGHUP and on_hangup is not None:
            await on_hangup()
        elif not (number in _FROM_KEYBOARD and terminal is None and _in_foreground()):
            # In our own process group the command has had from the terminal what we have had.
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)
    raise AssertionError("signals never end")


def _look(child: subprocess.Popen[bytes], terminal: int | None) -> int | None:
    """Take note of what became of the child; its exit code once it has ended."""
    while True:
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return None
        if os.WIFSTOPPED(status):
            _stop_with(child, terminal, os.WSTOPSIG(status))
            continue
        child.returncode = os.waitstatus_to_exitcode(status)
        return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _stop_with(child: subprocess.Popen[bytes], terminal: int | None, number: int) -> None:
    if terminal is None:
        return
    if number in {signal.SIGTTIN, signal.SIGTTOU} and _foreground(terminal) == os.getpgrp():
        _give(terminal, child.pid)  # it asked for the terminal before it had been given it
    else:
        if _foreground(terminal) == child.pid:
            _give(terminal, os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)  # the shell takes over here, and we go on when it continues us
        if _foreground(terminal) == os.getpgrp():  # by fg and not by bg
            _give(terminal, child.pid)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGCONT)


def _terminal() -> int | None:
    """Return standard input's descriptor if it is a terminal whose foreground is ours to give, and nobody else's: no pipeline."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        return None
    if any(_is_pipe(number) for number in (1, 2)):
        return None
    return descriptor if _foreground(descriptor) == os.getpgrp() else None


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:  # closed
        return False


def _foreground(descriptor: int) -> int | None:
    try:
        return os.tcgetpgrp(descriptor)
    except OSError:
        return None


def _in_foreground() -> bool:
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return _foreground(descriptor) == os.getpgrp()
    finally:
        os.close(descriptor)


def _give(terminal: int, group: int) -> None:
    """Make *group* the terminal's foreground; from the background that raises SIGTTOU, which is ignored meanwhile."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.signal(signal.SIGTTOU, before)


def _say(text: str) -> None:
    print(f"sbxproxy: {text}", file=sys.stderr)
