"""How many descriptors this process may open, and what that means for connections."""

from __future__ import annotations

__all__ = ["descriptor_limit", "fd_budget"]

import resource

DESCRIPTORS_PER_FLOW = 2
"""The client's socket and the upstream's."""

RESERVE = 256
"""Descriptors for all else: pipes of the relays (128), look-ups in progress (64), and listeners, logs, files
and the further sockets of a dial that tries several addresses."""

_UNLIMITED = 1 << 20


def descriptor_limit() -> int:
    """Return the soft limit of open descriptors (``RLIMIT_NOFILE``), a million where there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _UNLIMITED)


def fd_budget() -> int:
    """Return how many flows may be open at once; at least one.

    With no more, ``accept`` and ``connect`` don't meet EMFILE. Under a small limit the reserve is a quarter
    of it.
    """
    limit = descriptor_limit()
    return max(1, (limit - min(RESERVE, limit // 4)) // DESCRIPTORS_PER_FLOW)
