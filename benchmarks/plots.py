"""Bars of a run's figures, one small plot per workload, as SVG: medians, with whiskers from least to most."""

from __future__ import annotations

__all__ = ["draw"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, Row
from benchmarks.targets import OURS

_COLOURS = {OURS: "#2a6fdb", "direct": "#9aa5b1"}
_OTHER = "#c9b27c"
_COLUMNS = 3


def draw(figures: Figures, path: Path) -> Path | None:
    """Draw every workload that compares; returns *path*, or ``None`` without matplotlib or anything to compare."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, and slow to import

        mpl.use("Agg")
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["svg.hashsalt"] = "bench"  # the same picture from the same figures
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        return None
    shown = {work: rows for work in figures.workloads if len(rows := [row for row in figures.of(work) if row.samples]) > 1}
    if not shown:
        return None
    lines = -(-len(shown) // _COLUMNS)
    figure, axes = plt.subplots(lines, _COLUMNS, figsize=(4.6 * _COLUMNS, 2.9 * lines), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (work, rows) in zip(axes.flat, shown.items(), strict=False):
        _bars(axis, work, rows)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _bars(axis: Any, work: str, rows: Sequence[Row]) -> None:
    upwards = list(reversed(rows))
    medians = [row.median or 0.0 for row in upwards]
    below = [median - min(row.samples) for median, row in zip(medians, upwards, strict=True)]
    above = [max(row.samples) - median for median, row in zip(medians, upwards, strict=True)]
    colours = [_COLOURS.get(row.subject, _OTHER) for row in upwards]
    axis.barh([row.subject for row in upwards], medians, xerr=[below, above], capsize=2, color=colours)
    axis.set_title(f"{work}: {rows[0].unit}{', less is better' if rows[0].less_is_better else ''}", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
