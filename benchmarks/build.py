"""Compiles the load generator and the origin, which are written in C so that they aren't what is measured."""

from __future__ import annotations

__all__ = ["BUILD", "CannotBuild", "build", "program"]

import shutil
import subprocess
from pathlib import Path

from benchmarks.process import ROOT

BUILD = ROOT / "build" / "bench"
_SOURCES = Path(__file__).parent / "c"
_PROGRAMS = ("load", "origin", "dns")


class CannotBuild(Exception):  # noqa: N818 - a state, with what to install
    """There is no compiler, or no OpenSSL to compile with."""


def program(name: str) -> Path:
    """Return where a program is once it is built."""
    return BUILD / name


def build() -> None:
    """Compile what is older than its source.

    Raises:
        CannotBuild: the message says what to install.
    """
    newest = max(path.stat().st_mtime for path in _SOURCES.iterdir())
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in _PROGRAMS:
        target = program(name)
        if target.exists() and target.stat().st_mtime > newest:
            continue
        compiler = shutil.which("cc")
        if compiler is None:
            raise CannotBuild("no C compiler: `python -m benchmarks setup` as root, or install build-essential and libssl-dev")
        fresh = target.with_name(f"{name}.new")
        sources = [str(_SOURCES / f"{name}.c"), str(_SOURCES / "bench.c")]
        done = subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-o", str(fresh), *sources, "-lssl", "-lcrypto"],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            hint = "install libssl-dev" if "openssl/" in done.stderr else "the compiler says"
            raise CannotBuild(f"{name}.c can't be compiled: {hint}: {done.stderr.strip()[:500]}")
        fresh.rename(target)
