"""The micro-benchmark runs, ends, and leaves nothing."""

from __future__ import annotations

import json

import pytest

from benchmarks import micro
from support.tcp import open_descriptors


def test_every_part_gets_a_figure_and_nothing_stays_open(capsys, tmp_path):
    """Its figures are for reading, so only that they are there is tested."""
    before = open_descriptors()
    assert micro.main(["--quick", "--json", str(tmp_path / "new" / "micro.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("engine" in line for line in lines)
    assert any("two tasks" in line for line in lines)
    figures = json.loads((tmp_path / "new" / "micro.json").read_text())
    assert len(lines) == 2 + len(figures)
    assert all(sample > 0 for samples in figures.values() for sample in samples)
    for part in ("hello", "PostgreSQL", "request head", "judge", "rule", "mint"):
        assert any(part in name for name in figures), part
    assert open_descriptors() == before


def test_no_rounds_are_refused():
    with pytest.raises(SystemExit):
        micro.main(["--rounds", "0"])
