# ruff: noqa: RUF001 - times signs and dashes are meant
"""Puts figures where people look: Markdown tables, the verdict on the targets, and what changed since an older run."""

from __future__ import annotations

__all__ = ["comparison", "markdown", "targets"]

import statistics
from collections.abc import Sequence

from benchmarks.figures import Figures, Row
from benchmarks.targets import OURS, judge_targets


def markdown(figures: Figures) -> str:
    """Return everything: what ran where, a table per workload, the targets."""
    parts = [_setting(figures), *(_table(figures, workload) for workload in figures.workloads)]
    parts += [targets(figures), _versions(figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(figures: Figures) -> str:
    machine = figures.machine
    return (
        f"`{figures.command}` at {machine['time']}, revision {machine['revision']}: {machine['processor']}, "
        f"{machine['cpus']} processors, Linux {machine['kernel']}, Python {machine['python']}; "
        f"{figures.plan['rounds']} interleaved rounds of {figures.plan['seconds']:g} s; load average at the start "
        f"{machine['load average'][0]:.1f}." + (" **A quick run: the figures mean little.**" if figures.plan.get("quick") else "")
    )


def _table(figures: Figures, workload: str) -> str:
    rows = figures.of(workload)
    unit = rows[0].unit
    best = _best_peer(rows)
    direct = next((row.median for row in rows if row.subject == "direct"), None)
    base = rows[0].median if rows[0].subject == "nothing" else None
    cpu = "CPU s/GiB" if unit == "Gbit/s" else "CPU µs/op"
    lengths = any(row.p50 for row in rows)
    heads = ["subject", unit, "min to max"]
    heads += ["more than nothing"] if base is not None else []
    heads += ["× direct"] if direct else []
    heads += ["× best peer"] if best and rows[0].subject != "nothing" else []
    heads += [cpu] if any(row.cpu for row in rows) else []
    heads += ["p50 ms", "p99 ms"] if lengths else []
    about = figures.about.get(workload)
    lines = [
        f"**{workload}**{f': {about}' if about else ''}",
        "",
        f"| {' | '.join(heads)} |",
        f"|---{'|--:' * (len(heads) - 1)}|",
    ]
    absent = []
    for row in rows:
        if row.median is None:
            absent.append(f"{row.subject}: {row.missing or row.why or 'no figures'}")
            continue
        cells = [row.subject, _number(row.median), f"{_number(min(row.samples))} to {_number(max(row.samples))}"]
        if base is not None:
            cells += [f"{row.median - base:+,.1f}"]
        if direct:
            cells += [_ratio(row.median, direct)]
        if "× best peer" in heads:
            cells += [_ratio(row.median, best)]
        if cpu in heads:
            cells += [_number(row.median_cpu)]
        if lengths:
            cells += [_number(_milliseconds(row.p50)), _number(_milliseconds(row.p99))]
        if row.failures:
            cells[0] += f" ({row.failures} failed: {row.why})"
        lines.append(f"| {' | '.join(cells)} |")
    if absent:
        lines += ["", f"Without figures: {'; '.join(absent)}."]
    return "\n".join(lines)


def _best_peer(rows: Sequence[Row]) -> float | None:
    medians = [row.median for row in rows if row.subject not in {OURS, "direct"} and row.median]
    if not medians:
        return None
    return min(medians) if rows[0].less_is_better else max(medians)


def _milliseconds(samples: Sequence[float]) -> float | None:
    return statistics.median(samples) / 1e3 if samples else None


def _ratio(value: float, other: float | None) -> str:
    return f"{value / other:.2f}" if other else "–"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def targets(figures: Figures) -> str:
    """Return the table of what must be reached, empty where the run touches none of it."""
    judged = judge_targets(figures)
    if not judged:
        return ""
    lines = ["**Targets**", "", "| workload | must | reached | |", "|---|---|--:|---|"]
    lines += [
        f"| {target.workload} | {target.text} | {_number(reached)} | {verdict.value} |" for target, reached, verdict in judged
    ]
    return "\n".join(lines)


def _versions(figures: Figures) -> str:
    return "Versions: " + "; ".join(f"{name} {version}" for name, version in figures.versions.items() if version) + "."


def comparison(new: Figures, old: Figures) -> str:
    """Return what a change did: ratios to direct (or the figure itself) and CPU per operation, old against new."""
    lines = [
        f"Compared with {old.machine['revision']} ({old.machine['time']}); ratios to `direct` where both have it, since speed drifts.",
        "",
        "| workload | subject | old | new | change | CPU old | CPU new | change |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in new.rows:
        before = next((one for one in old.rows if (one.workload, one.subject) == (row.workload, row.subject)), None)
        if before is None or row.subject == "direct" or row.median is None or before.median is None:
            continue
        was, is_now = _relative(old, before), _relative(new, row)
        if was is None or is_now is None:
            was, is_now = before.median, row.median
        cells = [row.workload, row.subject, _number(was), _number(is_now), _change(was, is_now)]
        cells += [_number(before.median_cpu), _number(row.median_cpu), _change(before.median_cpu, row.median_cpu)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _relative(figures: Figures, row: Row) -> float | None:
    direct = figures.median(row.workload, "direct")
    return row.median / direct if direct and row.median is not None else None


def _change(was: float | None, is_now: float | None) -> str:
    return f"{(is_now / was - 1) * 100:+.0f} %" if was and is_now is not None else "–"
