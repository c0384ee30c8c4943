"""A token bucket: so many a second, and twice as many in a burst."""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """Holds tokens that come at a steady rate; it starts full."""

    __slots__ = ("_at", "_most", "_rate", "_tokens")

    def __init__(self, rate: float) -> None:
        """Take tokens a second."""
        self._rate = rate
        self._most = self._tokens = 2.0 * rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take a token; tell whether there was one. *now* is in seconds and never goes back."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
