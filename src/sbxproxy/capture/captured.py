"""The sockets of a captured network namespace: born in it, served from outside."""

from __future__ import annotations

__all__ = ["Captured"]

from types import TracebackType
from typing import Self

import trio


class Captured:
    """A captured namespace's sockets. Its rules stay as long as it does: without these sockets nothing gets out.

    Attributes:
        listeners: where its TCP connections arrive, all ports and both families; ``original_destination`` tells whereto.
        dns: UDP sockets at which its DNS queries arrive, whatever server they were sent to.
    """

    def __init__(self, listeners: list[trio.SocketListener], dns: list[trio.socket.SocketType]) -> None:
        """Take over the sockets."""
        self.listeners = listeners
        self.dns = dns

    def close_sockets(self) -> None:
        """Close them in this step; again is harmless."""
        for listener in self.listeners:
            listener.socket.close()
        for sock in self.dns:
            sock.close()

    async def aclose(self) -> None:
        """Close the sockets; connections are refused from then on. Again is harmless."""
        self.close_sockets()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
