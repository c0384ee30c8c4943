"""What the command sees of the file system: masks over places with sockets of the host, our files over the host's, a /proc of its own.

A network namespace doesn't hold back a Unix socket that has a name in the file system, and behind such a socket may be a program
that does what it is asked to, outside. So what is masked counts as much as the rules for packets.

Sources are opened before anything is masked, since they may lie in a masked directory.
"""

from __future__ import annotations

__all__ = ["arrange", "fresh_proc", "protect_kernel"]

import errno
import os
import stat

from sbxproxy.capture.inside.steps import step
from sbxproxy.capture.inside.syscalls import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_RDONLY = 1
_NOSUID = 2
_NODEV = 4
_NOEXEC = 8
_REMOUNT = 32
_NOSYMFOLLOW = 256
_NOATIME = 1024
_NODIRATIME = 2048
_BIND = 4096
_REC = 16384
_PRIVATE = 1 << 18
_RELATIME = 1 << 21

_KEPT_FLAGS = {
    os.ST_NOSUID: _NOSUID,
    os.ST_NODEV: _NODEV,
    os.ST_NOEXEC: _NOEXEC,
    os.ST_NOATIME: _NOATIME,
    os.ST_NODIRATIME: _NODIRATIME,
    os.ST_RELATIME: _RELATIME,
    0x2000: _NOSYMFOLLOW,
    os.ST_RDONLY: _RDONLY,
}
"""A remount must repeat these, or it would clear them, which a user namespace may not."""

_KERNEL = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi")
"""Where user 0 may write by the file's permissions alone, without any capability: ``core_pattern`` names a program that the kernel
runs on the host."""


def arrange(masks: Iterable[str], keep: Sequence[str], binds: Iterable[tuple[str, str]]) -> None:
    """Mask, keep what was to be kept of masked directories, and then put our files over the host's.

    Args:
        masks: places to hide: a directory appears empty, anything else as a file that can't be read, written or connected to.
        keep: places in masked directories that stay as they are.
        binds: our files, and where each is to be seen, read-only.
    """
    with step("mounts"):
        mount(None, "/", None, _REC | _PRIVATE)  # nothing that is mounted here shows outside, nor the other way
        sources = [(os.open(source, os.O_PATH | os.O_CLOEXEC), os.path.realpath(target)) for source, target in binds]
        kept = _open_kept(keep)
        masked = [place for place in map(os.path.realpath, masks) if os.path.lexists(place)]
    with step("masks"):
        for place in sorted(set(masked)):  # the outer before the inner, which is gone then
            if os.path.lexists(place):
                _mask(place)
        for path, descriptor, status, link in kept:
            _restore(path, descriptor, status, link)
    with step("files over the host's"):
        for descriptor, target in sources:
            if not os.path.lexists(target):
                _make_place(target, stat.S_IFREG)
            mount(f"/proc/self/fd/{descriptor}", target, None, _BIND)
            _make_read_only(target, _NOSUID | _NODEV)
            os.close(descriptor)


def _open_kept(keep: Sequence[str]) -> list[tuple[str, int, os.stat_result, str | None]]:
    kept = []
    for path in keep:
        try:
            status = os.lstat(path)
            link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            kept.append((path, os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), status, link))
        except (FileNotFoundError, PermissionError):
            continue
    return kept


def _mask(place: str) -> None:
    status = os.stat(place)
    if not stat.S_ISDIR(status.st_mode):
        mount("/dev/null", place, None, _BIND)
        _make_read_only(place, _NOSUID | _NODEV)
        return
    options = f"size=64m,mode={status.st_mode & 0o1777:o}"
    flags = _NOSUID | _NODEV
    try:
        mount("sbxproxy", place, "tmpfs", flags, f"{options},uid={status.st_uid},gid={status.st_gid}")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount("sbxproxy", place, "tmpfs", flags, options)  # its owner has no name in this user namespace


def _restore(path: str, descriptor: int, status: os.stat_result, link: str | None) -> None:
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        now = None
    if now is None:
        if link is not None:
            _make_parents(path)
            os.symlink(link, path)
        else:
            _make_place(path, stat.S_IFMT(status.st_mode))
            mount(f"/proc/self/fd/{descriptor}", path, None, _BIND | _REC)
    os.close(descriptor)


def _make_place(path: str, kind: int) -> None:
    _make_parents(path)
    if kind == stat.S_IFDIR:
        os.mkdir(path, 0o755)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _make_parents(path: str) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)


def _make_read_only(place: str, more: int = 0) -> None:
    flags = os.statvfs(place).f_flag
    kept = sum(kept for flag, kept in _KEPT_FLAGS.items() if flags & flag)
    mount(None, place, None, _BIND | _REMOUNT | _RDONLY | more | kept)


def fresh_proc() -> bool:
    """Mount a /proc that knows only the processes of this process namespace.

    Returns:
        Whether that could be done. In a sandbox in a sandbox the kernel refuses it if the outer has masked parts of /proc, and
        those masks then stay in force.
    """
    with step("/proc"):
        try:
            mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
        except PermissionError:
            return False
        return True


def protect_kernel(*, is_root: bool) -> None:
    """Make read-only what the command could use to change the running kernel, or processes outside.

    For user 0 that is parts of /proc, and all of /sys; for everybody else control groups that may have been given to them, whose files
    stop and kill.
    """
    with step("read-only /proc and /sys"):
        for place in _KERNEL if is_root else ():
            if os.path.exists(place):
                mount(place, place, None, _BIND | _REC)
                _make_read_only(place)
        top = "/sys" if is_root else "/sys/fs/cgroup"
        for place in [place for place in _mounted() if place == top or place.startswith(f"{top}/")]:
            try:
                if not os.statvfs(place).f_flag & os.ST_RDONLY:
                    _make_read_only(place)
            except FileNotFoundError:  # covered by a later mount
                continue


def _mounted() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return [_unescaped(line.split(" ")[4]) for line in lines]


def _unescaped(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path
