"""Start a command whose only way out is the proxy.

The listeners are handed over before the command is executed, so that there is no moment at which it could run unserved; and should the
proxy die, however suddenly, the whole sandbox dies with it.
"""

from __future__ import annotations

__all__ = ["Confined", "Exited", "Stopped", "launch", "take_over"]

from dataclasses import dataclass

import trio

from sbxproxy.capture.captured import Captured
from sbxproxy.capture.helper import Helper
from sbxproxy.capture.plan import Plan, begin
from sbxproxy.capture.starting import Started


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
        """Execute the command, if it hasn't been; returns when its process is there.

        Raises:
            CaptureUnavailable: a last step failed, and the command was not executed.
        """
        if self.pid:
            return
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
    return await take_over(begin(plan))


async def take_over(started: Started) -> Confined:
    """Wait until the sandbox that ``begin`` has started is there; owns *started* from now on.

    Raises:
        CaptureUnavailable: as for ``launch``.
    """
    helper = Helper(started)
    try:
        confined = Confined(helper, *await helper.receive_sockets())
        confined.pid = started.pid
    except BaseException:
        await helper.aclose()
        raise
    return confined
