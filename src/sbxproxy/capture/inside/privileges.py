"""What the command may still do: be its user, and if that is user 0, make user namespaces of its own. Nothing else, unless asked for.

A user namespace that maps user 0 can be made only with CAP_SETFCAP (Linux 5.12), since file capabilities made in it count outside as
well. That one is kept for user 0, who can do as much by a file's set-user-id bit, but in a user namespace by which it extends to
hardly more than root's own files. Other users need no capability for that, and have none.
"""

from __future__ import annotations

__all__ = ["NESTING", "OVER_FILES", "Account", "OwnNamespace", "give_up"]

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import os

from sbxproxy.capture.inside.namespaces import can_map_others, everybody, map_process
from sbxproxy.capture.inside.steps import StepError, step
from sbxproxy.capture.inside.syscalls import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_KILL,
    CAP_SETFCAP,
    CAP_SETGID,
    CAP_SETUID,
    CLONE_NEWUSER,
    die_with_parent,
    drop_capabilities,
    empty_bounding_set,
    hide_memory,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


NESTING = 1 << CAP_SETFCAP
"""What user 0 needs to make user namespaces."""

OVER_FILES = NESTING
for _number in (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID, CAP_SETUID):
    OVER_FILES |= 1 << _number
"""What package managers need: every file, and becoming another user. In a user namespace without anything else it gives no more."""


class Account:
    """Whom the command runs as."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups


class OwnNamespace:
    """The command's user namespace where the others took none: one process enters it, and its parent, which stays outside, maps it.

    It has all users and groups under their own numbers, so that files still show whose they are. But for user 0 there is one group
    only, because a capability in a user namespace counts for those files alone whose user and group are both in it; unless it is to
    have rights over files.
    """

    def __init__(self, user: Account | None, *, over_files: bool) -> None:
        """To be made before the fork, for a command that is to run as *user*."""
        self._user = user
        uid, gid = (os.geteuid(), os.getegid()) if user is None else (user.uid, user.gid)
        self._outside, self._inside = socket.socketpair()
        # While /proc still is one that knows this process.
        self._users, self._groups = (
            everybody("uid"),
            everybody("gid") if uid or over_files else f"{gid} {gid} 1",
        )

    @classmethod
    def if_possible(cls, user: Account | None, *, over_files: bool) -> OwnNamespace | None:
        """Return one if it can be had."""
        return cls(user, over_files=over_files) if can_map_others() else None

    def enter(self) -> bool:
        """Enter it, and wait until it is mapped. The last use of capabilities outside must be over.

        Returns:
            Whether there is one: this machine may allow none.
        """
        self._outside.close()
        if self._user is not None and self._user.uid == 0:
            with step("privileges"):
                _become(self._user)  # inside there will be no groups to choose from
        try:
            unshare(CLONE_NEWUSER)
        except OSError:
            self._inside.close()
            return False
        self._inside.send(b"U")
        if not self._inside.recv(1):
            raise StepError("user namespace: mapping", "the process that does it has ended")
        self._inside.close()
        return True

    def serve(self) -> None:
        """Map it, once the child of this process is in, which is process 1 there.

        If that fails the child goes on waiting, to be killed.
        """
        self._inside.close()
        if self._outside.recv(1):
            map_process("/proc/1", self._users, self._groups)
            self._outside.send(b"M")
        self._outside.close()


def give_up(user: Account | None, keep: int = 0) -> None:
    """Become the user, without any capability, not to be traced, and bound to the parent's life.

    Args:
        user: whom to become; none to stay as we are.
        keep: capabilities that user 0 has all the same. For a process in a user namespace of its own.
    """
    if (os.geteuid() if user is None else user.uid) != 0:
        keep = 0
    with step("privileges"):
        empty_bounding_set(keep)
        if user is not None:
            _become(user)
        drop_capabilities(keep)
        die_with_parent(signal.SIGKILL)  # after all that would make the kernel forget it
        hide_memory()


def _become(user: Account) -> None:
    """Become *user*; with that, all but user 0 lose every capability."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
