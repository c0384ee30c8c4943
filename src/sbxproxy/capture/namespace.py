"""Capture a network namespace that somebody else made: another sandbox runtime, ``unshare`` or ``ip netns``."""

from __future__ import annotations

__all__ = ["attach", "gateway"]

import os
from pathlib import Path

from sbxproxy.capture.captured import Captured
from sbxproxy.capture.helper import Helper
from sbxproxy.capture.starting import start
from sbxproxy.capture.unavailable import CaptureUnavailable


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
        netns: the gateway namespace. It should have no other interface: none is looked for, but nothing is forwarded to one.
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
        helper = Helper(start({"do": "attach", "namespace": descriptor, "interface": interface}, pass_fds=(descriptor,)))
    finally:
        os.close(descriptor)
    try:
        return Captured(*await helper.receive_sockets())
    finally:
        await helper.aclose()
