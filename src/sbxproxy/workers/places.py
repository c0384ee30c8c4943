"""Where a sandbox of several workers listens: sockets that are bound once, and that outlive any worker.

Each worker has a listening socket of its own on one address (SO_REUSEPORT, socket(7)), so the kernel deals connections out. The
supervisor keeps a copy of each: what waits in a dead worker's queue waits there for the one that takes its place. A Unix socket can't be
bound twice; all workers accept from the same one.
"""

from __future__ import annotations

__all__ = ["Place", "bind"]

import socket
from collections.abc import Sequence

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.errors import ConfigurationError
from sbxproxy.net.listen import BACKLOG, describe, open_unix_listener


class Place:
    """One address; whoever bound it closes it.

    Attributes:
        endpoint: ``127.0.0.1:8080``, ``[::1]:8080`` or ``unix:/path``.
    """

    __slots__ = ("_sockets", "_unix", "endpoint")

    def __init__(self, where: str, count: int) -> None:
        """Bind it for *count* workers.

        Args:
            where: ``ADDRESS:PORT``, ``[IPv6]:PORT`` or ``unix:PATH``; port 0 is any that is free.
            count: how many.

        Raises:
            ConfigurationError: *where* is none of these, or can't be listened on.
        """
        self._unix = open_unix_listener(where.removeprefix("unix:")) if where.startswith("unix:") else None
        self._sockets = [] if self._unix is not None else _bind(where, *_parse(where), count)
        self.endpoint = describe(self._unix) if self._unix is not None else _endpoint(self._sockets[0])

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self._unix is not None

    def descriptor(self, slot: int) -> int:
        """Return the listening socket of the worker at *slot*; it stays this object's."""
        return self._sockets[slot].fileno() if self._unix is None else self._unix.inner.socket.fileno()

    async def aclose(self) -> None:
        """Close the sockets here, and remove a Unix socket's file; again is harmless."""
        for sock in self._sockets:
            sock.close()
        if self._unix is not None:
            await self._unix.aclose()


async def bind(listen: Sequence[str], count: int) -> list[Place]:
    """Bind all of *listen*, or nothing.

    Raises:
        ConfigurationError: see ``Place``.
    """
    places: list[Place] = []
    try:
        places.extend(Place(where, count) for where in listen)
    except BaseException:
        for place in places:
            await place.aclose()
        raise
    return places


def _parse(where: str) -> tuple[IPAddress, int]:
    host, _, port = where.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    address = parse_address(bare)
    if address is None or (address.version == 6) != (bare != host) or not (port.isascii() and port.isdigit() and len(port) < 6):
        raise ConfigurationError(f"listen: {where!r}: write ADDRESS:PORT, [IPv6]:PORT or unix:PATH")
    if int(port) > 65535:
        raise ConfigurationError(f"listen: {where!r}: a port is a number up to 65535")
    return address, int(port)


def _bind(where: str, address: IPAddress, port: int, count: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # The first is bound without it, and so fails where others listen already: it would join them, and theirs would be
            # connections that are another sandbox's.
            if len(sockets) > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((str(address), port))
            if len(sockets) == 1 and count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = sock.getsockname()[1]
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigurationError(f"listen: can't listen on {where}: {error.strerror or error}") from None
    return sockets


def _endpoint(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
