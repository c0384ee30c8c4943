"""The soak finds what it is for, and passes on what works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.soak.main import SLACK, State, faults
from benchmarks.soak.visits import Outcome

ROOT = Path(__file__).parents[2]
REST = {"memory": 60 << 20, "descriptors": 16, "tasks": 14, "flows": 0}
BUSY = ("relayed", "inspected", "dns")


def soaked(*, growth: int = 0) -> State:
    """A soak in which everything went well, but that memory may have grown."""
    state = State()
    for name in BUSY:
        state.counts[name, Outcome.DONE] = 10
    state.samples = [{"at": float(at), **REST, "memory": (60 << 20) + growth * at // 100} for at in range(101)]
    return state


def test_a_good_soak_has_no_faults():
    assert not faults(soaked(), REST, REST, "")
    assert not faults(soaked(growth=SLACK), REST, REST, "")


@pytest.mark.parametrize(
    ("last", "stderr", "growth", "word"),
    [
        ({**REST, "descriptors": 17}, "", 0, "17 descriptors"),
        ({**REST, "tasks": 15}, "", 0, "15 tasks"),
        ({**REST, "flows": 1}, "", 0, "1 flows"),
        (REST, "Traceback\nValueError: x\n", 0, "ValueError"),
        (REST, "", 40 << 20, "memory grew"),
    ],
)
def test_what_grew_or_complained_is_a_fault(last, stderr, growth, word):
    (fault,) = faults(soaked(growth=growth), REST, last, stderr)
    assert word in fault


def test_what_got_through_or_never_happened_is_a_fault():
    state = soaked()
    state.wrong += ["relayed got through under deny-all"] * 2
    del state.counts["dns", Outcome.DONE]
    assert faults(state, REST, REST, "") == ["relayed got through under deny-all (2 times)", "nothing came of dns"]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", "soak", *options]


def test_a_short_soak_passes():
    ran = subprocess.run(command("--minutes", "0.1"), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "flat, silent, and nothing got through" in ran.stdout


def test_an_interrupt_ends_it_and_all_it_started():
    with subprocess.Popen(
        command("--minutes", "5"), cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert "seed" in process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
        deadline = time.monotonic() + 60
        while not (started := _descendants(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]
