"""``python -m benchmarks setup``: installs what the benchmarks can use, and tells what stays missing.

Debian packages only as root; proxies from PyPI into environments of their own under build/bench. Nothing here is needed: what is
missing is left out of a run, and named.
"""

from __future__ import annotations

__all__ = ["main", "missing_packages"]

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.build import CannotBuild, build
from benchmarks.subjects.debian_peers import PACKAGES, find
from benchmarks.subjects.python_peers import DISTRIBUTIONS, environment_of
from benchmarks.subjects.subject import Unavailable

_POLICY = Path("/usr/sbin/policy-rc.d")
_APT_TIME = 900
_PIP_TIME = 600


def main(arguments: Sequence[str]) -> int:
    """Install; returns 0 whatever is missing, since a run does without, and 1 if there can be no run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks setup", description=__doc__)
    parser.add_argument("--only-check", action="store_true", help="tell what is missing, install nothing")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    packages = missing_packages()
    if packages and not options.only_check:
        _install_packages(packages, console)
    for distribution in DISTRIBUTIONS:
        if not (environment_of(distribution) / ".done").exists() and not options.only_check:
            _install_distribution(distribution, console)
    for name in missing_packages():
        console.print(f"missing: Debian package {name} (as root: apt-get install {name})")
    for distribution in DISTRIBUTIONS:
        if not (environment_of(distribution) / ".done").exists():
            console.print(f"missing: {distribution} from PyPI")
    try:
        build()
    except CannotBuild as error:
        console.print(f"benchmarks: {error}", markup=False)
        return 1
    return 0


def missing_packages() -> list[str]:
    """Return the Debian packages whose programs aren't there."""
    missing = []
    for program, packages in PACKAGES.items():
        try:
            find(program)
        except Unavailable:
            missing += packages.split()
    if not shutil.which("cc"):
        missing.append("build-essential")
    if not Path("/usr/include/openssl/ssl.h").exists():
        missing.append("libssl-dev")
    return missing


def _install_packages(packages: Sequence[str], console: Console) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    console.print(f"installing Debian packages: {' '.join(packages)}")
    # Debian starts servers as it installs them; these are started by a run alone. The file holds for this installation only.
    made = not _POLICY.exists()
    try:
        if made:
            _POLICY.write_text("#!/bin/sh\nexit 101\n")
            _POLICY.chmod(0o755)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for argv in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *argv], check=True, env=environment, timeout=_APT_TIME, stdout=subprocess.DEVNULL)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        console.print("apt-get failed; what is missing is left out")
    finally:
        if made:
            _POLICY.unlink(missing_ok=True)


def _install_distribution(name: str, console: Console) -> None:
    console.print(f"installing {name} from PyPI")
    place = environment_of(name)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, timeout=_PIP_TIME)
        subprocess.run([str(place / "bin" / "pip"), "install", "--quiet", name], check=True, timeout=_PIP_TIME)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        console.print(f"{name} can't be installed; it is left out")
    else:
        (place / ".done").touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
