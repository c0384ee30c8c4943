"""The examples of other runtimes run: each captures a guest, whose plain HTTP is then denied in its own words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import takes_root, unavailable

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"unshare": "unshare", "bubblewrap": "bwrap", "runc": "runc", "gateway": "ip", "vsock_ingress": None}


@pytest.mark.real
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_captures_its_guest(name):
    program = NEEDS[name]
    places = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if program is not None and not any(os.access(Path(place, program), os.X_OK) for place in places.split(":")):
        unavailable(f"{program} is not installed")
    if name == "gateway":
        takes_root()
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": places}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "reason='plain-http'" in said
    assert '"error": "plain-http"' in said or "403 Forbidden" in said
