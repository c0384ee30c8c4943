"""Capture a network namespace that somebody else made: another sandbox runtime, ``unshare`` or ``ip netns``."""

from __future__ import annotations

__all__ = ["Captured", "attach", "gateway"]

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from sbxproxy.capture.helper import Helper
from sbxproxy.capture.unavailable import CaptureUnavailable


class Captured:
    """A captured namespace's sockets. Its rules stay as long as it does: without these sockets nothing gets out.

    Attributes:
        listeners: where its TCP connections arrive, all ports and both families; ``original_destination`` tells whereto.
        dns: UDP sockets at which its DNS queries arrive, whatever server they were sent to.
    """

    def __init__(self, listeners: list[trio.SocketListener], dns: list[trio.socket.SocketType]) -> None:
        """Made by ``attach`` and ``gateway``."""
        self.listeners = listeners
        self.dns = dns

    async def aclose(self) -> None:
        """Close the sockets; connections are refused from then on. Again is harmless."""
        for listener in self.listeners:
            listener.socket.close()
        for sock in self.dns:
            sock.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def attach(netns: str | Path | int) -> Captured:
    """Redirect all TCP and DNS of a network namespace that has no way out of its own, and refuse everything else.

    To be called before its programs run. As root, or as the user who owns the user namespace that it belongs to. The caller closes
    what comes back.

    Args:
        netns: its path, such as ``/proc/PID/ns/net`` or ``/run/netns/NAME``, or an open descriptor.

    Raises:
        CaptureUnavailable: a step failed; it says which and why. Nothing was changed, or what was is not in force.
    """
    return await _capture(netns, None)


async def gateway(netns: str | Path | int, interface: str) -> Captured:
    """Redirect what comes in by an interface of a gateway namespace; see ``attach``. For root.

    What is routed through it, a container's veth or a virtual machine's tap, can't change these rules whoever it is inside.

    Args:
        netns: the gateway namespace. It must have no other interface and not forward packets.
        interface: the name, in that namespace, of the interface by which the traffic comes.

    Raises:
        CaptureUnavailable: as for ``attach``; or there is no such interface.
    """
    return await _capture(netns, interface)


async def _capture(netns: str | Path | int, interface: str | None) -> Captured:
    if isinstance(netns, int):
        descriptor = os.dup(netns)
    else:
        try:
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CaptureUnavailable("network namespace", f"{netns}: {error.strerror}", error.errno or 0) from None
    try:
        helper = Helper.start({"do": "attach", "namespace": descriptor, "interface": interface}, pass_fds=(descriptor,))
    finally:
        os.close(descriptor)
    try:
        return Captured(*await helper.receive_sockets())
    finally:
        await helper.aclose()
