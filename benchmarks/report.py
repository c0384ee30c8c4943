# ruff: noqa: RUF001 - a times sign and a dash are meant
"""Puts figures where people look: a Markdown table, JSON for later comparison, and a plot."""

from __future__ import annotations

__all__ = ["markdown", "save"]

import json
import os
import platform
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.run import CPU_UNITS, Row, Table

_COLOURS = {"sbxproxy": "#2a6fdb", "direct": "#9aa5b1"}


def markdown(tables: list[Table]) -> str:
    """Return one table per workload: median with least and most, the ratio to direct, processor time."""
    return "\n\n".join(_markdown(table) for table in tables) + "\n"


def _markdown(table: Table) -> str:
    lines = [
        f"**{table.workload}**: {table.unit}, median of {table.plan.rounds}",
        "",
        f"| subject | {table.unit} | min to max | × direct | {CPU_UNITS[table.workload]} | failures |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *(_line(table, row) for row in table.rows)])


def _line(table: Table, row: Row) -> str:
    if row.median is None:
        return f"| {row.subject} | – | {row.missing or 'no figures'} | – | – | – |"
    ratio = table.ratio(row)
    digits = 0 if table.workload == "connect" else 2
    cpu = f"{statistics.median(row.cpu):.{digits}f}" if row.cpu else "–"
    span = f"{min(row.samples):,.{digits}f} to {max(row.samples):,.{digits}f}"
    shown = "–" if ratio is None else f"{ratio:.2f}"
    return f"| {row.subject} | {row.median:,.{digits}f} | {span} | {shown} | {cpu} | {row.failures} |"


def save(tables: list[Table], directory: Path) -> list[Path]:
    """Write ``NAME.json``, ``NAME.md`` and, with matplotlib, ``NAME.svg``; return what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join(table.workload for table in tables)
    machine = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "load average": os.getloadavg(),
    }
    data = directory / f"{name}.json"
    data.write_text(json.dumps({"machine": machine, "tables": [asdict(table) for table in tables]}, indent=1) + "\n")
    text = directory / f"{name}.md"
    text.write_text(markdown(tables))
    plot = _plot(tables, directory / f"{name}.svg")
    return [data, text, *([plot] if plot else [])]


def _plot(tables: list[Table], path: Path) -> Path | None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, and slow to import

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        return None
    figure, axes = plt.subplots(1, len(tables), figsize=(5 * len(tables), 3.2), squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        _bars(axis, table)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return path


def _bars(axis: Any, table: Table) -> None:
    rows = [row for row in reversed(table.rows) if row.median is not None]
    names = [row.subject for row in rows]
    medians = [row.median or 0.0 for row in rows]
    below = [median - min(row.samples) for median, row in zip(medians, rows, strict=True)]
    above = [max(row.samples) - median for median, row in zip(medians, rows, strict=True)]
    axis.barh(names, medians, xerr=[below, above], capsize=3, color=[_COLOURS.get(name, "#c9b27c") for name in names])
    axis.set_xlabel(table.unit)
    axis.set_title(f"{table.workload} (median of {table.plan.rounds}, whiskers: min and max)", fontsize=9)
