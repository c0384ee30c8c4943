"""What ``run`` and ``serve`` have in common: a proxy with one sandbox, its log, its events, and a policy file that may change."""

from __future__ import annotations

__all__ = ["Session", "configuration_secret", "observing", "run_trio"]

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import trio

from sbxproxy.cli.control import serve_control
from sbxproxy.cli.failure import Failure
from sbxproxy.cli.log import Log
from sbxproxy.cli.options import Configuration, FileState, Reading, file_state
from sbxproxy.errors import ConfigurationError, PolicyError, SbxproxyError
from sbxproxy.events import JsonLines, Observer
from sbxproxy.loading import collect_seldom
from sbxproxy.proxy import Proxy
from sbxproxy.sandbox import Sandbox

if TYPE_CHECKING:
    from sbxproxy.sandbox.identity import Identity
    from sbxproxy.stages.pipeline import Pipeline

POLL = 0.5
"""Seconds between two looks at the policy file."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Session:
    """A running proxy with its one sandbox."""

    configuration: Configuration
    proxy: Proxy
    sandbox: Sandbox
    log: Log
    nursery: trio.Nursery
    _reloading: trio.Lock = field(default_factory=trio.Lock)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, configuration: Configuration, name: str, *, reading: Reading | None = None, identity: Identity | None = None
    ) -> AsyncIterator[Session]:
        """Start; everything of it is stopped at the end of the block.

        Args:
            configuration: what the options come to.
            name: the sandbox's.
            reading: the policy, if it was read already.
            identity: the sandbox's, if it was made already.

        Raises:
            SbxproxyError: the configuration doesn't hold.
        """
        with observing(configuration) as (log, observers):
            proxy = Proxy(configuration.settings, pipeline=_pipeline(configuration.plugins), observers=observers)
            reading = reading or configuration.source.examine()
            sandbox = proxy.create_sandbox(name, policy=reading.policy, secrets=configuration.secrets, identity=identity)
            for source_name in sandbox.policy.secrets:
                # A secret that can't be had is an error now rather than at the first request.
                await configuration_secret(configuration, source_name)
            async with trio.open_nursery() as nursery:
                await nursery.start(proxy.run)
                collect_seldom()
                session = cls(configuration, proxy, sandbox, log, nursery)
                nursery.start_soon(session.watch, reading.state)
                yield session
                nursery.cancel_scope.cancel(reason="the session is over")

    @property
    def on_hangup(self) -> Callable[[], Awaitable[object]] | None:
        """What SIGHUP means: to read the policy file again, where there is one."""
        return self.reload if self.configuration.source.path is not None else None

    async def serve_control(self, directory: Path) -> None:
        """Let other terminals show and change the policy, by a socket in *directory*, which the command must not see.

        Raises:
            ConfigurationError: the socket can't be made.
        """
        await self.nursery.start(partial(serve_control, self.sandbox, directory, say=self._said))

    def _said(self, text: str) -> None:
        self.log.say(text, "yellow")

    async def reload(self) -> None:
        """Read the policy file and put it in force; an invalid one is reported, and the old policy stays."""
        try:
            async with self._reloading:  # an older reading must not overtake a newer one
                policy = await trio.to_thread.run_sync(self.configuration.source.read)
                changed = await self.sandbox.update_policy(policy)
        except (PolicyError, ConfigurationError) as error:
            self.log.say(f"the old policy stays in force: {error}", "bold red")
        else:
            self.log.say(f"policy is now {changed.mode}: {len(changed.cut)} flows cut, {changed.kept} kept", "yellow")

    async def watch(self, seen: FileState | None) -> None:
        """Reload whenever the policy file is no longer as it was *seen*."""
        path = self.configuration.source.path
        if path is None:
            return
        while True:
            await trio.sleep(POLL)
            now = file_state(path)
            if now != seen:
                seen = now
                await self.reload()


@contextmanager
def observing(configuration: Configuration) -> Iterator[tuple[Log, list[Observer]]]:
    """Make the log, and the list of all observers that the options ask for; written to the end and closed after the block.

    Raises:
        ConfigurationError: the file of events can't be written.
    """
    log = Log(verbosity=configuration.verbosity)
    observers: list[Observer] = [log]
    lines: JsonLines | None = None
    events = _open_events(configuration.events)
    if events is not None:
        lines = JsonLines(events)
        observers.append(lines)
    try:
        yield log, observers
    finally:
        log.close()
        if lines is not None:
            lines.close()
        if events is not None and events is not sys.stdout:
            events.close()


async def configuration_secret(configuration: Configuration, name: str) -> None:
    """Look a secret up once; raises ``SecretError``."""
    from sbxproxy.secrets import Secrets

    await Secrets(configuration.secrets).get(name)


def _pipeline(plugins: Sequence[str]) -> Pipeline | None:
    """Load the plugins that are named. Only then is it asked what is installed, which takes a while."""
    if not plugins:
        return None
    from sbxproxy.plugins import load

    return load(plugins)


def _open_events(where: str | None) -> IO[str] | None:
    if where is None:
        return None
    if where == "-":
        return sys.stdout
    try:
        return Path(where).open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--events: can't write {where}: {error.strerror}") from None


def run_trio(function: Callable[[], Awaitable[_T]], *, failure: int) -> _T:
    """Run *function*; an error of configuration becomes one sentence and exit code *failure*, if it isn't a ``Failure`` already."""
    try:
        return trio.run(function)
    except* Failure as group:
        wrong = _first(group)
    except* SbxproxyError as group:
        wrong = Failure(str(_first(group)), failure)
    except* OSError as group:
        wrong = Failure(str(_first(group)), failure)
    raise wrong


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
