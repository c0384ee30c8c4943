"""How much of a processor another process takes."""

from __future__ import annotations

import os
from pathlib import Path

import trio


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_idle(pid: int) -> None:
    """Wait until it has done what there was to do, however slow the machine is; one that spins never has."""
    with trio.fail_after(60):
        spent = -1.0
        while (now := cpu_seconds(pid)) - spent > 0.03 or spent < 0:
            spent = now
            await trio.sleep(0.3)
