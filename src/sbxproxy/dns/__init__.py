"""The sandbox's DNS: only what the policy lets a program look up is looked up, and only what it may reach is answered."""

from __future__ import annotations

__all__ = ["DnsAnswerer", "Forward", "Forwarder", "HostNameservers", "Lookup", "Resolve", "has_ipv6"]

from sbxproxy.dns.answerer import DnsAnswerer, Lookup, Resolve
from sbxproxy.dns.forward import Forward, Forwarder
from sbxproxy.dns.host import HostNameservers, has_ipv6
