"""Secrets: a value that can't be shown by accident, and the places it may come from.

A policy only names secrets (``${secret:github}``); the operator says where each name's value is. A value lives in this process
and in the one request it goes out with, and nowhere in the sandbox.
"""

from __future__ import annotations

__all__ = ["CallableSource", "CommandSource", "EnvironmentSource", "FileSource", "Secret", "SecretSource", "Secrets"]

import hmac
import os
import re
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol, Self, runtime_checkable

import trio

from sbxproxy.errors import ConfigurationError, SecretError

MAX_SECRET = 16 * 1024
"""Bytes in one secret: a header has to fit into a head, and servers take 8 to 32 KiB of them."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}\Z")
"""What a policy can write between ``${secret:`` and ``}``."""


class Secret:
    """A string that prints, formats and compares without showing itself, and refuses to be pickled, copied or hashed into keys.

    ``reveal()`` is the one way to the value; whoever calls it answers for where the value goes.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str) -> None:
        """Take the value; any ``str``, checked where it is put into a header."""
        self._value = value

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash of a low-entropy value tells the value

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a Secret can't be pickled or copied")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


@runtime_checkable
class SecretSource(Protocol):
    """Where values come from; anything with this method will do.

    ``get`` may be called many times at once and for every request: cache what is dear to fetch. It raises ``SecretError`` (or
    anything else, which is hidden from the client) when it has no such secret; the request is then refused.
    """

    async def get(self, name: str) -> Secret:
        """Return the value of *name* as of now."""
        ...


def checked(name: str, value: str) -> Secret:
    """Return *value* as a secret fit for a header: non-empty printable ASCII, without one trailing line end.

    Raises:
        SecretError: it is empty, too long or has characters that could end a header; the value isn't shown.
    """
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise SecretError(f"secret {name!r} is empty")
    if len(value) > MAX_SECRET:
        raise SecretError(f"secret {name!r} is longer than {MAX_SECRET} bytes")
    if any(not " " <= character <= "~" for character in value):
        raise SecretError(f"secret {name!r} has a control or non-ASCII character, which no header may hold")
    return Secret(value)


@dataclass(frozen=True, slots=True)
class EnvironmentSource:
    """A variable of this process's environment, read at each look-up.

    Attributes:
        variable: the variable's name.
        environ: where to look; the process's own environment by default.
    """

    variable: str
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    async def get(self, name: str) -> Secret:
        """Return the variable's value.

        Raises:
            SecretError: it isn't set, or unfit for a header.
        """
        value = self.environ.get(self.variable)
        if value is None:
            raise SecretError(f"secret {name!r}: environment variable {self.variable} is not set")
        return checked(name, value)


@dataclass(slots=True)
class FileSource:
    """A file, read again when it changes: rotation needs no restart.

    A change is told by inode, size and modification time, so that an atomic rename as well as a rewrite is seen.
    """

    path: Path
    _seen: tuple[int, int, int] | None = field(default=None, init=False, repr=False)
    _value: Secret | None = field(default=None, init=False, repr=False)

    async def get(self, name: str) -> Secret:
        """Return the file's content without its last line end.

        Raises:
            SecretError: it can't be read, isn't UTF-8, or is unfit for a header.
        """
        try:
            status = await trio.to_thread.run_sync(os.stat, self.path)
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._value is None or seen != self._seen:
                if status.st_size > MAX_SECRET + 2:
                    raise SecretError(f"secret {name!r}: {self.path} is longer than {MAX_SECRET} bytes")
                text = (await trio.Path(self.path).read_bytes()).decode("ascii")
                self._value = checked(name, text)
                self._seen = seen
        except OSError as error:
            self._value = None
            raise SecretError(f"secret {name!r}: can't read {self.path}: {error.strerror}") from None
        except UnicodeDecodeError:
            self._value = None
            raise SecretError(f"secret {name!r}: {self.path} holds bytes that are not ASCII") from None
        except SecretError:
            self._value = None
            raise
        return self._value


@dataclass(slots=True)
class CommandSource:
    """What a command prints, run at the first look-up and again once the value is older than ``ttl`` seconds.

    The command runs without a shell, outside the sandbox; its standard error goes nowhere, since it may quote the value.
    """

    argv: Sequence[str] = field(repr=False)
    ttl: float = 300.0
    timeout: float = 30.0
    _value: Secret | None = field(default=None, init=False, repr=False)
    _until: float = field(default=0.0, init=False, repr=False)
    _lock: trio.Lock = field(default_factory=trio.Lock, init=False, repr=False)

    async def get(self, name: str) -> Secret:
        """Return what the command prints, without its last line end.

        Raises:
            SecretError: it can't be started, fails, takes too long, or prints what is unfit for a header.
        """
        async with self._lock:
            if self._value is not None and trio.current_time() < self._until:
                return self._value
            self._value = None
            self._value = await self._run(name)
            self._until = trio.current_time() + self.ttl
            return self._value

    async def _run(self, name: str) -> Secret:
        try:
            with trio.fail_after(self.timeout):
                done = await trio.run_process(
                    list(self.argv), stdin=b"", capture_stdout=True, stderr=subprocess.DEVNULL, check=False
                )
        except trio.TooSlowError:
            raise SecretError(f"secret {name!r}: its command took longer than {self.timeout:g} s") from None
        except OSError as error:
            raise SecretError(f"secret {name!r}: its command can't be started: {error.strerror}") from None
        if done.returncode != 0:
            raise SecretError(f"secret {name!r}: its command ended with {done.returncode}")
        try:
            return checked(name, done.stdout.decode("ascii"))
        except UnicodeDecodeError:
            raise SecretError(f"secret {name!r}: its command printed bytes that are not ASCII") from None


@dataclass(frozen=True, slots=True)
class CallableSource:
    """An async function of the embedder's that takes the secret's name and returns a ``Secret`` or a ``str``."""

    function: Callable[[str], Awaitable[Secret | str]] = field(repr=False)

    async def get(self, name: str) -> Secret:
        """Return what the function returns.

        Raises:
            SecretError: the value is unfit for a header.
        """
        value = await self.function(name)
        return checked(name, value.reveal() if isinstance(value, Secret) else value)


class Secrets:
    """The secrets of one sandbox, by name: each with a source of its own."""

    __slots__ = ("_sources",)

    def __init__(self, sources: Mapping[str, SecretSource | str | Secret] | None = None) -> None:
        """Take a source per name; a ``str`` or ``Secret`` stands for itself.

        Raises:
            ConfigurationError: a name is not one that a policy can write, or a source is not one.
            SecretError: a literal value is unfit for a header.
        """
        self._sources: dict[str, SecretSource] = {}
        for name, source in (sources or {}).items():
            if not NAME.match(name):
                raise ConfigurationError(f"secret name {name!r}: use letters, digits, '_', '.', '/', '-'; start with a letter or digit")
            if isinstance(source, str | Secret):
                self._sources[name] = _Constant(checked(name, source.reveal() if isinstance(source, Secret) else source))
            elif isinstance(source, SecretSource):
                self._sources[name] = source
            else:
                raise ConfigurationError(f"secret {name!r}: a source needs an async method get(name), {type(source).__name__} has none")

    def __repr__(self) -> str:
        return f"<Secrets {', '.join(sorted(self._sources)) or 'none'}>"

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    @property
    def names(self) -> frozenset[str]:
        """The names that have a source."""
        return frozenset(self._sources)

    async def get(self, name: str) -> Secret:
        """Return the value of *name*, checked to be fit for a header.

        Raises:
            SecretError: there is no such secret, or its source failed; the message never holds a value.
        """
        source = self._sources.get(name)
        if source is None:
            raise SecretError(f"no secret is named {name!r}")
        try:
            value = await source.get(name)
            return checked(name, value.reveal())
        except SecretError:
            raise
        except Exception as error:  # noqa: BLE001  # a source's own exception may quote the value
            raise SecretError(f"secret {name!r}: its source failed with {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Secret

    async def get(self, name: str) -> Secret:  # noqa: ARG002
        return self.value
