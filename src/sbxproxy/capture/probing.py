"""Whether this machine lets us confine a command: by doing it, since half of the ways to forbid it show at the last step only."""

from __future__ import annotations

__all__ = ["Probe", "probe"]

import sys
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import trio

from sbxproxy.capture.confined import Confined, launch
from sbxproxy.capture.original import original_destination
from sbxproxy.capture.plan import Plan
from sbxproxy.capture.unavailable import CaptureUnavailable

TARGET = (IPv4Address("192.0.2.1"), 443)
"""An address for documentation (RFC 5737): nothing but a redirection can connect to it."""

PATIENCE = 10.0
"""Seconds for all of it; it takes a quarter of one."""

_CONNECT = f"import socket; socket.create_connection(('{TARGET[0]}', {TARGET[1]}), timeout={PATIENCE / 2}).recv(1)"


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of it.

    Attributes:
        ok: commands can be confined here.
        step: else: which step failed.
        reason: why.
        remedy: what would help, or empty.
    """

    ok: bool
    step: str = ""
    reason: str = ""
    remedy: str = ""


async def probe() -> Probe:
    """Confine a small program that connects to somewhere, and see whether the connection arrives."""
    plan = Plan(argv=[sys.executable, "-I", "-S", "-c", _CONNECT], environment={}, directory=Path("/"))
    try:
        with trio.move_on_after(PATIENCE):
            async with await launch(plan) as confined:
                await confined.go()
                return await _try(confined)
    except CaptureUnavailable as error:
        return Probe(ok=False, step=error.step, reason=error.reason, remedy=error.remedy)
    return Probe(ok=False, step="redirection", reason=f"no connection came within {PATIENCE:g} seconds")


async def _try(confined: Confined) -> Probe:
    stream = await confined.listeners[0].accept()
    async with stream:
        target = original_destination(stream.socket)
    if target != TARGET:
        return Probe(
            ok=False, step="redirection", reason=f"the kernel tells another destination ({target[0]}) than was asked for"
        )
    code = await confined.wait()
    return Probe(
        ok=code == 0, step="" if code == 0 else "redirection", reason="" if code == 0 else f"the client ended with {code}"
    )
