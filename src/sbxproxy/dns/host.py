"""What the host's own configuration says: which name servers it asks, and whether it has IPv6."""

from __future__ import annotations

__all__ = ["HostNameservers", "has_ipv6", "read_resolv_conf"]

import socket
import time
from ipaddress import IPv4Address
from pathlib import Path

from sbxproxy.address import IPAddress, parse_address

Nameserver = tuple[IPAddress, int]

RESOLV_CONF = Path("/etc/resolv.conf")

MOST_NAMESERVERS = 3
"""The C library takes no more (MAXNS in resolv.conf(5))."""

CHECK_EVERY = 5.0
"""Seconds between looks at the file: a laptop changes networks while sandboxes run."""

MOST_READ = 64 * 1024


def read_resolv_conf(text: str) -> tuple[Nameserver, ...]:
    """Return the name servers listed, or the local one if there is none, as resolv.conf(5) says.

    Addresses with a zone id are left out.
    """
    found: dict[Nameserver, None] = {}
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if (parsed := parse_address(address)) is not None:
                found[parsed, 53] = None
    return tuple(found)[:MOST_NAMESERVERS] or ((IPv4Address("127.0.0.1"), 53),)


class HostNameservers:
    """The host's name servers, as they are now: call it."""

    __slots__ = ("_checked", "_path", "_seen", "_servers")

    def __init__(self, path: Path = RESOLV_CONF) -> None:
        """Read nothing yet."""
        self._path = path
        self._checked = -CHECK_EVERY
        self._seen: object = object()
        self._servers: tuple[Nameserver, ...] = ()

    def __call__(self) -> tuple[Nameserver, ...]:
        """Return them, from the file if that changed; without a file, the local one."""
        now = time.monotonic()
        if now - self._checked >= CHECK_EVERY:
            self._checked = now
            self._look()
        return self._servers

    def _look(self) -> None:
        try:
            status = self._path.stat()  # a small local file, on the event loop
            seen: object = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return
            with self._path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(MOST_READ)
        except OSError:
            seen, text = None, ""
        self._seen, self._servers = seen, read_resolv_conf(text)


def has_ipv6() -> bool:
    """Tell whether the host has a route to the IPv6 Internet: no packet is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:4860:4860::8888", 53))  # any global unicast address
            return not probe.getsockname()[0].startswith("fe80")
    except OSError:
        return False
