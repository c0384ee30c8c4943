"""A temporary directory that goes with its owner, even one that was killed: the next owner removes what the dead left behind.

The owner holds a lock (flock(2)) on the directory itself, which the kernel takes away when the process ends, however it ends. Between
its making and its locking a directory looks like a left-over, so an owner whose directory was removed at that moment makes another
one. Programs that clear temporary places by age pass over directories that are locked too, see tmpfiles.d(5).
"""

from __future__ import annotations

__all__ = ["OwnedDirectory"]

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "sbxproxy-trust-"

_MODES = frozenset({0o700, 0o755})
"""What a directory of ours may have; one that others can write in is not removed, since it never was ours."""

_NO_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""From a file system that can't lock directories; whoever clears up gets no lock there either, and removes nothing."""

_TRIES = 10

_swept: set[str] = set()


class OwnedDirectory:
    """Made, locked, and readable by everybody: what is in it is public, and the reader may be another user.

    Files belong directly in it; a killed owner's subdirectories stay where they are.

    Attributes:
        path: where it is.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self) -> None:
        """Make it, and, the first time in this process, remove those of owners that are gone.

        Raises:
            OSError: there is no place for it.
        """
        parent = tempfile.gettempdir()
        if parent not in _swept:
            _swept.add(parent)  # once: with many sandboxes in a process all would look at all
            sweep(Path(parent))
        self.path, self._descriptor = _make(parent)

    def close(self) -> None:
        """Remove it with what is in it; again is harmless."""
        if self._descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1


def _make(parent: str) -> tuple[Path, int]:
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            descriptor = _lock(path)
        except OSError:
            path.rmdir()
            raise
        if descriptor is not None:
            path.chmod(0o755)
            return path, descriptor
    raise FileNotFoundError(f"{parent}: new directories are removed again and again")


def _lock(path: Path) -> int | None:
    """Lock the directory at *path*; ``None`` if that is somebody else's to remove, or removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    if _is_at(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def sweep(parent: Path) -> None:
    """Remove this user's directories in *parent* whose owners are gone; what can't be removed stays."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))


def _remove_if_left(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) not in _MODES:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (os.path.samestat(status, os.fstat(descriptor)) and _is_at(path, descriptor)):
            return
        for name in os.listdir(descriptor):  # noqa: PTH208 - of the directory that is locked, whatever its path leads to
            os.unlink(name, dir_fd=descriptor)  # links themselves, never what they lead to
        path.rmdir()
    finally:
        os.close(descriptor)
