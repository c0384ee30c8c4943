"""What a rule does with a request that fits it."""

from __future__ import annotations

__all__ = ["Action", "Forward", "Respond", "SetHeaders", "Step", "Transform", "UsePlugin"]

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from sbxproxy.errors import SecretError
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.policy.fault import REDACTED, Fault
from sbxproxy.policy.header import is_value
from sbxproxy.policy.path import is_ambiguous_path
from sbxproxy.policy.place import key_place
from sbxproxy.policy.template import Template

_PLUGIN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_BODILESS = frozenset({204, 205, 304})
_DEEPEST_CONFIG = 32
"""Levels of a plugin's configuration: more than people write, few enough to recurse."""


@dataclass(frozen=True, slots=True)
class SetHeaders:
    """Set header fields, each in place of all of that name that the client sent.

    Attributes:
        headers: pairs of the name as written and the value; names differ when compared without case and ``_``
        as ``-``.
    """

    headers: tuple[tuple[str, Template], ...]

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the secrets that the values need."""
        return tuple(dict.fromkeys(name for _, value in self.headers for name in value.names))

    def render(self, values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Put the secrets in.

        Raises:
            SecretError: a secret is missing, or holds characters that can't stand in a header. The value
            isn't shown.
        """
        rendered = []
        for name, template in self.headers:
            value = template.render(values)
            if not is_value(value):
                raise SecretError(
                    f"header {name!r} can't hold a control or non-ASCII character, and one of its secrets "
                    f"has one: {', '.join(template.secrets)}"
                )
            rendered.append((name, value))
        return tuple(rendered)


@dataclass(frozen=True, slots=True)
class UsePlugin:
    """Give the request to the transform registered as ``name``.

    Attributes:
        name: which transform.
        config: its options, a JSON object; texts in it may name secrets.
    """

    name: str
    config: Mapping[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, name: str, config: Mapping[str, object]) -> Self:
        """Check and take the options.

        Raises:
            Fault: the name is none, or the options aren't JSON or hold a wrong placeholder.
        """
        if not _PLUGIN_NAME.fullmatch(name):
            raise Fault("not a plugin's name", "lower-case letters, digits and _.-", within=".plugin")

        def check(text: str) -> str:
            Template.parse(text)
            return text

        # Copied as it is checked: a list that its author still holds must not change a policy in force.
        return cls(
            name,
            {
                key: _map_texts(option, check, f".config{key_place(key, position)}", 1)
                for position, (key, option) in enumerate(config.items())
            },
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the secrets that the options need."""
        names: list[str] = []

        def collect(text: str) -> None:
            names.extend(Template.parse(text).names)

        _map_texts(self.config, collect, "", 0)
        return tuple(dict.fromkeys(names))

    def render(self, values: Mapping[str, str], *, wrap: Callable[[str], object] = str) -> dict[str, object]:
        """Return a copy of the options with the secrets put in; texts that name any are handed through *wrap*.

        Raises:
            SecretError: a secret is missing.
        """

        def change(text: str) -> object:
            template = Template.parse(text)
            rendered = template.render(values)
            return wrap(rendered) if template.names else rendered

        return {key: _map_texts(option, change, "", 1) for key, option in self.config.items()}

    def redacted(self) -> dict[str, object]:
        """Return a copy of the options that shows no text."""
        return {key: _map_texts(option, lambda _: REDACTED, "", 1) for key, option in self.config.items()}


def _map_texts(value: object, change: Callable[[str], object], place: str, depth: int) -> object:
    """Copy a JSON value with each text changed; a ``Fault`` tells where in it."""
    if depth > _DEEPEST_CONFIG:
        raise Fault("nested too deep", f"at most {_DEEPEST_CONFIG} levels", within=place)
    match value:
        case str():
            try:
                return change(value)
            except Fault as fault:
                raise Fault(fault.problem, fault.expected, within=place) from None
        case None | bool() | int() | float():
            return value
        case list():
            return [_map_texts(item, change, f"{place}[{i}]", depth + 1) for i, item in enumerate(value)]
        case dict() if all(isinstance(key, str) for key in value):
            return {
                key: _map_texts(item, change, place + key_place(key, position), depth + 1)
                for position, (key, item) in enumerate(value.items())
            }
        case _:
            raise Fault("not a JSON value", within=place)


Step = SetHeaders | UsePlugin


@dataclass(frozen=True, slots=True)
class Transform:
    """Change the request in these steps, then send it to where it was going."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Send the request to another server, with its path appended to ``path``.

    Attributes:
        host: where to, over TLS.
        port: which port.
        path: what to put in front of the request's path; empty or starting with ``/`` and not ending with it.
        url: as the author wrote it.
    """

    host: Hostname
    port: int
    path: str
    url: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a forwardURL.

        Raises:
            Fault: it isn't ``https://`` with a host name, a port if need be and a plain path.
        """
        expected = "https://host, with a port and a path if need be"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise Fault("not a URL", expected) from None
        if parts.scheme != "https":
            raise Fault("the request came inside TLS and must not leave it", expected)
        if not url.isascii() or any(character <= " " for character in url) or port == 0:
            raise Fault("not a URL", expected)
        if "@" in parts.netloc:
            raise Fault("a user name or password in a URL ends up in logs", "set a header in a transform instead")
        if "?" in url or "#" in url:
            raise Fault("a query or fragment can't be kept: the request's own path and query follow", expected)
        host = canonical_hostname(parts.hostname or "")
        if host is None or parts.netloc.endswith(":"):
            raise Fault("no host name that a certificate could be for", expected)
        if parts.path and is_ambiguous_path(parts.path):
            raise Fault("an ambiguous path", "no empty, . or .. segments, octets encoded only where they must be")
        return cls(host=host, port=port or 443, path=parts.path.removesuffix("/"), url=url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Respond:
    """Answer the request without asking anyone.

    Attributes:
        status: 200 to 599.
        content_type: the media type, if any was given.
        body: UTF-8 if the author's text has characters beyond ASCII.
    """

    status: int
    content_type: str | None = None
    body: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, status: int, content_type: str | None, body: str) -> Self:
        """Check the text and take it as UTF-8.

        Raises:
            Fault: the status is one of a response without a body, or the text is none.
        """
        if body and status in _BODILESS:
            raise Fault(f"a {status} response has no body", "another statusCode, or no body", within=".body")
        try:
            return cls(status=status, content_type=content_type, body=body.encode())
        except UnicodeEncodeError:
            raise Fault("half of a surrogate pair", "whole characters", within=".body") from None


Action = Transform | Forward | Respond


def secrets_of(action: Action) -> Iterator[str]:
    """Yield the names of the secrets that an action needs; some may come twice."""
    if isinstance(action, Transform):
        for step in action.steps:
            yield from step.secrets
