"""The operator's settings for one of several workers, and their way there and back as JSON."""

from __future__ import annotations

__all__ = ["as_values", "from_values", "share"]

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbxproxy.address import parse_address, parse_network
from sbxproxy.hostname import Hostname
from sbxproxy.settings import Limits, Settings

SHARED = (
    "flows",
    "flows_per_sandbox",
    "handshakes",
    "handshakes_per_sandbox",
    "buffered_bytes_per_sandbox",
    "pooled_per_sandbox",
    "resolver_threads",
)
"""Bounds that each worker has its part of. The others bound one thing (a head, a wait) or a cache, of which each worker needs a whole
one; ``flows=None`` goes by the descriptor limit, which is each process's own."""


def share(settings: Settings, count: int) -> Settings:
    """Return the settings of one of *count* workers: bounds on the whole are divided and rounded up."""
    limits = settings.limits
    whole = {name: getattr(limits, name) for name in SHARED}
    parts = {name: -(-value // count) for name, value in whole.items() if value is not None}
    # One head must fit, and so must the longest first message.
    parts["buffered_bytes_per_sandbox"] = min(
        limits.buffered_bytes_per_sandbox, max(parts["buffered_bytes_per_sandbox"], 2 * max(limits.head, limits.client_hello))
    )
    return dataclasses.replace(settings, limits=dataclasses.replace(limits, **parts))


def as_values(settings: Settings) -> dict[str, Any]:
    """Return *settings* as a JSON value; paths become absolute, since a worker that comes later may start elsewhere."""
    roots = settings.upstream_roots
    return {
        "private_networks": list(map(str, settings.private_networks)),
        "never": list(map(str, settings.never)),
        "resolve": {str(name): list(map(str, addresses)) for name, addresses in settings.resolve.items()},
        "nameservers": [[str(address), port] for address, port in settings.nameservers],
        "upstream_roots": None if roots is None else str(Path(roots).absolute()),
        "extra_upstream_roots": [str(Path(path).absolute()) for path in settings.extra_upstream_roots],
        "engine": settings.engine,
        "limits": dataclasses.asdict(settings.limits),
    }


def from_values(values: Mapping[str, Any]) -> Settings:
    """Make settings of what ``as_values`` gave.

    Raises:
        ConfigurationError: a value is wrong.
        KeyError: one is missing.
    """
    roots = values["upstream_roots"]
    return Settings(
        private_networks=list(map(parse_network, values["private_networks"])),
        never=list(map(parse_network, values["never"])),
        resolve={Hostname(name): list(map(_address, addresses)) for name, addresses in values["resolve"].items()},
        nameservers=[(_address(address), port) for address, port in values["nameservers"]],
        upstream_roots=None if roots is None else Path(roots),
        extra_upstream_roots=list(map(Path, values["extra_upstream_roots"])),
        engine=values["engine"],
        limits=Limits(**values["limits"]),
    )


def _address(text: str) -> Any:
    address = parse_address(text)
    if address is None:
        raise ValueError("not an address")
    return address
