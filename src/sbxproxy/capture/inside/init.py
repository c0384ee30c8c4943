"""The first process of the sandbox: it starts the command, collects what ends, and passes on what the proxy says.

A process group may reach out of the process namespace: ``kill(0)`` signals all members, seen or not. So the command gets one of its own,
or, where that would take it off its neighbours in a terminal's pipeline, may not signal it.

When it ends, the kernel kills everything that is left in the process namespace. Signals from inside reach it only where it has a
handler, which is for SIGCHLD alone.
"""

from __future__ import annotations

__all__ = ["exit_code", "run_command"]

import _signal as signal  # type: ignore[import-not-found]  # without the enumerations, whose import is slow
import errno
import os
import select
import sys
import warnings  # noqa: F401 - os.execvpe imports it, when the command's user may be kept from reading it

from sbxproxy.capture.inside.control import FAILURE, Control
from sbxproxy.capture.inside.seccomp import group_filter
from sbxproxy.capture.inside.steps import passing_over, step
from sbxproxy.capture.inside.syscalls import install_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

NOT_EXECUTABLE = 126
NOT_FOUND = 127
KILLED: int = 128 + signal.SIGKILL

_TERMINAL = 0


class Command:
    """What to execute.

    Attributes:
        argv: the program and its arguments.
        environment: all of its variables.
        foreground: whether it gets a process group of its own and the terminal that is its standard input.
        ignored: signals that it ignores from the start, as the proxy was told to.
        rules: the filter for its system calls.
    """

    __slots__ = ("argv", "environment", "foreground", "ignored", "rules")

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], *, foreground: bool, ignored: frozenset[int], rules: bytes
    ) -> None:
        self.argv = argv
        self.environment = environment
        self.foreground = foreground
        self.ignored = ignored
        self.rules = rules


def exit_code(status: int) -> int:
    """Return what a shell would show for a status of wait(2)."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def run_command(control: Control, command: Command) -> int:
    """Run *command* to its end and return its exit code as a shell would show it."""
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    child = os.fork()
    if child == 0:
        _become(control, command)
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if woken in ready:
            with passing_over(BlockingIOError):
                os.read(woken, 4096)
            code = _collect(control, child)
            if code is not None:
                return code
        if control.fileno() in ready:
            message = control.receive()
            if not message:  # the proxy is gone, and with it all that held the command back
                return KILLED
            _obey(message, child, foreground=command.foreground)


def _collect(control: Control, child: int) -> int | None:
    """Take note of all that ended or stopped; the command's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if os.WIFSTOPPED(status):
            if pid == child:
                control.stopped(os.WSTOPSIG(status))
        elif pid == child:
            code = exit_code(status)


def _obey(message: bytes, child: int, *, foreground: bool) -> None:
    verb, rest = message[:1], message[1:]
    with passing_over(ProcessLookupError):
        if verb == b"K":
            os.kill(child, int(rest))
        elif verb in {b"C", b"B"}:
            if os.getpgid(child) == child:
                if foreground and verb == b"C":
                    _take_terminal(child)
                os.killpg(child, signal.SIGCONT)
            else:
                os.kill(child, signal.SIGCONT)


def _has_no_terminal() -> bool:
    """Tell whether a process group of its own costs the command nothing, since there is no terminal whose foreground it could miss."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def _take_terminal(group: int) -> None:
    """Make *group* the foreground; from the background that raises SIGTTOU, which is ignored meanwhile."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with passing_over(OSError):
        os.tcsetpgrp(_TERMINAL, group)
    signal.signal(signal.SIGTTOU, before)


def _become(control: Control, command: Command) -> NoReturn:
    """Execute the command in this process."""
    code = FAILURE
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in command.ignored else signal.SIG_DFL)
        if command.foreground or _has_no_terminal():
            with step("process group"):
                os.setpgid(0, 0)
            group_is_shared = False
            if command.foreground:
                _take_terminal(os.getpid())
        else:
            group_is_shared = True
        with step("system call filter"):
            install_filter(command.rules)
            if group_is_shared:
                install_filter(group_filter(os.uname().machine))
        control.starting()
        code = _execute(command)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the proxy must hear of it
        control.failed(error)
    finally:
        os._exit(code)


def _execute(command: Command) -> int:
    program = command.argv[0]
    try:
        os.execvpe(program, list(command.argv), dict(command.environment))  # noqa: S606 - running it is the point
    except (FileNotFoundError, NotADirectoryError):
        _say(f"{program}: command not found")
        return NOT_FOUND
    except OSError as error:
        if isinstance(error, PermissionError) and not _exists(program, command.environment):
            _say(f"{program}: command not found")  # a directory that it may be in can't be searched
            return NOT_FOUND
        _say(f"{program}: {error.strerror}")
        return NOT_EXECUTABLE
    except ValueError as error:  # a NUL
        _say(f"the command can't be executed: {error}")
        return NOT_EXECUTABLE


def _exists(program: str, environment: Mapping[str, str]) -> bool:
    if "/" in program:
        return True
    return any(os.path.lexists(os.path.join(place, program)) for place in os.get_exec_path(environment))


def _say(text: str) -> None:
    with passing_over(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"sbxproxy: {text}\n".encode(errors="backslashreplace"))
