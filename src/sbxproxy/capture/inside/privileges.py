"""What the command may still do: be its user, and if that is user 0, make user namespaces of its own. Nothing else.

A user namespace that maps user 0 can be made only with CAP_SETFCAP (Linux 5.12), since file capabilities made in it count outside as
well. That one is kept for user 0, who can do as much by a file's set-user-id bit, but in a user namespace by which it extends to
hardly more than root's own files. Other users need no capability for that, and have none.
"""

from __future__ import annotations

__all__ = ["Account", "OwnNamespace", "give_up"]

import os
import signal
import socket
from collections.abc import Sequence
from typing import NamedTuple

from sbxproxy.capture.inside.namespaces import can_map_everybody, everybody, map_everybody
from sbxproxy.capture.inside.steps import StepError, step
from sbxproxy.capture.inside.syscalls import (
    CAP_SETFCAP,
    CLONE_NEWUSER,
    die_with_parent,
    drop_capabilities,
    empty_bounding_set,
    hide_memory,
    unshare,
)


class Account(NamedTuple):
    """Whom the command runs as."""

    uid: int
    gid: int
    groups: Sequence[int]


class OwnNamespace:
    """The user namespace of a command that stays user 0: one process enters it, and its parent, which stays outside, maps it."""

    def __init__(self) -> None:
        """Made before the fork."""
        self._outside, self._inside = socket.socketpair()
        self._users = everybody()  # while /proc still is one that knows this process

    @classmethod
    def for_user(cls, user: Account | None) -> OwnNamespace | None:
        """Return one if it is of use for a command that runs as *user*, and can be had."""
        uid = os.geteuid() if user is None else user.uid
        return cls() if uid == 0 and can_map_everybody() else None

    def enter(self, user: Account | None) -> bool:
        """Enter it as *user*, and wait until it is mapped. The last use of capabilities outside must be over.

        Returns:
            Whether there is one: this machine may allow none.
        """
        self._outside.close()
        with self._inside:
            with step("privileges"):
                _become(user)  # inside there are no groups to choose from
            try:
                unshare(CLONE_NEWUSER)
            except OSError:
                return False
            self._inside.send(b"U")
            if not self._inside.recv(1):
                raise StepError("user namespace: mapping", "the process that does it has ended")
        return True

    def serve(self, user: Account | None) -> None:
        """Map it for *user*, once the child of this process is in, which is process 1 there.

        If that fails the child goes on waiting, to be killed.
        """
        self._inside.close()
        if self._outside.recv(1):
            map_everybody("/proc/1", self._users, os.getegid() if user is None else user.gid)
            self._outside.send(b"M")
        self._outside.close()


def give_up(user: Account | None, *, may_nest: bool = False) -> None:
    """Become the user, without any capability, not to be traced, and bound to the parent's life.

    Args:
        user: whom to become; none to stay as we are.
        may_nest: keep what user 0 needs to make user namespaces. For a process in one of its own.
    """
    keep = 1 << CAP_SETFCAP if may_nest and (os.geteuid() if user is None else user.uid) == 0 else 0
    with step("privileges"):
        empty_bounding_set(keep)
        _become(user)
        drop_capabilities(keep)
        die_with_parent(signal.SIGKILL)  # after all that would make the kernel forget it
        hide_memory()


def _become(user: Account | None) -> None:
    """Become the user; with that, all but user 0 lose every capability."""
    if user is not None:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
