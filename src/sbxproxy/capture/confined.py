"""Start a command whose only way out is the proxy.

The listeners are handed over before the command is executed, so that there is no moment at which it could run unserved; and should the
proxy die, however suddenly, the whole sandbox dies with it.
"""

from __future__ import annotations

__all__ = ["Confined", "Exited", "Plan", "Stopped", "User", "launch"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from sbxproxy.capture.captured import Captured
from sbxproxy.capture.helper import Helper
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
            ConfigurationError: there is no command, or the user isn't ours to choose.
        """
        if not self.argv:
            raise ConfigurationError("there is no command to run")
        if self.user is not None and os.geteuid() != 0 and self.user.uid != os.geteuid():
            raise ConfigurationError("only root can run a command as another user")


@dataclass(frozen=True, slots=True)
class Stopped:
    """A signal has stopped the command; ``Confined.resume`` continues it."""

    signal: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The command has ended, and so has all that it left in its sandbox.

    Attributes:
        code: as a shell would show it: 126 if it could not be executed, 127 if it wasn't found, 128 + N after signal N.
    """

    code: int


class Confined(Captured):
    """A command in its sandbox, not yet executed until ``go``.

    Not more than one task may wait in ``next_change`` or ``wait``.

    Attributes:
        listeners: where its TCP connections arrive, all ports and both families; ``original_destination`` tells whereto.
        dns: UDP sockets at which its DNS queries arrive, whatever server they were sent to; answers go back by the same socket.
        pid: the command's process id as seen from here, 0 before ``go``.
    """

    def __init__(self, helper: Helper, listeners: list[trio.SocketListener], dns: list[trio.socket.SocketType]) -> None:
        """Made by ``launch``."""
        super().__init__(listeners, dns)
        self.pid = 0
        self._helper = helper
        self._exited: Exited | None = None

    def __repr__(self) -> str:
        state = "waiting" if not self.pid else f"pid {self.pid}" if self._exited is None else f"exited {self._exited.code}"
        return f"<Confined {state}>"

    async def go(self) -> None:
        """Execute the command; returns when its process is there.

        Raises:
            CaptureUnavailable: a last step failed, and the command was not executed.
        """
        self._helper.tell(b"G")
        message = await self._helper.receive()
        if message.kind == "S":
            self.pid = message.pid

    async def next_change(self) -> Stopped | Exited:
        """Wait until the command stops or ends.

        Raises:
            CaptureUnavailable: a last step failed, and the command was not executed.
        """
        while self._exited is None:
            message = await self._helper.receive()
            if message.kind == "T":
                return Stopped(int(message.text))
            if not message.kind:
                self._exited = Exited(await self._helper.ended())
        return self._exited

    async def wait(self) -> int:
        """Wait for the command's end, however often it stops meanwhile; its exit code.

        Raises:
            CaptureUnavailable: a last step failed, and the command was not executed.
        """
        while True:
            change = await self.next_change()
            if isinstance(change, Exited):
                return change.code

    def signal(self, number: int) -> None:
        """Send the command a signal; nothing happens if it has ended.

        Raises:
            trio.ClosedResourceError: the sandbox was closed.
        """
        self._helper.tell(b"K%d" % number)

    def resume(self, *, foreground: bool = True) -> None:
        """Continue the command after ``Stopped``, and with ``Plan.foreground`` its whole process group.

        Args:
            foreground: give it the terminal again.

        Raises:
            trio.ClosedResourceError: the sandbox was closed.
        """
        self._helper.tell(b"C" if foreground else b"B")

    async def aclose(self) -> None:
        """End whatever runs in the sandbox, and close its sockets; again is harmless."""
        self.close_sockets()
        await self._helper.aclose()


async def launch(plan: Plan) -> Confined:
    """Make a sandbox for a command; it waits there for ``go``.

    To be called from the thread that lives as long as the proxy: when it ends, the sandbox does. The caller closes what comes back.

    Raises:
        CaptureUnavailable: a step failed; it says which, why and what would help. Nothing was executed.
    """
    user = plan.user
    orders = {
        "do": "run",
        "argv": list(plan.argv),
        "environment": dict(plan.environment),
        "directory": os.fspath(plan.directory or Path.cwd()),
        "user": None if user is None or os.geteuid() != 0 else [user.uid, user.gid, list(user.groups)],
        "masks": [os.fspath(path) for path in plan.masks],
        "keep": [os.fspath(path) for path in plan.keep],
        "binds": [[os.fspath(source), os.fspath(target)] for target, source in plan.binds.items()],
        "foreground": plan.foreground,
    }
    helper = Helper.start(orders, stdin=plan.stdin, stdout=plan.stdout, stderr=plan.stderr)
    try:
        return Confined(helper, *await helper.receive_sockets())
    except BaseException:
        await helper.aclose()
        raise
