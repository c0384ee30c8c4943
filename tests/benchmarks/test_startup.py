"""The start-up benchmark runs to its end, and leaves nothing."""

from __future__ import annotations

from benchmarks import startup
from support.tcp import open_descriptors


def test_a_quick_run_has_a_figure_for_every_command(capsys, tmp_path):
    before = open_descriptors()
    assert startup.main(["--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("python -c pass", "deny-all", "listening"):
        assert word in shown
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []  # the figures of a quick run mean nothing
