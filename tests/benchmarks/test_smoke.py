"""The benchmarks run, whatever their figures: tiny runs against real programs, and one that is broken off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.skipif(
        not shutil.which("cc") or not Path("/usr/include/openssl/ssl.h").exists(), reason="needs cc and libssl-dev"
    ),
    pytest.mark.real,
]


def start(*arguments, mark=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "BENCH_MARK": mark}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
    chosen = ["--only", "W1b c32,W2 down s1,W3 c32,W3b new", "--subjects", "direct,sbxproxy,naive"]
    process = start("run", "--quick", "--out", str(tmp_path), "--name", "x", *chosen, mark=mark)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    rows = {(row["workload"], row["subject"]): row for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    for workload in ("W1b c32", "W2 down s1", "W3 c32", "W3b new"):
        assert rows[workload, "sbxproxy"]["samples"][0] > 0, (workload, err)
        assert rows[workload, "sbxproxy"]["failures"] == 0
    assert rows["W1b c32", "naive"]["samples"][0] > 0
    assert rows["W3 c32", "naive"]["missing"] == "doesn't terminate TLS"
    assert (tmp_path / "x.md").read_text().strip() == out.strip()
    assert not marked(mark)


def test_what_starts_its_own_processes_has_figures_too(tmp_path):
    """dnsmasq may be missing: then it is named."""
    mark = uuid.uuid4().hex
    chosen = ["--only", "fair bulk,idle 1,000,start,policy decision 10,update,dns,slots flow", "--subjects", "sbxproxy"]
    process = start("run", "--quick", "--out", str(tmp_path), "--name", "x", *chosen, mark=mark)
    _, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    rows = {(row["workload"], row["subject"]): row for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    slots = {("slots flow", slot) for slot in ("nothing", "sniffer", "policy", "observer", "handler")}
    ours = {
        (work, "sbxproxy") for work in ("fair bulk", "idle 1,000", "start", "policy decision 10", "update hold", "dns cached")
    }
    for key in slots | ours:
        assert rows[key]["samples"], (key, rows[key])
        if key[0] != "dns cached":  # on a busy machine a datagram may be late
            assert not rows[key]["failures"], (key, rows[key])
    assert rows["dns cached", "dnsmasq"]["samples"] or "dnsmasq" in rows["dns cached", "dnsmasq"]["missing"]
    assert not marked(mark)


def test_what_changed_since_an_older_run_is_told(tmp_path):
    chosen = ["run", "--quick", "--only", "W1b c32", "--subjects", "direct,naive", "--out", str(tmp_path), "--name", "old"]
    first = start(*chosen)
    first.communicate(timeout=60)
    assert first.returncode == 0
    process = start(*chosen[:-4], "--no-save", "--compare", str(tmp_path / "old.json"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "| W1b c32 | naive |" in out
    assert " % |" in out


def test_an_interrupted_run_leaves_nothing_running_and_writes_nothing(tmp_path):
    mark = uuid.uuid4().hex
    run = ["--only", "W1b c32", "--subjects", "sbxproxy", "--seconds", "30", "--out", str(tmp_path / "out")]
    process = start("run", *run, mark=mark)
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
    process = start("policy", "--quick", "--out", str(tmp_path))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    figures = json.loads((tmp_path / "policy.json").read_text())
    assert [one["size"] for one in figures] == [10, 1000]
    assert all(one["load_ms"] > 0 and one["allowed_us"] > 0 for one in figures)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--rounds", "0"], "must be positive"),
        (["--only", "W9"], "no workload 'W9'"),
        (["--subjects", "apache"], "no subject 'apache'"),
    ],
)
def test_impossible_plans_are_refused(wrong, told):
    process = start("run", *wrong)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told in err
