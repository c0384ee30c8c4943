"""The ``sbxproxy`` program as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = [sys.executable, "-c", "from sbxproxy.cli import main; main()"]


def sbxproxy(*arguments, input="", env=None, timeout=60, **options):
    """Run it to its end."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        **options,
    )


def start(*arguments, env=None, **options):
    """Start it."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        **options,
    )


def one_sentence(done):
    """Hold an error to what a user may expect: no traceback, a reason, few lines."""
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
    assert 0 < len(done.stderr.strip().splitlines()) <= 5, done.stderr
    return done.stderr


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
