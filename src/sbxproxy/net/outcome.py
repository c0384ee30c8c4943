"""What a relay reports: how many bytes went which way, and why it ended.

The one surprising thing: an outcome is no exception, since a peer that goes away is how most connections end.
"""

from __future__ import annotations

__all__ = ["Counts", "Ended"]

from typing import Literal, Protocol

Ended = Literal["eof", "idle", "linger", "client-reset", "upstream-reset", "closed", "stopped"]
"""Why a relay ended: both sides had sent everything; nothing moved for too long; one side had ended, the
other could not be told so and then moved nothing; a side failed; a stream was closed by another task; the engine
that moved the bytes was stopped under it. After ``stopped`` and the resets both sides must see a break."""


class Counts(Protocol):
    """Where bytes are counted as they go; a ``Flow`` is one."""

    bytes_up: int
    bytes_down: int
