"""One sandbox.

``sandbox`` is what embedders see; ``doors`` lets its connections in, ``update`` judges them again by another policy, and ``trust`` writes
what makes its programs trust it.
"""

from __future__ import annotations

__all__ = ["Sandbox", "check_references"]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.sandbox.references import check_references
    from sbxproxy.sandbox.sandbox import Sandbox

face(__name__, {"references": "check_references", "sandbox": "Sandbox"})
