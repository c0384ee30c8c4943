"""The micro-benchmark runs, ends, and leaves nothing."""

from __future__ import annotations

import pytest

from benchmarks import micro
from support.tcp import open_descriptors


def test_every_part_gets_a_figure_and_nothing_stays_open(capsys):
    """Its figures are for reading, so only that they are there is tested."""
    before = open_descriptors()
    assert micro.main(["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("engine" in line for line in lines)
    assert any("two tasks" in line for line in lines)
    assert len(lines) == 13
    assert open_descriptors() == before


def test_no_rounds_are_refused():
    with pytest.raises(SystemExit):
        micro.main(["--rounds", "0"])
