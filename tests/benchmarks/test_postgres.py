"""The PostgreSQL benchmark runs against a real server, ends, and leaves nothing."""

from __future__ import annotations

import pytest

from benchmarks import postgres
from support.postgres import debian_build
from support.tcp import open_descriptors


@pytest.mark.real
def test_a_quick_run_has_figures_for_both_ways(capsys, tmp_path):
    debian_build()  # skips where there is no server
    before = open_descriptors()
    assert postgres.main(["--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "direct" in shown
    assert "sbxproxy" in shown
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []  # the figures of a quick run mean nothing
