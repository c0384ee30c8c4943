"""The proxy's end of the program in ``inside``, in an event loop: reading what it says, and ending it."""

from __future__ import annotations

__all__ = ["Helper"]

import os
import signal
import socket
from contextlib import suppress

import trio

from sbxproxy.capture.starting import PATIENCE, Message, Started, early_end, read, room


class Helper:
    """The running program; ``aclose`` ends it and everything in its sandbox."""

    def __init__(self, started: Started) -> None:
        """Take *started* over: closing that does nothing any more."""
        self.process = started.process
        self._plain = started.control
        self._plain.setblocking(False)  # noqa: FBT003 - positional only
        self._control = trio.socket.from_stdlib_socket(started.control)
        self._pidfd, started.pidfd = started.pidfd, -1
        self._sockets, started.sockets = started.sockets, ()

    async def receive(self) -> Message:
        """Wait for what the program says next.

        Raises:
            CaptureUnavailable: it says that a step failed.
        """
        try:
            data, ancillary, _, _ = await self._control.recvmsg(*room())
        except ConnectionError:
            data, ancillary = b"", []
        return read(data, ancillary)

    async def receive_sockets(self) -> tuple[list[trio.SocketListener], list[trio.socket.SocketType]]:
        """Wait for the listening sockets, if they aren't there yet: for TCP, and for DNS over UDP.

        Raises:
            CaptureUnavailable: a step failed.
        """
        sockets = self._sockets
        if not sockets:
            message = await self.receive()
            if message.kind != "F":
                raise early_end(await self.ended())
            sockets = message.sockets
        listeners: list[trio.SocketListener] = []
        dns: list[trio.socket.SocketType] = []
        for sock in sockets:
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
                with trio.move_on_after(PATIENCE):
                    await self.ended()
                if self.process.returncode is None:
                    with suppress(ProcessLookupError):
                        self.process.send_signal(signal.SIGKILL)
                    await self.ended()
                os.close(self._pidfd)
                self._pidfd = -1
        await trio.lowlevel.checkpoint()
