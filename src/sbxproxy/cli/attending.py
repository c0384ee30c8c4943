"""Stays with a confined command to its end, and serves it."""

from __future__ import annotations

__all__ = ["attend_to"]

import signal
from collections.abc import Iterable
from pathlib import Path

from sbxproxy.capture.confined import take_over
from sbxproxy.capture.starting import Started
from sbxproxy.cli.child import attend, receive_signals
from sbxproxy.cli.failure import OWN_FAILURE
from sbxproxy.cli.options import Configuration, Reading
from sbxproxy.cli.session import Session, run_trio
from sbxproxy.cli.terminal import release
from sbxproxy.sandbox.identity import Identity


def attend_to(
    configuration: Configuration,
    reading: Reading,
    identity: Identity,
    control: Path,
    started: Started,
    terminal: int | None,
    mask: Iterable[int],
) -> int:
    """Execute the command that waits in *started*, if it doesn't run already, and serve it; returns its exit code.

    Signals are blocked as *mask* says from when they can be passed on; until then the caller may have blocked more.
    """

    async def stay() -> int:
        async with Session.open(configuration, identity.name, reading=reading, identity=identity) as session:
            await session.serve_control(control)
            async with await take_over(started) as confined:
                await session.nursery.start(session.sandbox.serve_captured, confined)
                try:
                    with receive_signals(session.on_hangup) as signals:
                        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                        await confined.go()
                        return await attend(confined, signals, terminal=terminal, on_hangup=session.on_hangup)
                finally:
                    if terminal is not None:
                        release(terminal, confined.pid)

    return run_trio(stay, failure=OWN_FAILURE)
