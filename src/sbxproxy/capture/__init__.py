"""Transparent capture on Linux: a program's whole network leads to the proxy, whether or not the program knows of one.

``launch`` confines a command that it starts, ``attach`` and ``gateway`` capture a network namespace that another runtime made, and
``probe`` tells whether this machine lets us. All of them hand back listeners whose sockets belong to the captured namespace, while
the proxy stays in its own: ``original_destination`` tells where an accepted connection was going.

This package's own import must stay cheap: the program in ``inside`` begins with it.
"""

from __future__ import annotations

__all__ = [
    "CaptureUnavailable",
    "Captured",
    "Confined",
    "Exited",
    "Plan",
    "Probe",
    "Stopped",
    "User",
    "attach",
    "gateway",
    "launch",
    "original_destination",
    "probe",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.capture.captured import Captured
    from sbxproxy.capture.confined import Confined, Exited, Stopped, launch
    from sbxproxy.capture.namespace import attach, gateway
    from sbxproxy.capture.original import original_destination
    from sbxproxy.capture.plan import Plan, User
    from sbxproxy.capture.probing import Probe, probe
    from sbxproxy.capture.unavailable import CaptureUnavailable

face(
    __name__,
    {
        "captured": "Captured",
        "confined": "Confined Exited Stopped launch",
        "namespace": "attach gateway",
        "original": "original_destination",
        "plan": "Plan User",
        "probing": "Probe probe",
        "unavailable": "CaptureUnavailable",
    },
)
