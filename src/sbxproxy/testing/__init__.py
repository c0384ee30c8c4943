"""What tests of pipeline parts need: flows and requests, ClientHellos, a network in memory, a conformance check for each slot.

It needs no test framework: a check raises ``AssertionError``, or ``TypeError`` for what doesn't fit its slot at all, and those
that are coroutines run in any Trio event loop. Nothing in sbxproxy imports this package.
"""

from __future__ import annotations

__all__ = [
    "HttpOrigin",
    "MemoryNetwork",
    "check_handler",
    "check_observer",
    "check_policy",
    "check_secret_source",
    "check_sniffer",
    "check_terminator",
    "check_transform",
    "client_hello",
    "fetch",
    "make_flow",
    "make_request",
]

from importlib import import_module

from sbxproxy.sandbox.doors import BEHIND
from sbxproxy.testing.decisions import check_policy, check_transform
from sbxproxy.testing.hello import client_hello
from sbxproxy.testing.http import HttpOrigin, fetch
from sbxproxy.testing.make import make_flow, make_request
from sbxproxy.testing.network import MemoryNetwork
from sbxproxy.testing.outside import check_observer, check_secret_source
from sbxproxy.testing.sniffers import check_sniffer
from sbxproxy.testing.streams import check_handler, check_terminator

for module in BEHIND:
    import_module(module)  # which a proxy would do in a thread, and a clock that jumps doesn't wait for threads
