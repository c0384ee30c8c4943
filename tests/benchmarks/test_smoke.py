"""The benchmarks run, whatever their figures: a tiny run against a real ``sbxproxy serve``, and one that is broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"), pytest.mark.real]


def start(*arguments, mark=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "BENCH_MARK": mark}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def marked(mark):
    """The processes that have inherited *mark*: everything that the run has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"BENCH_MARK={mark}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_quick_run_has_figures_for_each_subject_and_leaves_nothing_running(tmp_path):
    mark = uuid.uuid4().hex
    subjects = ["--only", "direct", "--only", "sbxproxy", "--only", "naive Trio"]
    process = start("benchmarks", "--quick", "--out", str(tmp_path), *subjects, mark=mark)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "| sbxproxy |" in out
    tables = json.loads((tmp_path / "connect-relay.json").read_text())["tables"]
    assert [table["workload"] for table in tables] == ["connect", "relay"]
    for table in tables:
        assert [row["subject"] for row in table["rows"]] == ["direct", "sbxproxy", "naive Trio"]
        for row in table["rows"]:
            assert row["samples"][0] > 0, (row, err)
            assert row["failures"] == 0, row
    assert (tmp_path / "connect-relay.md").read_text().strip() == out.strip()
    assert not marked(mark)


def test_an_interrupted_run_leaves_nothing_running_and_writes_nothing(tmp_path):
    mark = uuid.uuid4().hex
    process = start("benchmarks", "connect", "--seconds", "30", "--out", str(tmp_path / "out"), "--only", "sbxproxy", mark=mark)
    deadline = time.monotonic() + 60
    while len(marked(mark)) < 4:  # itself, the origin, sbxproxy, the load
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not marked(mark)
    assert not (tmp_path / "out").exists()


def test_the_policy_benchmark_runs(tmp_path):
    process = start("benchmarks.policy", "--quick", "--out", str(tmp_path))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    figures = json.loads((tmp_path / "policy.json").read_text())
    assert [one["size"] for one in figures] == [10, 1000]
    assert all(one["load_ms"] > 0 and one["allowed_us"] > 0 for one in figures)


def test_impossible_plans_are_refused():
    process = start("benchmarks", "--rounds", "0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "must be positive" in err
