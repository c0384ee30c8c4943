"""``python -m benchmarks document``: puts the figures of a whole run into docs/performance.md, between two marks."""

from __future__ import annotations

__all__ = ["main", "write"]

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figures
from benchmarks.process import ROOT
from benchmarks.report import markdown

PAGE = ROOT / "docs" / "performance.md"
RUN = ROOT / "benchmarks" / "results" / "run.json"
_BEGIN = "<!-- what `make bench` found: written by `python -m benchmarks document` -->"
_END = "<!-- end of what it found -->"


def write(figures: Figures, page: Path = PAGE) -> None:
    """Replace what stands between the marks.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _old, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{page} has no marks to write between")
    page.write_text(f"{before}{_BEGIN}\n\n{markdown(figures)}\n{_END}{after}")


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks document", description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=RUN, help="of a run; default: benchmarks/results/run.json")
    options = parser.parse_args(arguments)
    try:
        write(Figures.load(options.figures))
    except ValueError as error:
        parser.error(str(error))
    return 0
