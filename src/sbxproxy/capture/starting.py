"""Starts the program in ``inside``, and speaks with it as long as there is no event loop.

It is started with ``subprocess`` in the caller's own thread: Trio would fork in a worker thread, whose end a few seconds later would
pass for the proxy's end, and kill the sandbox.
"""

from __future__ import annotations

__all__ = ["PATIENCE", "Message", "Started", "early_end", "read", "room", "start"]

import array
import marshal
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbxproxy.capture.unavailable import CaptureUnavailable

_HOME = str(Path(__file__).resolve().parents[2])
_CODE = """
import sys
home = sys.argv.pop(1)
for name in "sbxproxy", "sbxproxy.capture":
    package = type(sys)(name)
    package.__path__ = [home + "/" + name.replace(".", "/")]
    sys.modules[name] = package
from sbxproxy.capture.inside.main import main
main()
"""
"""It finds its modules, and nothing else beside the standard library. The packages that they are in are put there empty: what these
import by themselves takes longer than all the rest."""

_INHERITED = ("LD_LIBRARY_PATH",)  # some interpreters need it to start

_CREDENTIALS = struct.Struct("3i")
_MOST_SOCKETS = 8

PATIENCE = 5.0
"""Seconds that the program gets to end by itself when its socket is closed. It takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the program; an empty kind is the end.

    Attributes:
        kind: a letter; see ``inside.control``.
        text: what follows it.
        sockets: what came with it, for the receiver to close.
        pid: the sender's process id, as seen from here.
    """

    kind: str
    text: str = ""
    sockets: tuple[socket.socket, ...] = ()
    pid: int = 0


def room() -> tuple[int, int, int]:
    """Return what ``recvmsg`` must be given for one message."""
    return 65536, socket.CMSG_SPACE(4 * _MOST_SOCKETS) + socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC


def read(data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> Message:
    """Make sense of what ``recvmsg`` returned.

    Raises:
        CaptureUnavailable: it says that a step failed.
    """
    sockets: list[socket.socket] = []
    pid = 0
    for level, kind, value in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            rights = array.array("i")
            rights.frombytes(value[: len(value) // rights.itemsize * rights.itemsize])
            sockets += [socket.socket(fileno=number) for number in rights]
        elif kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(value)[0]
    text = data.decode()
    if text[:1] == "E":
        number, step, reason = text[1:].split("\0", 2)
        raise CaptureUnavailable(step, reason, int(number))
    return Message(text[:1], text[1:], tuple(sockets), pid)


class Started:
    """The running program. ``close`` ends it and everything in its sandbox, unless a ``Helper`` has taken it over.

    Attributes:
        process: the program.
        control: the socket that it speaks by.
        pidfd: tells of its end; -1 when this has been closed or taken over.
        sockets: the listening sockets, once ``await_sandbox`` or ``go`` has received them.
        pid: the command's process id, once ``go`` has let it be executed.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, pidfd: int) -> None:
        """Take over all three; see ``start``."""
        self.process = process
        self.control = control
        self.pidfd = pidfd
        self.sockets: tuple[socket.socket, ...] = ()
        self.pid = 0

    def await_sandbox(self) -> None:
        """Wait until the sandbox is there; again is harmless.

        Raises:
            CaptureUnavailable: a step failed.
        """
        if self.sockets:
            return
        message = self._receive()
        if message.kind != "F":
            raise early_end(self.wait())
        self.sockets = message.sockets

    def go(self) -> None:
        """Wait until the sandbox is there, and have the command executed. Its connections wait for whoever takes this over.

        Raises:
            CaptureUnavailable: a step failed, and the command was not executed.
        """
        self.await_sandbox()
        with suppress(ConnectionError):
            self.control.send(b"G")
        message = self._receive()
        if message.kind == "S":
            self.pid = message.pid

    def _receive(self) -> Message:
        try:
            data, ancillary, _, _ = self.control.recvmsg(*room())
        except ConnectionError:
            data, ancillary = b"", []
        return read(data, ancillary)

    def wait(self) -> int:
        """Wait for the program's end; its exit code, 128 + N after signal N. That of the sandbox's command, if there was one."""
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """End the program and its sandbox, and wait for that; again is harmless."""
        if self.pidfd < 0:
            return
        self.control.close()
        for sock in self.sockets:
            sock.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.pidfd)
        self.pidfd = -1


def early_end(code: int) -> CaptureUnavailable:
    """Tell that the program ended before the sandbox was there."""
    return CaptureUnavailable("start", f"the helper ended early, with code {code}")


def start(
    orders: dict[str, Any],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Started:
    """Start the program with *orders*; it begins at once.

    Raises:
        CaptureUnavailable: it can't be started.
    """
    if sys.platform != "linux":
        raise CaptureUnavailable("start", "transparent capture works on Linux only")
    if not sys.executable:
        raise CaptureUnavailable("start", "this program has no Python interpreter of its own to start")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with theirs, os.fdopen(os.memfd_create("orders"), "wb", buffering=0) as file:
            file.write(marshal.dumps(orders))  # may be larger than a message on a socket
            numbers = (theirs.fileno(), file.fileno())
            argv = [sys.executable, "-I", "-S", "-c", _CODE, _HOME, *map(str, numbers)]
            process = subprocess.Popen(  # noqa: S603 - our own program
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(*numbers, *pass_fds),
                env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            )
        return Started(process, ours, os.pidfd_open(process.pid))
    except OSError as error:
        ours.close()
        raise CaptureUnavailable("start", error.strerror or str(error), error.errno or 0) from None
