"""Listeners that know their bounds, and what they are bound to.

A connection costs two descriptors, so ``BoundedListener`` accepts one only when a slot is free; those beyond
wait in the kernel's backlog. The surprising part is the order: it first waits until a connection is there,
then for a slot, so that a thousand sandboxes' idle listeners hold none.
"""

from __future__ import annotations

__all__ = ["BoundedListener", "Slots", "UnixListener", "describe", "local_endpoints", "open_unix_listener"]

import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import trio

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.errors import ConfigurationError, LimitError
from sbxproxy.net.bare import BareStream
from sbxproxy.net.sockets import AnySocket, drop, enable_keepalive

_log = logging.getLogger("sbxproxy.listen")

BACKLOG = 1024
"""Connections that the kernel keeps for us; Linux cuts it to ``net.core.somaxconn``."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of ``accept`` that leave the connection in the backlog, so that trying again at once would spin."""

GONE = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "ENETDOWN", "ENONET", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH"
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Errors of ``accept`` that are the new connection's own, which is gone with them (accept(2))."""

RUN = 8
"""Connections accepted in a row before others get a turn."""

PAUSE = 0.1
"""Seconds before ``accept`` is tried again after that."""

QUIET = 60.0
"""Seconds between two warnings of it."""

_Stream = TypeVar("_Stream", bound=trio.abc.AsyncResource)


class Slots:
    """A bound on things open at once, perhaps within a wider bound that others share.

    Attributes:
        limit: the name of the ``Limits`` field that it stands for.
        free: how many more this bound allows; the wider one may allow fewer. It is read only.
    """

    __slots__ = ("_line", "_total", "_within", "free", "limit")

    def __init__(self, total: int, *, limit: str = "flows", within: Slots | None = None) -> None:
        """Allow *total* at once, each of which takes a slot of *within* too."""
        self.limit = limit
        self.free = self._total = total
        self._line: trio.lowlevel.ParkingLot | None = None  # while somebody waits
        self._within = within

    async def acquire(self) -> None:
        """Take a slot, waiting in line for one. Cancelled, nothing is taken."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.free:
            self.free -= 1
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            if self._line is None:
                self._line = trio.lowlevel.ParkingLot()
            await self._line.park()
        if self._within is not None:
            try:
                await self._within.acquire()
            except BaseException:
                self._give_back()
                raise

    def acquire_nowait(self) -> None:
        """Take a slot.

        Raises:
            LimitError: none is free; it names the bound that was reached.
        """
        if not self.free:
            raise LimitError(self.limit)
        if self._within is not None:
            self._within.acquire_nowait()
        self.free -= 1

    def release(self) -> None:
        """Give a slot back.

        Raises:
            ValueError: more are given back than were taken.
        """
        self._give_back()
        if self._within is not None:
            self._within.release()

    def _give_back(self) -> None:
        if self._line is not None:
            if self._line.unpark():  # who goes first in line has it now
                return
            self._line = None
        if self.free >= self._total:
            raise ValueError("a slot was given back that was never taken")
        self.free += 1

    def bound(self, handler: Callable[[_Stream], Awaitable[object]]) -> Callable[[_Stream], Awaitable[None]]:
        """Make a handler for ``trio.serve_listeners`` that gives back what a ``BoundedListener`` took.

        It runs *handler*, closes the stream if that is not done yet, and then gives the slot back, so that a
        free slot means free descriptors.
        """

        async def handle(stream: _Stream) -> None:
            try:
                await handler(stream)
            finally:
                try:
                    await drop(stream)
                finally:
                    self.release()

        return handle


class BoundedListener(trio.abc.Listener[trio.abc.Stream]):
    """*inner*, accepting only while a slot is free; serve it with ``slots.bound(handler)``.

    Each stream returned by ``accept`` holds one slot; it is a ``BareStream`` where *inner* listens on a socket. This
    object owns *inner* and closes it.

    Attributes:
        inner: the listener below.
        slots: the bound.
    """

    __slots__ = ("_below", "_run", "_socket", "_warn_again", "inner", "slots")

    def __init__(self, inner: trio.abc.Listener[Any], slots: Slots) -> None:
        """Wrap *inner*; the sockets that it accepts are probed by keepalive and don't delay where they are TCP."""
        self.inner = inner
        self.slots = slots
        self._run = 0
        self._warn_again = 0.0
        self._socket: socket.socket | None = None
        self._below = below = _listening_socket(inner)
        if below is not None and below.fileno() >= 0:
            enable_keepalive(below)
            if below.family != socket.AF_UNIX:
                below.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
            self._socket = _Borrowed(below)

    async def accept(self) -> trio.abc.Stream:
        """Wait for a connection and for a slot.

        Running out of descriptors or memory does not raise: it is logged once a minute and tried again. Nor does a
        connection that is gone before it is accepted.

        Raises:
            trio.ClosedResourceError: the listener was closed.
            OSError: from the inner listener, anything else.
        """
        while True:
            self._run += 1
            if self._run > RUN:
                self._run = 0
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.checkpoint_if_cancelled()
            await self._take_slot()
            try:
                return await self.inner.accept() if self._socket is None else self._accept(self._socket)
            except BlockingIOError:
                self.slots.release()
                await self._wait_for_connection()
                continue
            except OSError as error:
                self.slots.release()
                if error.errno in GONE:
                    continue
                if error.errno not in EXHAUSTED:
                    raise
                self._warn(error)
            except BaseException:
                self.slots.release()
                raise
            await trio.sleep(PAUSE)

    async def _take_slot(self) -> None:
        """Take a slot, but wait for one only once there is a connection that needs it."""
        try:
            self.slots.acquire_nowait()
        except LimitError:
            if self._socket is not None:
                await self._wait_for_connection()
            await self.slots.acquire()

    def _accept(self, sock: socket.socket) -> BareStream:
        if self._is_closed():
            raise trio.ClosedResourceError("this listener was closed")
        accepted, _ = sock.accept()
        accepted.setblocking(False)  # noqa: FBT003 - positional only
        return BareStream(accepted)

    def _is_closed(self) -> bool:
        """Tell whether the listener below was closed: the number may be another's by now."""
        return self._below is None or self._below.fileno() < 0

    async def _wait_for_connection(self) -> None:
        self._run = 0
        if self._below is None or self._is_closed():
            raise trio.ClosedResourceError("this listener was closed")
        await trio.lowlevel.wait_readable(self._below)

    def _warn(self, error: OSError) -> None:
        now = trio.current_time()
        if now >= self._warn_again:
            self._warn_again = now + QUIET
            _log.warning("can't accept on %s: %s; trying again", describe(self), os.strerror(error.errno or 0))

    async def aclose(self) -> None:
        """Close the inner listener; slots of accepted streams stay taken."""
        self._socket = None
        await self.inner.aclose()


class _Borrowed(socket.socket):
    """A socket object over a descriptor that another object owns; nothing is closed with it.

    Family and type are plain numbers: ``accept`` asks for them each time, and as enumerations they take as long as the
    system call.
    """

    def __init__(self, owner: AnySocket) -> None:
        self._kind = int(owner.family), int(owner.type)
        super().__init__(*self._kind, owner.proto, fileno=owner.fileno())

    @property
    def family(self) -> int:  # type: ignore[override]
        return self._kind[0]

    @property
    def type(self) -> int:  # type: ignore[override]
        return self._kind[1]

    def __del__(self) -> None:
        self.detach()


class UnixListener(trio.abc.Listener[trio.SocketStream]):
    """A listener on a socket in the file system; made by ``open_unix_listener``.

    Attributes:
        inner: the plain listener.
        path: where it is.
    """

    __slots__ = ("_identity", "inner", "path")

    def __init__(self, inner: trio.SocketListener, path: Path) -> None:
        """Take over *inner*, bound to *path*."""
        self.inner = inner
        self.path = path
        self._identity = _identity(path)

    async def accept(self) -> trio.SocketStream:
        """Accept a connection."""
        return await self.inner.accept()

    async def aclose(self) -> None:
        """Close, and remove the socket from the file system if it is still ours."""
        if self.inner.socket.fileno() >= 0:
            with suppress(OSError):
                if _identity(self.path) == self._identity:
                    self.path.unlink()
        await self.inner.aclose()


def open_unix_listener(path: str | os.PathLike[str], *, mode: int = 0o600) -> UnixListener:
    """Listen on a socket at *path*, which nobody can connect to before it has *mode*.

    A socket left over by a process that has ended is replaced; nothing else ever is.

    Raises:
        ConfigurationError: something is there already, somebody listens there, or the place is no good.
    """
    where = Path(path)
    _remove_stale(where)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        sock.bind(str(where))
        bound = True
        # Until listen() connections are refused, so the mode is right before the first.
        where.chmod(mode)
        sock.listen(BACKLOG)
        return UnixListener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), where)
    except BaseException as error:
        sock.close()
        if bound:
            where.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"can't listen on unix:{where}: {error.strerror or error}") from None
        raise


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        ConfigurationError: something else is there.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"can't listen on unix:{path}: {type(error).__name__}") from None
    if not stat.S_ISSOCK(kind):
        raise ConfigurationError(f"can't listen on unix:{path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - positional only
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        raise ConfigurationError(f"can't listen on unix:{path}: another process listens there")
    path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _listening_socket(listener: object) -> trio.socket.SocketType | None:
    while isinstance(listener, (BoundedListener, UnixListener)):
        listener = listener.inner
    return listener.socket if isinstance(listener, trio.SocketListener) else None


def describe(listener: object) -> str:
    """Name what *listener* is bound to: ``127.0.0.1:8080``, ``[::1]:8080``, ``unix:/path``; else its type."""
    sock = _listening_socket(listener)
    if sock is None or sock.fileno() < 0:
        return type(listener).__name__
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_endpoints(listener: object) -> list[tuple[IPAddress, int]]:
    """Return the addresses and ports at which *listener* is reached by TCP; none for other kinds.

    An unspecified address (``0.0.0.0``, ``::``) stands for every address of the host.
    """
    sock = _listening_socket(listener)
    if sock is None or sock.fileno() < 0 or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return []
    name = sock.getsockname()
    address = parse_address(name[0].partition("%")[0])
    assert address is not None, "the kernel gave an address that is none"
    return [(address, name[1])]
