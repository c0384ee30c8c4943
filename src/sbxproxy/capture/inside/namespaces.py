"""Leaving the host's namespaces for new ones, or entering somebody else's network namespace.

With the right capabilities no user namespace is needed to make the others; without them, one is the way to get them. In it the
program keeps its user and group, since it is still the same user to the file system.

In the first case the command gets a user namespace too, made last: the others don't belong to it, so no capability in it is one over
them.
"""

from __future__ import annotations

__all__ = ["can_map_others", "enter_network", "everybody", "forbid_cgroup_namespaces", "leave_host", "map_process"]

import errno
import fcntl
import os

from sbxproxy.capture.inside.steps import StepError, step
from sbxproxy.capture.inside.syscalls import (
    CAP_NET_ADMIN,
    CAP_SETFCAP,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    effective_capabilities,
    setns,
    unshare,
)

_NS_GET_USERNS = 0xB701
_NS_GET_NSTYPE = 0xB703

_KINDS = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC
_NEEDED = 1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN
_NEEDED_TO_MAP = 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_SETFCAP


def leave_host() -> bool:
    """Get new network, mount, process and IPC namespaces; the process namespace is for children only.

    Returns:
        Whether that took a user namespace too.
    """
    if effective_capabilities() & _NEEDED == _NEEDED:
        with step("namespaces"):
            unshare(_KINDS)
        return False
    user, group = os.geteuid(), os.getegid()
    with step("user namespace"):
        unshare(CLONE_NEWUSER | _KINDS)
    with step("user namespace: mapping user 0" if user == 0 else "user namespace: mapping"):
        # Without this a group could be dropped, and with it a denial that a file states for that group.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    return True


def can_map_others() -> bool:
    """Tell whether the capabilities that it takes to map other users than oneself are held."""
    return effective_capabilities() & _NEEDED_TO_MAP == _NEEDED_TO_MAP


def everybody(kind: str) -> str:
    """Return a map of all users (*kind* is ``uid``) or groups (``gid``) that this user namespace has, to the same numbers."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as lines:
        ranges = [line.split() for line in lines]
    return "".join(f"{first} {first} {count}\n" for first, _, count in ranges)


def map_process(process: str, users: str, groups: str) -> None:
    """Fill a process's new user namespace with users and groups.

    Args:
        process: its directory in /proc.
        users: the lines of its map of users.
        groups: of groups.
    """
    with step("user namespace: mapping"):
        _write(f"{process}/uid_map", users)
        _write(f"{process}/gid_map", groups)


def forbid_cgroup_namespaces(sysctls: int) -> None:
    """Let nothing in the current user namespace make a cgroup namespace.

    Who has one can mount its control groups afresh, and in them stop, kill or starve whatever shares the group, which the proxy does.

    Args:
        sysctls: a descriptor of /proc/sys. Where that is read-only the limit is whatever is set already.
    """
    try:
        descriptor = os.open("user/max_cgroup_namespaces", os.O_WRONLY | os.O_CLOEXEC, dir_fd=sysctls)
    except OSError:
        return
    with step("control groups"):
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def enter_network(descriptor: int) -> None:
    """Enter the network namespace that *descriptor* refers to, by way of the user namespace that owns it if that is another.

    Raises:
        StepError: it is none, it is our own, or it belongs to somebody else.
    """
    with step("network namespace"):
        try:
            kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            kind = 0
        if kind != CLONE_NEWNET:
            raise StepError("network namespace", "the file is no network namespace", errno.EINVAL)
        if _same(os.fstat(descriptor), os.stat("/proc/self/ns/net")):
            raise StepError("network namespace", "it is the proxy's own, which would be captured as a whole", errno.EINVAL)
        try:
            owner = fcntl.ioctl(descriptor, _NS_GET_USERNS)
        except PermissionError:  # owned by a user namespace outside ours
            raise StepError("network namespace", "it belongs to another user", errno.EPERM) from None
        try:
            if not _same(os.fstat(owner), os.stat("/proc/self/ns/user")):
                setns(owner, CLONE_NEWUSER)
        except PermissionError:
            raise StepError("network namespace", "it belongs to another user", errno.EPERM) from None
        finally:
            os.close(owner)
        try:
            setns(descriptor, CLONE_NEWNET)
        except PermissionError:
            raise StepError("network namespace", "it belongs to another user", errno.EPERM) from None


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)
