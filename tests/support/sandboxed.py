"""``sbxproxy`` run as root or as an unprivileged user, wherever the test is."""

from __future__ import annotations

import subprocess
from typing import Any

from support.captured import as_user, environment


def command(mode: str, *arguments: str) -> list[str]:
    return [*as_user(mode), "-c", "from sbxproxy.cli import main; main()", *arguments]


def run_python(mode: str, policy: str, code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python *code* in a sandbox."""
    argv = command(mode, "run", policy, "--quiet", "--", as_user(mode)[-1], "-c", code, *arguments)
    defaults: dict[str, Any] = {
        "capture_output": True, "text": True, "timeout": 90, "env": environment(), "stdin": subprocess.DEVNULL, "cwd": "/",
    }  # fmt: skip
    return subprocess.run(argv, **{**defaults, **options})
