"""The proxy's end of the program in ``inside``: starting it, and reading what it says.

It is started with ``subprocess`` in the caller's own thread: Trio would fork in a worker thread, whose end a few seconds later would
pass for the proxy's end, and kill the sandbox.
"""

from __future__ import annotations

__all__ = ["Helper", "Message"]

import array
import json
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

import trio

from sbxproxy.capture.unavailable import CaptureUnavailable

_HOME = str(Path(__file__).resolve().parents[2])
_CODE = "import sys; sys.path.append(sys.argv.pop(1)); from sbxproxy.capture.inside.main import main; main()"
"""Appended, so that nothing beside the package can stand in for the standard library."""

_INHERITED = ("LD_LIBRARY_PATH",)  # some interpreters need it to start

_LARGEST = 65536
_CREDENTIALS = struct.Struct("3i")
_MOST_SOCKETS = 8
_PATIENCE = 5.0
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


class Helper:
    """The running program; ``aclose`` ends it and everything in its sandbox."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, pidfd: int) -> None:
        """Take over all three; see ``start``."""
        self.process = process
        self._plain = control
        self._control = trio.socket.from_stdlib_socket(control)
        self._pidfd = pidfd

    @classmethod
    def start(
        cls,
        orders: dict[str, Any],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Helper:
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
                file.write(json.dumps(orders).encode())  # may be larger than a message on a socket
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
            return cls(process, ours, os.pidfd_open(process.pid))
        except OSError as error:
            ours.close()
            raise CaptureUnavailable("start", error.strerror or str(error), error.errno or 0) from None

    async def receive(self) -> Message:
        """Wait for what the program says next.

        Raises:
            CaptureUnavailable: it says that a step failed.
        """
        space = socket.CMSG_SPACE(4 * _MOST_SOCKETS) + socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            data, ancillary, _, _ = await self._control.recvmsg(_LARGEST, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            data, ancillary = b"", []
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
            told = json.loads(text[1:])
            raise CaptureUnavailable(told["step"], told["reason"], told["number"])
        return Message(text[:1], text[1:], tuple(sockets), pid)

    async def receive_sockets(self) -> tuple[list[trio.SocketListener], list[trio.socket.SocketType]]:
        """Wait for the listening sockets: for TCP, and for DNS over UDP.

        Raises:
            CaptureUnavailable: a step failed.
        """
        message = await self.receive()
        if message.kind != "F":
            raise CaptureUnavailable("start", f"the helper ended early, with code {await self.ended()}")
        listeners: list[trio.SocketListener] = []
        dns: list[trio.socket.SocketType] = []
        for sock in message.sockets:
            wrapped = trio.socket.from_stdlib_socket(sock)
            if sock.type == socket.SOCK_STREAM:
                listeners.append(trio.SocketListener(wrapped))
            else:
                dns.append(wrapped)
        return listeners, dns

    def tell(self, message: bytes) -> None:
        """Say something to the program; nothing happens if it has ended.

        Raises:
            trio.ClosedResourceError: after ``aclose``.
        """
        if self._control.fileno() < 0:
            raise trio.ClosedResourceError("this sandbox was closed")
        with suppress(ConnectionError, BlockingIOError):
            self._plain.send(message)  # a small message at once or not at all: no need to wait as with a stream

    async def ended(self) -> int:
        """Wait for the program's end; its exit code, 128 + N after signal N."""
        if self.process.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        code = self.process.wait()  # ended already
        return code if code >= 0 else 128 - code

    async def aclose(self) -> None:
        """End the program and its sandbox, and wait for that; again is harmless."""
        with trio.CancelScope(shield=True):
            self._control.close()
            if self._pidfd >= 0:
                with trio.move_on_after(_PATIENCE):
                    await self.ended()
                if self.process.returncode is None:
                    with suppress(ProcessLookupError):
                        self.process.send_signal(signal.SIGKILL)
                    await self.ended()
                os.close(self._pidfd)
                self._pidfd = -1
        await trio.lowlevel.checkpoint()
