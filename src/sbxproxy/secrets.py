"""Secrets: a value that can't be shown by accident, and the places it may come from.

A policy only names secrets (``${secret:github}``); the operator says where each name's value is. A value lives in this process
and in the one request it goes out with, and nowhere in the sandbox.
"""

from __future__ import annotations

__all__ = ["CallableSource", "CommandSource", "EnvironmentSource", "FileSource", "Secret", "SecretSource", "Secrets"]

import hmac
import inspect
import math
import os
import re
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol, Self, runtime_checkable

import trio
from trio.abc import Clock
from trio.lowlevel import current_clock

from sbxproxy.errors import ConfigurationError, SecretError

MAX_SECRET = 16 * 1024
"""Bytes in one secret: a header has to fit into a head, and servers take 8 to 32 KiB of them."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}\Z")
"""What a policy can write between ``${secret:`` and ``}``."""


_CLOCK_TICK = 1_000_000_000
"""Nanoseconds within which two writes may carry the same modification time: 10 ms on Linux, 1 s on old file systems."""


FRESH = 0.1
"""Seconds for which what was found out of a file is taken for its state: a look at it takes a thread, and as long as a request."""

_Version = tuple[int, int, int]
"""Inode, size in bytes, and modification time in nanoseconds."""


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
        # "surrogatepass": an encoding error would carry the value.
        return hmac.compare_digest(self._value.encode(errors="surrogatepass"), other._value.encode(errors="surrogatepass"))

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

    A source that often knows a value without waiting may also have ``def at_hand(self, name) -> Secret | None``: the value as of
    now, or ``None`` to be asked by ``get``. It is called on the event loop, and must neither wait nor raise. A request that needs
    nothing else takes half the time then.
    """

    async def get(self, name: str) -> Secret:
        """Return the value of *name* as of now."""
        ...


def _is_before(until: float, clock: Clock | None) -> bool:
    """Tell whether *until* is still to come by *clock*; one of another run tells nothing, since each run's begins somewhere else."""
    return clock is current_clock() and trio.current_time() < until


def checked(name: str, secret: Secret) -> Secret:
    """Return *secret* made fit for a header: non-empty printable ASCII, without one trailing line end.

    It takes a ``Secret`` so that a report that shows the local variables of each frame shows none either.

    Raises:
        SecretError: it is empty, too long or has characters that could end a header; the value isn't shown.
    """
    if secret.reveal().endswith(("\n", "\r")):
        secret = Secret(secret.reveal().removesuffix("\n").removesuffix("\r"))
    fault = _fault(secret)
    if fault:
        raise SecretError(f"secret {name!r} {fault}")
    return secret


def _fault(secret: Secret) -> str:
    value = secret.reveal()
    if not value:
        return "is empty"
    if len(value) > MAX_SECRET:
        return f"is longer than {MAX_SECRET} bytes"
    if not (value.isascii() and value.isprintable()):
        return "has a control or non-ASCII character, which no header may hold"
    return ""


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
        value = self.at_hand(name)
        if value is None:
            raise SecretError(f"secret {name!r}: environment variable {self.variable} is not set")
        return checked(name, value)

    def at_hand(self, name: str) -> Secret | None:  # noqa: ARG002
        """Return the variable's value, unchecked; ``None`` if it isn't set."""
        value = self.environ.get(self.variable)
        return None if value is None else Secret(value)


@dataclass(slots=True)
class FileSource:
    """A file, read again when it changes: rotation needs no restart.

    A change is told by inode, size and modification time, so that an atomic rename as well as a rewrite is seen. What was
    read within a second of being written is read again next time: two writes in one tick of the file system's clock look alike.
    Requests see a change within a tenth of a second.
    """

    path: Path
    _kept: tuple[_Version, Secret] | None = field(default=None, init=False, repr=False)
    _fresh_until: float = field(default=-math.inf, init=False, repr=False)
    _clock: Clock | None = field(default=None, init=False, repr=False, compare=False)  # whose time that is

    async def get(self, name: str) -> Secret:
        """Return the file's content without its last line end.

        Raises:
            SecretError: it can't be read, isn't a regular file, or is unfit for a header.
        """
        began = trio.current_time()
        try:
            # A hung network file system holds the thread, not the request.
            version, content, settled = await trio.to_thread.run_sync(self._read, self._kept, abandon_on_cancel=True)
            value = checked(name, content)
        except OSError as error:
            self._keep(None, began)
            raise SecretError(f"secret {name!r}: can't read {self.path}: {error.strerror}") from None
        except SecretError:
            self._keep(None, began)
            raise
        self._keep((version, value) if settled else None, began)
        return value

    def _keep(self, found: tuple[_Version, Secret] | None, began: float) -> None:
        """Keep what a look *found* that *began* then, unless one that began later came back earlier."""
        clock, until = current_clock(), began + FRESH
        if clock is not self._clock or until >= self._fresh_until:
            self._kept, self._fresh_until, self._clock = found, until, clock

    def at_hand(self, name: str) -> Secret | None:  # noqa: ARG002
        """Return the content if it was looked at a moment ago."""
        return self._kept[1] if self._kept is not None and _is_before(self._fresh_until, self._clock) else None

    def _read(self, kept: tuple[_Version, Secret] | None) -> tuple[_Version, Secret, bool]:
        """Return the file's version, its content, and whether a later write must show in the version; runs in a thread."""
        status = Path(self.path).stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a terminal may never end
            raise OSError(0, "it is not a regular file")
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if kept is not None and kept[0] == version:
            return *kept, True
        with Path(self.path).open("rb") as file:
            content = Secret(file.read(MAX_SECRET + 3).decode("latin-1"))  # what isn't ASCII is found later
        return version, content, time.time_ns() - status.st_mtime_ns > _CLOCK_TICK


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
    _clock: Clock | None = field(default=None, init=False, repr=False, compare=False)  # whose time that is
    _lock: trio.Lock = field(default_factory=trio.Lock, init=False, repr=False)

    async def get(self, name: str) -> Secret:
        """Return what the command prints, without its last line end.

        Raises:
            SecretError: it can't be started, fails, takes too long, or prints what is unfit for a header.
        """
        async with self._lock:
            if (value := self.at_hand(name)) is not None:
                return value
            self._value = None
            self._value = await self._run(name)
            self._until, self._clock = trio.current_time() + self.ttl, current_clock()
            return self._value

    def at_hand(self, name: str) -> Secret | None:  # noqa: ARG002
        """Return what the command printed, until that is too old."""
        return self._value if _is_before(self._until, self._clock) else None

    async def _run(self, name: str) -> Secret:
        try:
            with trio.fail_after(self.timeout):
                status, printed = await self._output()
        except trio.TooSlowError:
            raise SecretError(f"secret {name!r}: its command took longer than {self.timeout:g} s") from None
        except OSError as error:
            raise SecretError(f"secret {name!r}: its command can't be started: {error.strerror}") from None
        if status != 0:
            raise SecretError(f"secret {name!r}: its command ended with {status}")
        return checked(name, printed)

    async def _output(self) -> tuple[int, Secret]:
        done = await trio.run_process(
            list(self.argv), stdin=subprocess.DEVNULL, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
        )
        return done.returncode, Secret(done.stdout.decode("latin-1"))  # what isn't ASCII is found later


@dataclass(frozen=True, slots=True)
class CallableSource:
    """An async function of the embedder's that takes the secret's name and returns a ``Secret`` or a ``str``."""

    function: Callable[[str], Awaitable[Secret | str]] = field(repr=False)

    async def get(self, name: str) -> Secret:
        """Return what the function returns.

        Raises:
            SecretError: the value is unfit for a header.
        """
        return checked(name, _wrapped(await self.function(name)))


class Secrets:
    """The secrets of one sandbox, by name: each with a source of its own."""

    __slots__ = ("_at_hand", "_sources")

    def __init__(self, sources: Mapping[str, SecretSource | str | Secret] | None = None) -> None:
        """Take a source per name; a ``str`` or ``Secret`` stands for itself.

        Raises:
            ConfigurationError: a name is not one that a policy can write, or a source is not one.
            SecretError: a literal value is unfit for a header.
        """
        self._sources: dict[str, SecretSource] = {}
        self._at_hand: dict[str, Callable[[str], Secret | None]] = {}
        for name, source in (sources or {}).items():
            if not NAME.match(name):
                raise ConfigurationError(
                    f"secret name {name!r}: use letters, digits, '_', '.', '/', '-'; start with a letter or digit"
                )
            if isinstance(source, str | Secret):
                self._sources[name] = _Constant(checked(name, _wrapped(source)))
            elif inspect.iscoroutinefunction(getattr(source, "get", None)) and not isinstance(source, type):
                self._sources[name] = source
            else:  # a dict has a get as well, but not an async one
                kind = source.__name__ if isinstance(source, type) else type(source).__name__
                raise ConfigurationError(
                    f"secret {name!r}: a source is an object with `async def get(self, name)`, {kind} is none"
                )
            at_hand = getattr(self._sources[name], "at_hand", None)
            if inspect.iscoroutinefunction(at_hand):
                raise ConfigurationError(f"secret {name!r}: a source's at_hand is a plain function, not an async one")
            if callable(at_hand):
                self._at_hand[name] = at_hand

    def __repr__(self) -> str:
        return f"<Secrets {', '.join(sorted(self._sources)) or 'none'}>"

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    @property
    def names(self) -> frozenset[str]:
        """The names that have a source."""
        return frozenset(self._sources)

    def at_hand(self, name: str) -> Secret | None:
        """Return the value of *name* as of now if its source knows it without waiting; ``None``: ask ``get``, which says what is wrong."""
        at_hand = self._at_hand.get(name)
        if at_hand is None:
            return None
        try:
            secret = at_hand(name)
            return None if secret is None else checked(name, secret)
        except Exception:  # noqa: BLE001
            return None

    def keep(self, name: str) -> float:
        """Return for how many seconds a value that was just got may be used again without asking; infinity for a literal one."""
        if type(self._sources.get(name)) is _Constant:
            return math.inf
        return FRESH if self.at_hand(name) is not None else 0.0

    async def get(self, name: str) -> Secret:
        """Return the value of *name*, checked to be fit for a header.

        Raises:
            SecretError: there is no such secret, or its source failed; the message never holds a value.
        """
        source = self._sources.get(name)
        if source is None:
            raise SecretError(f"no secret is named {name!r}")
        try:
            return checked(name, await source.get(name))
        except SecretError:
            raise
        except Exception as error:  # noqa: BLE001  # a source's own exception may quote the value
            raise SecretError(f"secret {name!r}: its source failed with {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Secret

    async def get(self, name: str) -> Secret:  # noqa: ARG002
        return self.value

    def at_hand(self, name: str) -> Secret:  # noqa: ARG002
        return self.value


def _wrapped(value: Secret | str) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)
