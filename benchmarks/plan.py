"""How much to measure."""

from __future__ import annotations

__all__ = ["Plan"]

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Rounds, the seconds of one measurement, and whether it is only to be seen that everything works."""

    rounds: int = 5
    seconds: float = 2.0
    quick: bool = False
