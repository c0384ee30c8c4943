"""The command of ``run`` on a terminal: job control as if sbxproxy weren't there."""

import os
import pty
import select
import shlex
import sys
import time

import pytest

from support.program import PROGRAM

GROUPS = "import os; print('own' if os.getpgrp() == os.getpid() else 'shared', os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp())"
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


def run_line(code):
    return shlex.join([*PROGRAM, "run", "--deny-all", "--", sys.executable, "-c", code])


class Terminal:
    """A shell on a pseudo-terminal, and what it has shown that nobody has asked for yet."""

    def __init__(self, *argv):
        self.shown = ""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ["PS1"] = "$ "
            os.execvp(argv[0], argv)

    def type(self, text):
        os.write(self.descriptor, text.encode())

    def expect(self, text):
        deadline = time.monotonic() + 30
        while text not in self.shown:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.shown!r}"
            try:
                data = os.read(self.descriptor, 4096)
            except OSError:
                data = b""
            assert data, f"ended before {text!r}: {self.shown!r}"
            self.shown += data.decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def foreground(self):
        """The process group that the keyboard belongs to."""
        return os.tcgetpgrp(self.descriptor)

    def wait_for_foreground(self, group):
        deadline = time.monotonic() + 30
        while self.foreground() != group:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self):
        os.close(self.descriptor)
        os.waitpid(self.pid, 0)


@pytest.fixture
def bash():
    terminal = Terminal("bash", "--norc", "--noprofile", "-i")
    terminal.expect("$ ")
    yield terminal
    terminal.type("\nkill -KILL %1 2>/dev/null; exit\n")
    terminal.close()


def test_alone_on_a_terminal_the_command_has_the_foreground(bash):
    bash.type(run_line(GROUPS) + "; echo code $?\n")
    bash.expect("own True")
    bash.expect("code 0")


def test_in_a_pipeline_the_command_shares_the_group_of_its_neighbours(bash):
    """A pager beside it reads the keyboard from the terminal; in the background it would be stopped."""
    pager = shlex.join(
        [sys.executable, "-c", "import sys, os; sys.stdin.read(); print('pager', os.tcgetpgrp(1) == os.getpgrp())"]
    )
    bash.type(f"{run_line(GROUPS)} | tee /dev/tty | {pager}\n")
    bash.expect("shared True")
    bash.expect("pager True")


def test_a_stopped_command_stops_the_job_and_fg_continues_it(bash):
    bash.type(run_line(SLEEPER) + "; echo code $?\n")
    bash.expect("up\r\n")
    theirs = bash.foreground()
    bash.type("\x1a")
    bash.expect("Stopped")
    assert bash.foreground() != theirs
    bash.type("fg\n")
    bash.wait_for_foreground(theirs)
    bash.type("\x03")
    bash.type("echo after $?\n")
    bash.expect("after 130")


def test_a_job_continued_in_the_background_leaves_the_terminal_to_the_shell(bash):
    bash.type(run_line("import time; print('up', flush=True); time.sleep(4)") + "\n")
    bash.expect("up\r\n")
    bash.type("\x1a")
    bash.expect("Stopped")
    bash.type("bg\n")
    time.sleep(0.5)
    bash.type("echo still $((40+2))\n")
    bash.expect("still 42")
    bash.type("wait; echo waited $((1+1))\n")
    bash.expect("waited 2")
    bash.type("echo alive $((2+3))\n")
    bash.expect("alive 5")
