"""The benchmark of captured connections runs in a real sandbox, and leaves nothing."""

from __future__ import annotations

from benchmarks import capture
from support.tcp import open_descriptors


def test_a_quick_run_has_figures_for_both_ways(capsys, tmp_path):
    before = open_descriptors()
    assert capture.main(["--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "CONNECT" in shown
    assert "captured" in shown
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []  # the figures of a quick run mean nothing
