"""Real programs as clients: is it here, and run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import trio

FOR_ROOT = "this takes root"
"""Why a test is skipped that only root's run of the tests has: the one skip that counts as no failure under ``SBX_REQUIRE``."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test; ``conftest.py`` fails it where everything must be there (``SBX_REQUIRE``)."""
    pytest.skip(reason)


def takes_root() -> None:
    """Skip the test unless this is root."""
    if os.geteuid() != 0:
        pytest.skip(FOR_ROOT)


def require(program: str) -> str:
    """Return the path of *program*; without it the test can't run."""
    path = shutil.which(program)
    if path is None:
        unavailable(f"{program} is not installed")
    return path


@dataclass(frozen=True)
class Ran:
    code: int
    output: str

    def __contains__(self, text: str) -> bool:
        return text in self.output


async def run(argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, patience: float = 60.0) -> Ran:
    """Run to the end; what it wrote to either stream comes together."""
    with trio.fail_after(patience):
        done = await trio.run_process(
            list(argv), env=dict(env), cwd=cwd, capture_stdout=True, capture_stderr=True, check=False, stdin=b""
        )
    return Ran(done.returncode, done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace"))
