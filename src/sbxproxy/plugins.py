"""Plugins by name, from the entry points of installed distributions. Only what configuration names is ever loaded."""

from __future__ import annotations

__all__ = ["GROUPS", "Installed", "installed", "load"]

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sbxproxy.errors import ConfigurationError
from sbxproxy.stages import Pipeline

GROUPS = {
    "sniffers": "sbxproxy.sniffers",
    "policies": "sbxproxy.policies",
    "terminator": "sbxproxy.terminators",
    "transforms": "sbxproxy.transforms",
    "handlers": "sbxproxy.handlers",
    "secrets": "sbxproxy.secrets",
    "observers": "sbxproxy.observers",
}
"""The slots of ``Pipeline`` (and secret sources), and the entry-point group of each.

Transforms are registered as the class or factory itself. Policies, terminators, handlers, sniffers and observers are registered
as the part, or as a class that takes no arguments.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A plugin that could be loaded.

    Attributes:
        slot: a key of ``GROUPS``.
        name: what configuration calls it.
        value: the object, ``package.module:attribute``.
        distribution: which distribution brings it, and ``version``.
        version: of the distribution.
    """

    slot: str
    name: str
    value: str
    distribution: str
    version: str


def installed() -> list[Installed]:
    """List what is installed, without importing any of it."""
    return [_describe(slot, point) for slot, group in GROUPS.items() for point in sorted(entry_points(group=group))]


def load(names: Iterable[str]) -> Pipeline:
    """Import the plugins of these names, whatever their slots, and put a pipeline together.

    Raises:
        ConfigurationError: a name isn't installed (the message lists what is), is brought by two distributions, can't be
            imported, or doesn't fit its slot.
    """
    slots: dict[str, list[tuple[str, Any]]] = {slot: [] for slot in GROUPS}
    for name in dict.fromkeys(names):
        for slot, point in _find(name):
            slots[slot].append((name, _import(slot, point)))
    terminators = [part for _, part in slots["terminator"]]
    if len(terminators) > 1:
        raise ConfigurationError("two terminator plugins are named, and there is one slot")
    try:
        return Pipeline(
            sniffers=[part for _, part in slots["sniffers"]],
            policies=[part for _, part in slots["policies"]],
            terminator=terminators[0] if terminators else None,
            transforms=dict(slots["transforms"]),
            handlers=dict(slots["handlers"]),
            observers=[part for _, part in slots["observers"]],
        )
    except TypeError as error:
        raise ConfigurationError(f"plugin: {error}") from None


def _find(name: str) -> list[tuple[str, EntryPoint]]:
    found = [
        (slot, point) for slot, group in GROUPS.items() if slot != "secrets" for point in entry_points(group=group, name=name)
    ]
    if not found:
        known = ", ".join(sorted({plugin.name for plugin in installed() if plugin.slot != "secrets"})) or "none"
        raise ConfigurationError(f"no plugin is named {name!r}; installed: {known}")
    owners = {_describe(slot, point).distribution for slot, point in found}
    if len(owners) > 1:  # taking either would let a package stand in for another
        raise ConfigurationError(f"the plugin name {name!r} is claimed by {' and '.join(sorted(owners))}; remove one")
    return found


def _import(slot: str, point: EntryPoint) -> Any:
    try:
        part = point.load()
        if slot != "transforms" and isinstance(part, type):
            part = part()
    except Exception as error:
        raise ConfigurationError(f"plugin {point.name!r} can't be loaded: {type(error).__name__}: {error}") from error
    return part


def _describe(slot: str, point: EntryPoint) -> Installed:
    name, version = (point.dist.name, point.dist.version) if point.dist is not None else ("", "")
    return Installed(slot=slot, name=point.name, value=point.value, distribution=name, version=version)
