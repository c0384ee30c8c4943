"""What a run found goes to JSON and back, is judged against the targets, and is compared with older runs."""

from __future__ import annotations

import pytest
from benchmarks.figures import Figures, Row, Sample
from benchmarks.report import comparison, markdown
from benchmarks.targets import TARGETS, Verdict, judge_targets
from benchmarks.workloads import WORKLOADS

from benchmarks import document

MACHINE = {"time": "now", "revision": "abc", "processor": "x", "cpus": 2, "kernel": "6", "python": "3", "load average": [0.0]}


def figures(**medians):
    """Figures of W1b c32 and of start: one sample each, by subject with underscores for dots."""
    rows = []
    for subject, value in medians.items():
        row = Row("W1b c32", subject.replace("_", "."), "tunnels/s")
        row.add(Sample(value=value, cpu=100.0, p50=1000.0, p99=2000.0))
        rows.append(row)
    start = Row("start", "sbxproxy", "ms", less_is_better=True)
    start.add(Sample(value=300.0))
    return Figures(MACHINE, {"sbxproxy": "1"}, "bench", {"rounds": 1, "seconds": 1.0}, [*rows, start])


def test_figures_come_back_from_json_as_they_were(tmp_path):
    one = figures(direct=100, sbxproxy=50)
    one.save(tmp_path / "run.json")
    assert Figures.load(tmp_path / "run.json") == one


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [{"odd": 1}]}'])
def test_another_file_is_no_figures(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="not the figures of a run"):
        Figures.load(tmp_path / "x.json")


def test_targets_are_ratios_within_the_run():
    """Twice pproxy is enough, twice naive isn't; who isn't there is no verdict."""
    judged = {
        (target.workload, target.peer): verdict for target, _, verdict in judge_targets(figures(sbxproxy=20, pproxy=10, naive=10))
    }
    assert judged["W1b c32", "pproxy"] is Verdict.MET
    assert judged["W1b c32", "naive"] is Verdict.MISSED
    assert judged["W1b c32", "mitmproxy"] is Verdict.OPEN
    assert judged["start", None] is Verdict.MISSED


def test_a_peer_without_figures_is_no_target_met():
    """Nothing would be divided by nothing."""
    one = figures(sbxproxy=20, pproxy=10)
    one.rows[1].samples = [0.0]
    verdicts = {target.peer: verdict for target, _, verdict in judge_targets(one)}
    assert verdicts["pproxy"] is Verdict.OPEN


def test_a_quick_run_judges_nothing_that_it_made_smaller():
    idle = Row("idle 1,000", "sbxproxy", "KiB/tunnel", less_is_better=True)
    idle.add(Sample(value=5.0))
    one = figures(sbxproxy=20)
    one.rows.append(idle)
    verdicts = {target.workload: verdict for target, _, verdict in judge_targets(one)}
    assert verdicts["idle 1,000"] is Verdict.MET
    one.plan["quick"] = True
    verdicts = {target.workload: verdict for target, _, verdict in judge_targets(one)}
    assert verdicts["idle 1,000"] is Verdict.OPEN
    assert verdicts["start"] is Verdict.MISSED


def test_every_target_is_about_a_workload_that_exists():
    known = {work.id for work in WORKLOADS}
    assert {target.workload for target in TARGETS} <= known


def test_workloads_have_ids_of_their_own():
    ids = [work.id for work in WORKLOADS]
    assert len(ids) == len(set(ids))


def test_a_failed_round_without_figures_is_told_and_not_counted():
    row = Row("W1b c32", "sbxproxy", "tunnels/s")
    row.add(Sample(value=0.0, failures=3, why="the proxy refused"))
    assert row.median is None
    assert "the proxy refused" in row.missing


def test_failures_beside_figures_stand_in_the_table():
    one = figures(direct=100, sbxproxy=50)
    one.rows[1].add(Sample(value=60.0, failures=2, why="a send failed"))
    assert "sbxproxy (2 failed: a send failed)" in markdown(one)


def test_the_table_has_ratios_to_direct_and_to_the_best_peer():
    text = markdown(figures(direct=100, sbxproxy=50, naive=10, pproxy=25))
    assert "| sbxproxy | 50.0 | 50.0 to 50.0 | 0.50 | 2.00 | 100 | 1.00 | 2.00 |" in text


def test_a_comparison_is_of_ratios_since_machines_drift():
    """Twice as fast in figures and twice as fast directly is no change."""
    old, new = figures(direct=100, sbxproxy=50), figures(direct=200, sbxproxy=100)
    assert "| W1b c32 | sbxproxy | 0.50 | 0.50 | +0 % | 100 | 100 | +0 % |" in comparison(new, old)
    assert "| W1b c32 | sbxproxy | 0.50 | 0.25 | -50 % |" in comparison(figures(direct=200, sbxproxy=50), old)


def test_the_page_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n" + document._BEGIN + "\nold\n" + document._END + "\nafter\n")
    document.write(figures(direct=100, sbxproxy=50), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "W1b c32" in text


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("mine")
    with pytest.raises(ValueError, match="no marks"):
        document.write(figures(direct=1), page)
    assert page.read_text() == "mine"


def test_the_documentation_has_the_marks():
    text = document.PAGE.read_text()
    assert text.count(document._BEGIN) == text.count(document._END) == 1
