"""How frozen values are made quickly.

A frozen dataclass sets each of its fields through a function, which takes longer than all else of making it. Those that are made for every
connection are made as objects of a class that differs in nothing but that its attributes can be set, and are then given their own class: a
quarter of the time. Nobody but who makes them sees them open.
"""

from __future__ import annotations

__all__ = ["opened"]

from typing import Any


def opened(frozen: type[Any]) -> type[Any]:
    """Return a class whose objects are laid out as those of *frozen*, a dataclass with slots, and can be changed, even in their class."""
    return type(f"_Open{frozen.__name__}", (), {"__slots__": frozen.__slots__})
