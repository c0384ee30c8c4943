"""Going through many items without holding up the other threads of the program.

A thread that computes gives the interpreter up only when another has waited for it for 5 ms (``sys.getswitchinterval``), and an event loop
waits that long each time that it wakes up. To give it up for no time at all isn't enough: whoever does that has it back before another
thread is awake.
"""

from __future__ import annotations

__all__ = ["give_way", "paced"]

from collections.abc import Iterable, Iterator
from itertools import islice
from time import sleep
from typing import TypeVar

_NAP = 1e-5

_Item = TypeVar("_Item")


def give_way() -> None:
    """Let other threads run; takes less than a tenth of a millisecond where there are none that want to."""
    sleep(_NAP)


def paced(items: Iterable[_Item], *, piece: int = 2000) -> Iterator[_Item]:
    """Yield *items*, and let other threads run after each *piece* of them: as many as take a millisecond or two."""
    iterator = iter(items)
    while taken := list(islice(iterator, piece)):
        yield from taken
        if len(taken) == piece:
            give_way()
