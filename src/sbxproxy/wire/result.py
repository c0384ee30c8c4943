"""What a look at the first bytes of a stream answers: a value, "not enough yet", or "not mine".

A sniffer is a pure function of all bytes received so far. Its answer is final: once it is anything but
``NEED_MORE``, more bytes may not change it, so what it says never depends on how TCP cut the stream.
"""

from __future__ import annotations

__all__ = ["Hint", "Sniffed", "Sniffer"]

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Hint(Enum):
    """The two answers of a parser that are no value."""

    NEED_MORE = "the bytes so far could become mine"
    NOT_MINE = "whatever follows, these bytes are not mine"


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What the first bytes are.

    Attributes:
        wire: the protocol's name: ``tls``, ``http``, ``postgres``, ``unknown``, ``silent``, or a third
            party's own.
        server_name: the server that the bytes ask for, exactly as they spell it, or ``None`` if they name
            none. It is neither checked nor canonical: that is for whoever decides on it.
        alpn: the application protocols on offer, in the client's order.
        problem: why the bytes are not acceptable as what they claim to be: a fixed English text that never
            quotes them; ``None`` if they are well-formed.
    """

    wire: str
    server_name: bytes | None = None
    alpn: tuple[bytes, ...] = ()
    problem: str | None = None


Sniffer = Callable[[bytes], Sniffed | Hint]
"""Takes all bytes so far, never none at all, and answers at once; it neither blocks nor raises."""
