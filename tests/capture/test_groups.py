"""A process group may have members outside of the sandbox; a command must not signal them, for kill(2) does not ask whether it sees them."""

import os
import pty
import subprocess
import sys

import pytest

from support.captured import MODES, as_user, environment

# The outer process is what a user's script is to `sbxproxy run`: of the same user, and in the same process group.
OUTER = """
import os, signal, subprocess, sys
received = []
for number in (signal.SIGUSR1, signal.SIGCHLD):
    signal.signal(number, lambda number, _frame: received.append(number))
code = (
    "import os, signal\\n"
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\\n"
    "for what in (lambda: os.kill(0, signal.SIGUSR1), lambda: os.killpg(0, signal.SIGUSR1), lambda: os.kill(-1, signal.SIGUSR1),\\n"
    "             lambda: os.setpriority(os.PRIO_PGRP, 0, 19)):\\n"
    "    try:\\n        what()\\n        print('done', end=' ')\\n"
    "    except OSError as error:\\n        print(type(error).__name__, end=' ')\\n"
)
run = [sys.executable, "-c", "from sbxproxy.cli import main; main()", "run", "--quiet", "--deny-all", "--", sys.executable, "-c", code]
done = subprocess.run(run, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
print(done.stdout, done.returncode, received.count(signal.SIGUSR1), os.getpriority(os.PRIO_PROCESS, 0))
"""


@pytest.fixture(params=MODES)
def outer(request):
    return [*as_user(request.param), "-c", OUTER]


def test_without_a_terminal_the_group_is_its_own(outer):
    """So that scripts with ``kill 0`` go on working, among themselves."""
    done = subprocess.run(outer, env=environment(), cwd="/", capture_output=True, text=True, start_new_session=True, timeout=100)
    assert done.stdout.split() == ["done"] * 2 + ["ProcessLookupError", "done", "0", "0", "0"], done.stderr


def test_in_a_pipeline_on_a_terminal_the_group_can_not_be_signalled(outer):
    """There it is shared, since a pager beside it would lose the keyboard otherwise."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir("/")
        os.execve(outer[0], outer, environment())
    shown = b""
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.waitpid(pid, 0)
    os.close(terminal)
    refused = ["PermissionError"] * 2
    assert shown.decode().split() == [*refused, "ProcessLookupError", "PermissionError", "0", "0", "0"]


def test_signals_that_are_meant_for_both_still_reach_the_command():
    """A supervisor signals the group that it started."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", "from sbxproxy.cli import main; main()", "run", "--deny-all", "--", sys.executable, "-c", code],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stdout.readline() == "up\n"
    os.killpg(child.pid, 2)
    assert child.wait(30) == 9
    child.stdout.close()
