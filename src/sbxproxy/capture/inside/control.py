"""What the proxy and this program tell each other, over a socket pair that keeps messages apart.

From here: ``F`` with the listening sockets, ``S`` from the command's process right before it is executed, ``T`` and a signal's number
when the command was stopped, and when a step failed ``E``, an error number, the step and the reason, with NUL between them. From the
proxy: ``G`` for go, ``K`` and a signal's number, ``C`` to continue the command and ``B`` to do so in the background. The end of the
stream means to either side that the other is gone.
"""

from __future__ import annotations

__all__ = ["FAILURE", "Control"]

import _socket as socket
import os
import select
import struct

from sbxproxy.capture.inside.steps import StepError

FAILURE = 125
"""The exit code of a failure that isn't the command's."""


class Control:
    """This program's end."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - positional only
        self._socket = socket.socket(fileno=descriptor)

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self._socket.fileno()

    def failed(self, error: BaseException) -> None:
        """Tell the proxy which step failed, and why."""
        if not isinstance(error, StepError):
            error = StepError("start", f"{type(error).__name__}: {error}")
        self._tell(f"E{error.number}\0{error.step}\0{error.reason}".encode(errors="backslashreplace"))

    def sockets(self, found: list[socket.socket]) -> None:
        """Hand the listening sockets over, and close them here."""
        rights = struct.pack(f"{len(found)}i", *[sock.fileno() for sock in found])
        self._socket.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        for sock in found:
            sock.close()

    def starting(self) -> None:
        """Let the proxy learn the process id of the sender, as it is outside: the kernel attaches that."""
        self._tell(b"S")

    def stopped(self, number: int) -> None:
        """Tell that a signal has stopped the command."""
        self._tell(b"T%d" % number)

    def receive(self) -> bytes:
        """Wait for a message from the proxy; empty if it is gone."""
        try:
            return self._socket.recv(64)
        except ConnectionError:
            return b""

    def gone(self) -> bool:
        """Tell whether the proxy is gone, without waiting."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def _tell(self, message: bytes) -> None:
        try:
            self._socket.send(message)
        except OSError:  # nobody is left to tell, which the caller will notice too
            return
