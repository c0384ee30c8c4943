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


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything must be there (``SBX_REQUIRE``)."""
    if os.environ.get("SBX_REQUIRE"):
        pytest.fail(f"SBX_REQUIRE is set, and {reason}")
    pytest.skip(reason)


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
