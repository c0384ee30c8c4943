"""The command of ``run --capture=env``: an ordinary child, which nothing holds back but its own goodwill."""

from __future__ import annotations

__all__ = ["Unconfined"]

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from sbxproxy.capture.confined import Exited, Stopped
from sbxproxy.cli.terminal import give, release

NOT_EXECUTABLE = 126
NOT_FOUND = 127


class Unconfined:
    """A child process; see ``Command``."""

    def __init__(self, child: subprocess.Popen[bytes], terminal: int | None, ended: AsyncIterator[int]) -> None:
        """Made by ``open``."""
        self._child = child
        self._terminal = terminal
        self._ended = ended

    @classmethod
    @asynccontextmanager
    async def open(
        cls, argv: Sequence[str], environment: Mapping[str, str], terminal: int | None
    ) -> AsyncIterator[Unconfined | int]:
        """Start *argv*; at the end of the block it is killed if it still runs, and the terminal taken back.

        Yields:
            The command, or the exit code that a shell would show because it can't be executed.
        """
        with trio.open_signal_receiver(signal.SIGCHLD) as ended:
            try:
                child = subprocess.Popen(  # noqa: ASYNC220, S603 - from this thread, and running it is the point
                    argv, env=dict(environment), close_fds=True, process_group=0 if terminal is not None else None
                )
            except FileNotFoundError:
                _say(f"{argv[0]}: command not found")
                yield NOT_FOUND
                return
            except OSError as error:
                _say(f"{argv[0]}: {error.strerror}")
                yield NOT_EXECUTABLE
                return
            if terminal is not None:
                give(terminal, child.pid)
            try:
                yield cls(child, terminal, ended)
            finally:
                if child.returncode is None:  # we are being cancelled: the command must not outlive its firewall
                    with suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)
                        child.wait()
                if terminal is not None:
                    release(terminal, child.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def next_change(self) -> Stopped | Exited:
        """Wait until it stops or ends."""
        while True:
            pid, status = os.waitpid(self._child.pid, os.WNOHANG | os.WUNTRACED)  # noqa: ASYNC222 - it doesn't wait
            if pid:
                break
            await anext(self._ended)
        if os.WIFSTOPPED(status):
            return Stopped(os.WSTOPSIG(status))
        code = self._child.returncode = os.waitstatus_to_exitcode(status)
        return Exited(code if code >= 0 else 128 - code)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    def resume(self, *, foreground: bool) -> None:
        """Continue its process group."""
        if self._terminal is not None and foreground:
            give(self._terminal, self._child.pid)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGCONT)


def _say(text: str) -> None:
    print(f"sbxproxy: {text}", file=sys.stderr)
