"""The sandbox's DNS: only what the policy lets a program look up is looked up, and only what it may reach is answered."""

from __future__ import annotations

__all__ = ["DnsAnswerer", "Forward", "Forwarder", "HostNameservers", "Lookup", "Resolve", "has_ipv6"]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.dns.answerer import DnsAnswerer, Lookup, Resolve
    from sbxproxy.dns.forward import Forward, Forwarder
    from sbxproxy.dns.host import HostNameservers, has_ipv6

face(
    __name__,
    {
        "answerer": "DnsAnswerer Lookup Resolve",
        "forward": "Forward Forwarder",
        "host": "HostNameservers has_ipv6",
    },
)
