"""Where a user's control sockets are."""

from __future__ import annotations

__all__ = ["runtime_directory"]

import os
import stat
import tempfile
from pathlib import Path

from sbxproxy.errors import ConfigurationError


def runtime_directory() -> Path:
    """Return the directory for this user's control sockets, made if it isn't there.

    Raises:
        ConfigurationError: it can't be had, or is somebody else's.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    user = os.geteuid()
    candidates = [Path(base)] if base.startswith("/") else []
    candidates.append(Path(f"/run/user/{user}") if user else Path("/run"))
    for parent in candidates:
        if os.access(parent, os.W_OK | os.X_OK):
            directory = parent / "sbxproxy"
            break
    else:
        directory = Path(tempfile.gettempdir()) / f"sbxproxy-{user}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise ConfigurationError(f"control socket: can't make {directory}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        raise ConfigurationError(f"control socket: {directory} must be a directory of yours with mode 0700")
    return directory
