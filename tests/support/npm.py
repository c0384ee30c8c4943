"""npm packages for real clients, exactly as ``tests/real/package-lock.json`` pins them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.programs import require, unavailable

MANIFESTS = Path(__file__).parent.parent / "real"


def install(place: Path, manifests: Path = MANIFESTS) -> Path:
    """Install those of *manifests* into *place*; return the directory of the modules."""
    for name in ("package.json", "package-lock.json"):
        (place / name).write_bytes((manifests / name).read_bytes())
    command = [require("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired:
        unavailable("npm ci did not end in time")
    if done.returncode:
        unavailable(f"npm ci failed: {done.stderr[-300:]}")
    return place / "node_modules"
