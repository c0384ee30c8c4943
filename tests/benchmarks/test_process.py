"""What the benchmarks start is measured with its children, and ends with them, wherever they have gone."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

import pytest
from benchmarks.process import cpu_seconds, memory_bytes, spawn, tree

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

CHILD = "import os, sys, time; {extra}print(os.getpid(), flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}.format(extra=sys.argv[1])], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
time.sleep(60)
"""


def start(stack, tmp_path, extra=""):
    process = spawn(stack, [sys.executable, "-c", PARENT, extra], log=tmp_path / "log", cpu=None)
    return process, int(process.stdout.readline())


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("extra", ["", "os.setsid(); ", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "])
def test_children_end_with_their_parent(tmp_path, extra):
    """One of the session, one that has left it, one that doesn't listen."""
    with ExitStack() as stack:
        process, child = start(stack, tmp_path, extra)
        assert set(tree(process.pid)) == {process.pid, child}
        assert alive(child)
    assert not alive(child)
    assert not alive(process.pid)


def test_processor_time_and_memory_are_those_of_the_tree(tmp_path):
    with ExitStack() as stack:
        busy, _ = start(stack, tmp_path, "deadline = time.process_time() + 0.3\nwhile time.process_time() < deadline: pass\n")
        assert cpu_seconds(busy) >= 0.3
        alone = memory_bytes(busy)
        assert alone > 8 << 20


def test_a_process_knows_when_it_was_started(tmp_path):
    with ExitStack() as stack:
        before = time.perf_counter()
        process, _ = start(stack, tmp_path)
        assert before <= process.born <= time.perf_counter()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="has one processor")
def test_a_process_stays_where_it_is_put(tmp_path):
    with ExitStack() as stack:
        cpu = max(os.sched_getaffinity(0))
        process = spawn(stack, ["sleep", "30"], log=tmp_path / "log", cpu=cpu)
        deadline = time.monotonic() + 30
        while os.sched_getaffinity(process.pid) != {cpu}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
