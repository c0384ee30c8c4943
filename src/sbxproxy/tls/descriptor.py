"""An established TLS connection with OpenSSL itself on the socket: it reads and writes records without our help.

Half the time of a small message is spent carrying its record through memory buffers and a stream. So once a handshake is
done, which may begin with bytes that were read ahead, the memory buffers are replaced by the descriptor. pyOpenSSL has a
word for that only before a handshake; with a version of it that is built differently, everything stays in memory.

A descriptor's number may be another connection's once it is closed. So every step makes sure that the socket is open.
"""

from __future__ import annotations

__all__ = ["Descriptor", "Truncated"]

import socket
from typing import Any

import trio
from OpenSSL import SSL

_RECORD = 16 * 1024
_BULK = 4 * 1024
"""From records of this size on another one is likely to be there already; looking for one that isn't costs an exception."""

_INTERNALS = {"_ssl", "_into_ssl", "_from_ssl"}


class Truncated(Exception):  # noqa: N818 - news, which the stream words for its caller
    """The peer ended the connection without close_notify. OpenSSL sends nothing any more either."""


class Descriptor:
    """OpenSSL's *connection* on *sock*, which is the caller's to close. One task may send while another receives."""

    __slots__ = ("_connection", "_error", "_likely", "_sock")

    def __init__(self, connection: SSL.Connection, sock: socket.socket) -> None:
        """Take over; see ``put_on``."""
        self._connection = connection
        self._sock = sock
        self._error: Exception | None = None
        self._likely = False

    @classmethod
    def put_on(cls, connection: SSL.Connection, sock: socket.socket) -> Descriptor | None:
        """Replace the memory buffers of *connection* by *sock*; ``None`` if that can't be done, and nothing is changed.

        Both buffers are empty, and nothing was read ahead from the socket.
        """
        internal: Any = connection
        set_fd = getattr(getattr(SSL, "_lib", None), "SSL_set_fd", None)
        if set_fd is None or not vars(connection).keys() >= _INTERNALS or sock.fileno() < 0:
            return None
        if set_fd(internal._ssl, sock.fileno()) != 1:  # noqa: SLF001  # pragma: no cover - out of memory
            return None
        internal._into_ssl = internal._from_ssl = None  # noqa: SLF001 - freed with that
        return cls(connection, sock)

    async def receive(self, limit: int) -> bytes:
        """Return what the peer sent, at most *limit* bytes; ``b""`` at close_notify. It is a checkpoint.

        Raises:
            OpenSSL.SSL.Error: TLS failed; an alert was sent if there was room for it.
            Truncated: the connection ended without close_notify.
            trio.BrokenResourceError: it broke.
            trio.ClosedResourceError: the socket was closed, perhaps while this waited.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        if not self._likely:  # nothing is left in OpenSSL, and seldom something in the kernel
            await trio.lowlevel.wait_readable(self._open())
            waited = True
        while True:
            self._open()
            try:
                plaintext = self._read(limit)
            except SSL.WantReadError:
                await trio.lowlevel.wait_readable(self._sock)
            except SSL.WantWriteError:  # an answer to a key update finds no room
                await trio.lowlevel.wait_writable(self._sock)
            else:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return plaintext
            waited = True

    def _read(self, limit: int) -> bytes:
        """Read once, and go on while there is likely to be more; what fails behind the first read fails next time."""
        connection = self._connection
        self._likely = False
        parts: list[bytes] = []
        try:
            while True:
                part = connection.recv(min(limit, _RECORD))
                parts.append(part)
                limit -= len(part)
                if limit <= 0:
                    self._likely = True
                    break
                if len(part) < _BULK:
                    break
        except (SSL.WantReadError, SSL.WantWriteError):
            if not parts:
                raise
        except SSL.ZeroReturnError:
            self._likely = True  # OpenSSL will say so again, the kernel may not
        except SSL.Error as failure:
            error = _broken(failure) if isinstance(failure, SSL.SysCallError) else failure
            if not parts:
                raise error from None
            self._error = error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send *data*, giving others a turn only if the kernel does not take it all.

        Failed or cancelled, it has sent an unknown part, and nothing can follow.

        Raises:
            OpenSSL.SSL.Error: TLS failed.
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: the socket was closed, perhaps while this waited.
        """
        connection = self._connection
        view: bytes | bytearray | memoryview = data
        while True:
            self._open()
            try:
                sent = connection.send(view)
            except SSL.WantWriteError:
                await trio.lowlevel.wait_writable(self._sock)
                continue
            except SSL.SysCallError as error:
                raise _broken(error) from None
            if sent == len(view):
                return
            view = memoryview(view)[sent:]

    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""
        await trio.lowlevel.wait_writable(self._open())

    async def say_goodbye(self) -> None:
        """Send a close_notify. Nobody else is sending."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._sock.fileno() >= 0:
            try:
                self._connection.shutdown()
            except SSL.WantWriteError:
                await trio.lowlevel.wait_writable(self._sock)
                continue
            except SSL.Error:
                pass
            return

    def wake(self) -> None:
        """Let tasks that wait find the connection closed; the socket will be."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)

    def _open(self) -> socket.socket:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError("this TLS stream was closed")
        return self._sock


def _broken(error: SSL.SysCallError) -> Exception:
    """Tell an end without close_notify, which has no error number, from a connection that broke."""
    if error.args and error.args[0] == -1:
        return Truncated()
    return trio.BrokenResourceError("the connection broke")
