"""What a confined command is to be, and the start of it. No event loop is needed for that: it takes longer to import than to wait."""

from __future__ import annotations

__all__ = ["Plan", "User", "begin"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sbxproxy.capture.starting import Started, start
from sbxproxy.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Whom a command runs as; only root can choose.

    Attributes:
        uid: the user.
        gid: the group.
        groups: further groups.
    """

    uid: int
    gid: int
    groups: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run, and what it sees.

    Attributes:
        argv: the program and its arguments; no shell. It is looked for in ``environment``'s ``PATH``.
        environment: all of its variables.
        directory: where it starts; the current directory by default.
        user: whom it runs as, if not as we do.
        over_files: for a command that stays root: let it keep root's rights over files and users (CAP_CHOWN, CAP_DAC_OVERRIDE,
            CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETFCAP, CAP_SETGID, CAP_SETUID), which package managers need. It can then read and
            change every file that it sees, whoever owns it, but nothing of its confinement.
        masks: places in the file system to hide; see ``sbxproxy.capture.masks``. One that doesn't exist is passed over.
        keep: places in masked directories that stay as they are.
        binds: files to show instead of others, by the path at which they are to be seen; read-only.
        foreground: give it a process group of its own, and with it the terminal that is its standard input.
        stdin: a descriptor for its standard input; ours by default.
        stdout: the same for its standard output.
        stderr: the same for its standard error.
    """

    argv: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    directory: Path | None = None
    user: User | None = None
    over_files: bool = False
    masks: Sequence[Path] = ()
    keep: Sequence[Path] = ()
    binds: Mapping[Path, Path] = field(default_factory=dict)
    foreground: bool = False
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be carried out.

        Raises:
            ConfigurationError: there is no command, or the user, or its rights, aren't ours to choose.
        """
        if not self.argv:
            raise ConfigurationError("there is no command to run")
        if self.user is not None and os.geteuid() != 0 and self.user.uid != os.geteuid():
            raise ConfigurationError("only root can run a command as another user")
        if self.over_files and (os.geteuid() != 0 or (self.user is not None and self.user.uid != 0)):
            raise ConfigurationError("only root has rights over files that it could keep")


def begin(plan: Plan) -> Started:
    """Start making a sandbox for a command, and return while that is under way.

    To be called from the thread that lives as long as the proxy: when it ends, the sandbox does. The caller closes what comes back, or
    gives it to ``sbxproxy.capture.confined.take_over``.

    Raises:
        CaptureUnavailable: it can't be started.
    """
    user = plan.user
    orders = {
        "do": "run",
        "argv": [_plain(part) for part in plan.argv],
        "environment": {_plain(name): _plain(value) for name, value in plan.environment.items()},
        "directory": os.fspath(plan.directory or Path.cwd()),
        "user": None if user is None or os.geteuid() != 0 else [user.uid, user.gid, list(user.groups)],
        "over_files": plan.over_files,
        "masks": [os.fspath(path) for path in plan.masks],
        "keep": [os.fspath(path) for path in plan.keep],
        "binds": [[os.fspath(source), os.fspath(target)] for target, source in plan.binds.items()],
        "foreground": plan.foreground,
    }
    return start(orders, stdin=plan.stdin, stdout=plan.stdout, stderr=plan.stderr)


def _plain(text: str) -> str:
    """Return the same as no subclass of ``str``, which couldn't be passed on."""
    return str.__str__(text)
