"""A worker's process: how it is started, and what ties its life to its supervisor's.

The supervisor starts it in its event loop's own thread. A parent-death signal (prctl(2)) is sent when the *thread* that made the process
ends, and a helper thread would end long before its process.
"""

from __future__ import annotations

__all__ = ["ENVIRONMENT", "start", "tie_to"]

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from sbxproxy.errors import ConfigurationError

ENVIRONMENT = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOCALDOMAIN", "PATH", "RES_OPTIONS", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "TMPDIR", "TZ"
)  # fmt: skip
"""Variables that a worker has by default: how programs run at all, how names are looked up, where the system's roots are. The
environment of a program that embeds us may be full of secrets, and anybody of the same user can read a process's."""

_PROGRAM = "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); from sbxproxy.workers.worker import main; main()"

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""


def start(end: socket.socket, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker that has *end* for its channel.

    It is in a session of its own: Ctrl-C in the supervisor's terminal is not for it. It finds modules where this process does, and
    writes what it has to say (warnings, a crash) to this process's standard error.

    Raises:
        ConfigurationError: there is no Python to start it with, or no room for a process.
    """
    if not sys.executable:
        raise ConfigurationError("workers: this program doesn't know its Python interpreter (sys.executable)")
    number = end.fileno()
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-c", _PROGRAM, str(number), str(os.getpid()), json.dumps(sys.path)],
            pass_fds=[number],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigurationError(f"workers: a process can't be started: {error.strerror}") from None


def tie_to(parent: int) -> None:
    """Make the kernel end this process when *parent* ends, even if it hangs at that moment; end it now if that was before.

    Where there is no such signal the end of the channel has to do.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
