"""Several worker processes that serve the same sandboxes: ``supervisor`` keeps them, ``worker`` is the program that each of them runs."""

from __future__ import annotations

__all__ = ["SharedSandbox", "Workers"]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.workers.shared import SharedSandbox
    from sbxproxy.workers.supervisor import Workers

face(__name__, {"shared": "SharedSandbox", "supervisor": "Workers"})
