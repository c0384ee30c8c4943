"""An established TLS connection with OpenSSL itself on the socket: it reads and writes records without our help.

Half the time of a small message is spent carrying its record through memory buffers and a stream. So once a handshake is
done, which may begin with bytes that were read ahead, the memory buffers are replaced by the descriptor. pyOpenSSL has a
word for that only before a handshake, and what it puts round reading and writing takes half as long again as they do. So
this works on what is below it; with a version of it that is built differently, everything stays in memory.

A descriptor's number may be another connection's once it is closed. So every step makes sure that the socket is open.
"""

from __future__ import annotations

__all__ = ["Descriptor", "Truncated"]

import socket
import threading
from typing import Any

import trio
from OpenSSL import SSL

_RECORD = 16 * 1024
_BULK = 4 * 1024
"""From records of this size on another one is likely to be there already; looking for one that isn't costs an exception."""

_INTERNALS = {"_ssl", "_into_ssl", "_from_ssl"}
_CALLS = {"SSL_set_fd", "SSL_read", "SSL_write"}
_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)


class _Rooms(threading.local):
    """Room for a record in each thread, as OpenSSL runs without the interpreter's lock."""

    def __init__(self) -> None:
        self.room = _ffi.new("char[]", _RECORD)


_rooms = _Rooms() if _ffi is not None else None


class Truncated(Exception):  # noqa: N818 - news, which the stream words for its caller
    """The peer ended the connection without close_notify. OpenSSL sends nothing any more either."""


class Descriptor:
    """OpenSSL's *connection* on *sock*, which is the caller's to close. One task may send while another receives."""

    __slots__ = ("_connection", "_error", "_likely", "_room", "_sock", "_ssl")

    def __init__(self, connection: Any, sock: socket.socket) -> None:
        """Take over; see ``put_on``."""
        assert _rooms is not None
        self._connection = connection
        self._ssl = connection._ssl  # noqa: SLF001
        self._room = _rooms.room
        self._sock = sock
        self._error: Exception | None = None
        self._likely = False

    @classmethod
    def put_on(cls, connection: SSL.Connection, sock: socket.socket) -> Descriptor | None:
        """Replace the memory buffers of *connection* by *sock*; ``None`` if that can't be done, and nothing is changed.

        Both buffers are empty, and nothing was read ahead from the socket.
        """
        internal: Any = connection
        known = vars(connection).keys() >= _INTERNALS and all(hasattr(_lib, call) for call in _CALLS)
        if _rooms is None or not known or not hasattr(connection, "_raise_ssl_error") or sock.fileno() < 0:
            return None
        if _lib.SSL_set_fd(internal._ssl, sock.fileno()) != 1:  # noqa: SLF001  # pragma: no cover - out of memory
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
        waited = False
        if not self._likely:  # nothing is left in OpenSSL, and seldom something in the kernel
            await trio.lowlevel.wait_readable(self.number())
            waited = True
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            number = self.number()
            try:
                plaintext = self._read(limit)
            except SSL.WantReadError:
                await trio.lowlevel.wait_readable(number)
            except SSL.WantWriteError:  # an answer to a key update finds no room
                await trio.lowlevel.wait_writable(number)
            else:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return plaintext
            waited = True

    @property
    def is_drained(self) -> bool:
        """OpenSSL has nothing left to give, so that whatever comes next makes the socket readable."""
        return not self._likely

    def read_now(self, limit: int) -> bytes | None:
        """Return what came by now as ``receive`` does, ``None`` if that is not yet anything; raises what ``receive`` raises."""
        self.number()
        try:
            return self._read(limit)
        except (SSL.WantReadError, SSL.WantWriteError):
            return None

    def _read(self, limit: int) -> bytes:
        """Read once, and go on while there is likely to be more; what fails behind the first read fails next time."""
        room = self._room
        size: int = _lib.SSL_read(self._ssl, room, min(_RECORD, limit))
        if 0 < size < _BULK:
            self._likely = size == limit
            part: bytes = _ffi.buffer(room, size)[:]
            return part
        return self._read_on(limit, size)

    def _read_on(self, limit: int, size: int) -> bytes:
        """Take what a first read of *size* came to, and see what else there is."""
        room = self._room
        parts: list[bytes] = []
        self._likely = False
        try:
            while True:
                if size <= 0:
                    self._connection._raise_ssl_error(self._ssl, size)  # noqa: SLF001
                parts.append(_ffi.buffer(room, size)[:])
                limit -= size
                self._likely = limit <= 0
                if size < _BULK or limit <= 0:
                    break
                size = _lib.SSL_read(self._ssl, room, min(_RECORD, limit))
        except SSL.WantReadError:
            if not parts:
                raise
        except SSL.WantWriteError:
            self._likely = True  # what it wants is not that the socket be readable
            if not parts:
                raise
        except SSL.ZeroReturnError:
            self._likely = True  # OpenSSL will say so again, the kernel may not
        except SSL.Error as failure:
            error = _broken(failure) if isinstance(failure, SSL.SysCallError) else failure
            self._likely = True
            if not parts:
                raise error from None
            self._error = error
        return b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt and send as much of *data* (not empty) as goes without waiting; return how much, perhaps none.

        What did not go has to follow, from its beginning, before anything else.

        Raises:
            OpenSSL.SSL.Error: TLS failed.
            Truncated, trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: the socket was closed.
        """
        self.number()
        size: int
        if type(data) is bytes:
            size = _lib.SSL_write(self._ssl, data, len(data))
        else:
            with _ffi.from_buffer(data) as raw:
                size = _lib.SSL_write(self._ssl, raw, len(raw))
        if size > 0:
            return size
        try:
            self._connection._raise_ssl_error(self._ssl, size)  # noqa: SLF001
        except SSL.WantWriteError:
            return 0
        except SSL.SysCallError as error:
            raise _broken(error) from None
        raise SSL.Error  # pragma: no cover - that something failed, and nothing did

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of *data*, waiting only where the kernel has no room; raises what ``write`` raises.

        Failed or cancelled, it has sent an unknown part, and nothing can follow.
        """
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                with view[start : start + _RECORD] as record:
                    sent = self.write(record)
                if not sent:
                    await trio.lowlevel.wait_writable(self.number())
                start += sent

    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""
        await trio.lowlevel.wait_writable(self.number())

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

    def number(self) -> int:
        """Return the descriptor's number, which is valid until the next ``await``."""
        number = self._sock.fileno()
        if number < 0:
            raise trio.ClosedResourceError("this TLS stream was closed")
        return number


def _broken(error: SSL.SysCallError) -> Exception:
    """Tell an end without close_notify, which has no error number, from a connection that broke."""
    if error.args and error.args[0] == -1:
        return Truncated()
    return trio.BrokenResourceError("the connection broke")
