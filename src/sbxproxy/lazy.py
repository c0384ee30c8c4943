"""Faces of packages: their public names are imported when they are first used, so that importing one module isn't importing all.

``import sbxproxy.tls.trust`` runs ``sbxproxy/tls/__init__.py`` first. Were that to import whatever the package has to offer, reading a
constant would load OpenSSL, and a command that only wants to be started behind a policy would wait for it.
"""

from __future__ import annotations

__all__ = ["face"]

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Face(ModuleType):
    """A package that knows in which of its modules each of its public names is."""

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        """Import a public name when it is first used."""
        home = self._homes.get(name)
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        value = getattr(import_module(f"{self.__name__}.{home}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but don't let a module hide the function that is called as it is.

        The import system makes every module an attribute of its package. ``sbxproxy.policy.judge`` is the function, as if the package
        had imported it from the module of that name.
        """
        if isinstance(value, ModuleType) and self._homes.get(name) == name and value.__name__ == f"{self.__name__}.{name}":
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """List the public names too, imported or not."""
        return sorted({*super().__dir__(), *self._homes})


def face(package: str, homes: Mapping[str, str]) -> None:
    """Make *package* import its public names when they are first used; to be called at the end of its ``__init__``.

    Args:
        package: its ``__name__``.
        homes: by module of the package, the names that come from it, with spaces between them.
    """
    module = sys.modules[package]
    vars(module)["_homes"] = {name: home for home, names in homes.items() for name in names.split()}
    module.__class__ = _Face
