"""``--config FILE``: a TOML file with a command's options by their names; what stands on the command line wins.

Relative paths in it are relative to its directory, so that it works from anywhere.
"""

from __future__ import annotations

__all__ = ["load_config"]

import difflib
import tomllib
from pathlib import Path
from typing import Any

import click


def load_config(ctx: click.Context, path: Path) -> None:
    """Make what stands in *path* the defaults of the command's options.

    Raises:
        click.UsageError: it can't be read, or names what is no option, or gives one what it doesn't take.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise click.UsageError(f"--config: can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--config: {path} is not TOML: {error}") from None
    known = {
        option.name: option
        for option in ctx.command.params
        if isinstance(option, click.Option) and option.name and option.name != "config"
    }
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')!r}?" if near else ""
            raise click.UsageError(f"--config: {path}: no option is named {key!r}{hint}")
        try:
            defaults[name] = _config_value(known[name], value, path.parent)
        except ValueError as error:
            raise click.UsageError(f"--config: {path}: {key} must be {error}") from None
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


_PATHS = frozenset({"policy", "upstream_ca", "events", "ca_out", "trust_dir", "env_out"})
_PATH_AFTER = {"secret": "=file:", "listener_auth": "=file:", "listen": "unix:"}


def _config_value(option: click.Option, value: object, directory: Path) -> object:
    """Check one value of a configuration file; raises ``ValueError`` with what it must be."""
    name = option.name or ""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if option.multiple:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a list of strings")
        return [_located(name, text, directory) for text in texts]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a string or a number")  # noqa: TRY004 - a fault of the file
    return _located(name, str(value), directory)


def _located(name: str, text: str, directory: Path) -> str:
    if name in _PATHS:
        return text if text == "-" else str(directory / text)
    before, marker, rest = text.partition(_PATH_AFTER.get(name, "\0"))
    return f"{before}{marker}{directory / rest}" if marker else text
