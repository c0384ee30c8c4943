"""Several processes that serve the same sandboxes, and the supervisor that keeps them: one proxy on many processors.

The supervisor carries no connection. It holds what must outlive a worker (policies, certificate authorities, secrets, listening sockets),
tells each worker the same, and replaces those that die. No worker ever accepts a connection before it has its sandbox's policy.
"""

from __future__ import annotations

__all__ = ["Workers"]

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import trio

from sbxproxy.address import IPNetwork
from sbxproxy.errors import ConfigurationError
from sbxproxy.events import Observer
from sbxproxy.fronts.ask import ListenerAuth
from sbxproxy.policy.model import Policy
from sbxproxy.sandbox.identity import Identity
from sbxproxy.sandbox.references import check_references
from sbxproxy.secrets import Secret, Secrets, SecretSource
from sbxproxy.settings import Settings
from sbxproxy.stages.pipeline import Pipeline
from sbxproxy.tls.authority import Founding
from sbxproxy.workers.channel import MAX_DESCRIPTORS
from sbxproxy.workers.hearing import Hearing
from sbxproxy.workers.member import FLOWS, PATIENCE, START, Call, Member, refused
from sbxproxy.workers.places import bind
from sbxproxy.workers.process import ENVIRONMENT
from sbxproxy.workers.share import as_values, share
from sbxproxy.workers.shared import Answers, SharedSandbox

MOST_WORKERS = 256
"""More than machines have processors that would gain by it."""

ENDED = "the workers are not running"

PAUSE = 0.1
"""Seconds before a worker that died soon after its start is replaced; twice as long each time after."""

LONGEST_PAUSE = 5.0
"""Seconds at most: connections wait in the dead worker's queue meanwhile."""

SETTLED = 10.0
"""Seconds that a worker must have lived for its end not to count as a failed start."""


class Workers:
    """Holds sandboxes, as ``Proxy`` does, and serves them by several processes. ``run`` must be running before they are made."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        count: int,
        plugins: Sequence[str] = (),
        observers: Sequence[Observer] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Put it together; no process is started yet.

        Args:
            settings: the operator's, for all workers together: bounds on the whole are divided among them, and rounded up.
            count: how many workers; as many as there are processors is best.
            plugins: names of installed plugins, which every worker loads for itself. Their observers are called here.
            observers: told of every event of every sandbox, of whichever worker.
            environment: the workers' environment variables; by default those of this process that tell how programs run at all.

        Raises:
            ConfigurationError: a setting is wrong, or a plugin is an object or can't be loaded.
        """
        if type(count) is not int or not 0 < count <= MOST_WORKERS:
            raise ConfigurationError(f"workers: a count from 1 to {MOST_WORKERS}, not {count!r}")
        if isinstance(plugins, str) or not all(isinstance(name, str) for name in plugins):
            raise ConfigurationError("workers: plugins are given by a list of names: an object can't be sent to another process")
        for observer in observers:
            if not callable(observer):
                raise ConfigurationError(f"observer {observer!r} must be a plain function: (event) -> None")
        self.settings = settings or Settings()
        self.count = count
        self._plugins = list(plugins)
        self._pipeline = _load(self._plugins)
        self._observers = (*self._pipeline.observers, *observers)
        inherited = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._environment = dict(inherited if environment is None else environment)
        self._settings = as_values(share(self.settings, count))
        self._sandboxes: dict[str, SharedSandbox] = {}
        self._hearing = Hearing(self._sandboxes, self._observers, lambda: self._nursery)
        self._live: set[Member] = set()
        self._started = 0
        self._running = False
        self._draining = False

    def __repr__(self) -> str:
        return f"<Workers {len(self._live)} of {self.count}, {len(self._sandboxes)} sandboxes>"

    @property
    def sandboxes(self) -> tuple[SharedSandbox, ...]:
        """The open sandboxes, oldest first."""
        return tuple(self._sandboxes.values())

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of the workers that serve at the moment, in no order."""
        return tuple(member.pid for member in self._live)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running until cancelled or drained. Leaving it ends them, and closes every sandbox.

        Args:
            task_status: started once every worker is ready.

        Raises:
            ConfigurationError: a worker can't be started: the settings name a file of roots that can't be loaded, for one.
            RuntimeError: it is running already.
        """
        if self._running:
            raise RuntimeError("these workers are running already")
        self._running, self._draining = True, False
        self._done = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                async with trio.open_nursery() as starting:
                    for slot in range(self.count):
                        starting.start_soon(nursery.start, self._keep, slot)
                task_status.started()
                await self._done.wait()
                nursery.cancel_scope.cancel(reason="drained")
        finally:
            self._running = False
            with trio.CancelScope(shield=True):
                for sandbox in self.sandboxes:
                    await sandbox.close_places()
                    sandbox.end()
            self._sandboxes.clear()

    # -- sandboxes

    async def create_sandbox(
        self,
        name: str,
        *,
        policy: object,
        listen: Sequence[str],
        secrets: Mapping[str, SecretSource | str | Secret] | Secrets | None = None,
        auth: ListenerAuth | None = None,
        trusted_proxies: Sequence[IPNetwork | Literal["unix"]] = (),
        observers: Sequence[Observer] = (),
    ) -> SharedSandbox:
        """Make a sandbox behind *policy*, and serve it in every worker; returns when all of them accept its connections.

        Args:
            name: stands in events and in its certificate; unique among the open sandboxes.
            policy: a policy document (see docs/policy.md) or a ``Policy``.
            listen: where: ``ADDRESS:PORT``, ``[IPv6]:PORT`` (port 0: any) or ``unix:PATH``. What comes in there is this sandbox.
            secrets: what ``${secret:NAME}`` in the policy may name, by name. Sources are asked here; a worker gets a value when it
                needs it.
            auth: ask clients for this user name and password.
            trusted_proxies: as in ``Sandbox.serve``.
            observers: told of this sandbox's events, beside those of all.

        Raises:
            PolicyError: the policy is invalid, or names a secret or plugin that isn't there.
            SecretError: a secret given literally can't stand in a header.
            ConfigurationError: the name is empty, too long or taken, a secret's name or source is wrong, or *listen* can't be.
            RuntimeError: the workers don't run.
        """
        self._require_running()
        if name in self._sandboxes:
            raise ConfigurationError(f"a sandbox named {name!r} is open already")
        if isinstance(listen, str) or not 0 < len(listen) <= MAX_DESCRIPTORS:
            raise ConfigurationError(f"listen: a list of 1 to {MAX_DESCRIPTORS} addresses")
        compiled = Policy.parse(policy)
        held = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
        check_references(compiled, held, self._pipeline.transforms)
        founding = Founding.make(name)
        identity = Identity(name, self.settings, founding=founding)
        sandbox = SharedSandbox(
            identity,
            founding,
            compiled,
            held,
            await bind(listen, self.count),
            plugins=self._pipeline.transforms,
            auth=auth,
            trusted=list(map(str, trusted_proxies)),
            observers=(*self._observers, *observers),
            tell=self._tell,
            forget=partial(self._forget, name),
        )
        self._sandboxes[name] = sandbox
        try:
            await self._settle([(member, self._note(member, sandbox)) for member in self._live], PATIENCE)
            sandbox.is_served = True
            await self._settle([(member, self._give(member, sandbox)) for member in self._live], sandbox.patience)
        except BaseException:
            await sandbox.aclose()
            raise
        return sandbox

    async def _forget(self, name: str) -> None:
        calls = [(member, member.call({"do": "forget", "name": name})) for member in self._live if name in member.knows]
        for member, _ in calls:
            member.knows.discard(name)
        with suppress(RuntimeError):  # they have ended
            await self._settle(calls, PATIENCE)
        self._sandboxes.pop(name, None)

    def _note(self, member: Member, sandbox: SharedSandbox) -> Call:
        member.knows.add(sandbox.name)
        return member.call(sandbox.notice())

    def _give(self, member: Member, sandbox: SharedSandbox) -> Call:
        member.holds.add(sandbox.name)
        return member.call(*sandbox.creation(member.slot))

    async def _tell(
        self, sandbox: SharedSandbox, message: Mapping[str, Any], patience: float, happened: Callable[[Answers], None]
    ) -> None:
        """Tell all that have *sandbox*, before anything is awaited; see ``_settle``."""
        holding = [member for member in self._live if sandbox.name in member.holds]
        calls = [(member, member.call(message)) for member in holding]
        if message["do"] == "close":
            for member in holding:
                member.holds.discard(sandbox.name)
            with suppress(RuntimeError):  # they have ended, and what was to be closed is
                await self._settle(calls, patience)
        else:
            await self._settle(calls, patience, happened)

    async def _settle(
        self, calls: Sequence[tuple[Member, Call]], patience: float, happened: Callable[[Answers], None] = lambda _: None
    ) -> None:
        """Wait until each call is answered, or its worker has ended; goes on in the background if the caller is cancelled.

        Args:
            calls: to whom, and what.
            patience: seconds until a worker is killed.
            happened: told of the answers of those that live, once there are no others to wait for.

        Raises:
            RuntimeError: the workers have ended meanwhile.
        """
        self._require_running()
        answers: list[dict[str, Any]] = []
        settled = trio.Event()
        complete = False

        async def wait(member: Member, call: Call) -> None:
            answer = await member.expect(call, patience)
            if answer is not None:
                answers.append(answer)

        async def wait_for_all() -> None:
            nonlocal complete
            try:
                async with trio.open_nursery() as nursery:
                    for member, call in calls:
                        nursery.start_soon(wait, member, call)
                complete = True
                happened(answers)
            finally:
                settled.set()

        self._nursery.start_soon(wait_for_all)
        await settled.wait()
        if not complete:
            raise RuntimeError(ENDED)

    def _require_running(self) -> None:
        if not self._running or self._nursery.cancel_scope.cancel_called:
            raise RuntimeError(ENDED)

    async def drain(self, grace: float = 5.0) -> None:
        """Stop accepting in every worker, let flows end for *grace* seconds, cut the rest; then ``run`` returns."""
        if not self._running:
            await trio.lowlevel.checkpoint()
            return
        self._draining = True
        for sandbox in self.sandboxes:  # first: what still came in by these sockets would be accepted by nobody
            await sandbox.close_places()
        with suppress(RuntimeError):  # they have ended meanwhile
            calls = [(member, member.call({"do": "drain", "grace": grace})) for member in self._live]
            await self._settle(calls, grace + PATIENCE)
            with trio.move_on_after(PATIENCE):  # for what plugins do when their process ends
                for member, _ in calls:
                    await member.ended.wait()
        self._done.set()

    # -- workers

    async def _keep(self, slot: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Have a worker in *slot*, until cancelled: one after the other."""
        pause = 0.0
        ready = False

        def started() -> None:
            nonlocal ready
            if not ready:
                ready = True
                task_status.started()

        while not self._draining:
            begun = trio.current_time()
            self._started += 1
            member = Member(slot, self._started)
            failure = ""
            try:
                await member.run(self._environment, partial(self._use, member, started), partial(self._hearing.take, member))
            except* ConfigurationError as group:
                failure = str(_first(group))
            finally:
                self._live.discard(member)
            if self._draining:
                break
            if not ready:
                raise ConfigurationError(failure) if failure else refused(None)
            member.why = member.why or failure
            self._hearing.lost(member)
            settled = trio.current_time() - begun >= SETTLED
            pause = 0.0 if settled else min(max(PAUSE, 2 * pause), LONGEST_PAUSE)
            await trio.sleep(pause)

    async def _use(self, member: Member, started: Any) -> None:
        """Make a new worker one that serves, and then watch it."""
        begin = {
            "do": "start",
            "settings": self._settings,
            "plugins": self._plugins,
            "first": member.number * FLOWS + 1,
        }
        call = member.call(begin)
        with trio.move_on_after(START):
            await call.over.wait()
        if call.answer is None or call.answer["do"] == "failed":
            member.kill("it did not start in time")
            raise refused(call.answer)
        # Without an await in between: what happens to a sandbox from here on this worker is told of.
        self._live.add(member)
        sandboxes = [sandbox for sandbox in self.sandboxes if not sandbox.is_closed]
        calls = [(self._note(member, sandbox), PATIENCE) for sandbox in sandboxes]
        calls += [(self._give(member, sandbox), sandbox.patience) for sandbox in sandboxes if sandbox.is_served]
        for call, patience in calls:
            if await member.expect(call, patience) is None:
                return
        started()
        await member.pulse()


def _load(names: Sequence[str]) -> Pipeline:
    if not names:
        return Pipeline()
    from sbxproxy.plugins import load  # noqa: PLC0415 - asking what is installed takes a while

    return load(names)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
