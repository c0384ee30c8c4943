"""What happens to a connection, from its wish to its close.

``story`` tells it in order; ``first_bytes``, ``postgres``, ``narrow``, ``upstream``, ``words`` and ``record`` are its parts, and
``context`` is what the connections of a sandbox share.
"""

from __future__ import annotations

__all__ = ["Context", "Dialer", "narrow", "serve_flow"]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.connection.context import Context, Dialer
    from sbxproxy.connection.narrow import narrow
    from sbxproxy.connection.story import serve_flow

face(
    __name__,
    {
        "context": "Context Dialer",
        "narrow": "narrow",
        "story": "serve_flow",
    },
)
