"""Flame graphs of ``sbxproxy serve`` under a workload's load, by py-spy, as SVG.

Threads stand apart, since those that only wait are recorded too: click on the main thread to see it alone.
"""

from __future__ import annotations

__all__ = ["profile"]

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.plan import Plan
from benchmarks.process import spawn
from benchmarks.rig import open_rig
from benchmarks.streamed import Streamed
from benchmarks.subjects.ours import SBXPROXY

_RATE = 250
_DELAY = 0.7


def profile(work: Streamed, path: Path, seconds: float = 6.0) -> Path:
    """Record *seconds* of load, and write the flame graph to *path*.

    Raises:
        RuntimeError: py-spy isn't installed, or may not look (it needs root, or ptrace of one's own processes).
    """
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        raise RuntimeError("py-spy isn't installed: it is in the bench dependency group")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        rig = stack.enter_context(open_rig())
        running = SBXPROXY.start(stack, rig)
        assert running.process is not None
        log = rig.directory / "py-spy.log"
        argv = [program, "record", "--pid", str(running.process.pid), "--rate", str(_RATE), "--threads", "--output", str(path)]
        # The load is longer than the recording, so that no idle loop is in the picture.
        recorder = ["sh", "-c", f'sleep {_DELAY}; exec "$@"', "sh", *argv, "--duration", f"{seconds:.0f}"]
        recording = spawn(stack, recorder, log=log, cpu=rig.load_cpu)
        work.measure(rig, SBXPROXY.name, running, Plan(rounds=1, seconds=seconds + 2 * _DELAY + 1))
        try:
            recording.wait(seconds + 30)
        except subprocess.TimeoutExpired:
            raise RuntimeError("py-spy doesn't end") from None
        if recording.returncode or not path.exists():
            raise RuntimeError(f"py-spy: {log.read_text(errors='replace').strip()[-300:]}")
    # Its title is the whole command, which names places on this machine.
    drawn = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(<text id=\"title\"[^>]*>)[^<]*", rf"\1sbxproxy serve, {work.id}", drawn, count=1), encoding="utf-8")
    return path
