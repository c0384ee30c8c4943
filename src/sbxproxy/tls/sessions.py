"""TLS sessions of upstreams, with which the next connection to one begins at half the cost.

One collection per sandbox and none shared: a session ticket tells an upstream that two connections belong together. Each is
used once (RFC 8446 appendix C.4), and only what was left by a verified connection to a name is used for that name. A server
that doesn't take it makes a whole handshake of it, with its certificate.
"""

from __future__ import annotations

__all__ = ["Sessions"]

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from sbxproxy.hostname import Hostname

if TYPE_CHECKING:
    from OpenSSL import SSL

MOST = 256
"""Names whose sessions are kept, some 2 KiB each; those not heard of for longest go first."""

KEEP = 600.0
"""Seconds that one is kept. Within them nobody looks at the certificate's chain anew."""


class Sessions:
    """What verified connections of one sandbox left behind, by name; the newest of each."""

    __slots__ = ("_clock", "_kept")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin empty.

        Args:
            clock: seconds.
        """
        self._clock = clock
        self._kept: OrderedDict[Hostname, tuple[float, SSL.Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, name: Hostname, session: SSL.Session) -> None:
        """Keep a session of a connection to *name* that was verified."""
        self._kept[name] = self._clock() + KEEP, session
        self._kept.move_to_end(name)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def take(self, name: Hostname) -> SSL.Session | None:
        """Take out the session of *name*."""
        until, session = self._kept.pop(name, (0.0, None))
        return session if self._clock() < until else None
