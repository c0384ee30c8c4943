"""A proxy: the operator's settings, the resolver and the limits that sandboxes share, and the sandboxes.

It has no globals: two proxies in one process know nothing of each other.
"""

from __future__ import annotations

__all__ = ["Proxy"]

import contextlib
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import trio
from trio.abc import Stream

from sbxproxy.address import IPAddress, PrefixTable
from sbxproxy.connection.context import Context, Dialer
from sbxproxy.errors import ConfigurationError
from sbxproxy.events import Observer, telling
from sbxproxy.http.pool import Pool
from sbxproxy.loading import Loading
from sbxproxy.net.descriptors import fd_budget
from sbxproxy.net.dial import dial
from sbxproxy.net.engine import Engine
from sbxproxy.net.host import is_host_address
from sbxproxy.net.listen import Slots
from sbxproxy.net.resolve import Resolver, SystemResolver
from sbxproxy.policy.model import Policy
from sbxproxy.policy.reach import Boundary
from sbxproxy.sandbox.doors import BEHIND
from sbxproxy.sandbox.identity import Identity
from sbxproxy.sandbox.references import check_references
from sbxproxy.sandbox.sandbox import Sandbox
from sbxproxy.secrets import Secret, Secrets, SecretSource
from sbxproxy.settings import Settings
from sbxproxy.stages.pipeline import Pipeline
from sbxproxy.stages.terminator import TlsTerminator
from sbxproxy.stages.transforms import Transforms
from sbxproxy.tls.upstream import UpstreamTls

if TYPE_CHECKING:
    from sbxproxy.dns.forward import Forwarder

_EVERYWHERE = (IPv4Address(0), IPv6Address(0))

PAUSE = 0.05
"""Seconds after its start until a proxy loads what no connection has asked for yet: what waits for the start goes first."""


class Proxy:
    """Holds sandboxes. Making one does no I/O; ``run`` must be running while they serve."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        pipeline: Pipeline | None = None,
        observers: Sequence[Observer] = (),
        resolver: Resolver | None = None,
        dialer: Dialer | None = None,
    ) -> None:
        """Put a proxy together.

        Args:
            settings: the operator's; the defaults open the public Internet only, to what policies allow.
            pipeline: parts beside the built-in ones.
            observers: told of every event of every sandbox, beside the pipeline's.
            resolver: instead of the system's resolver with ``settings.resolve``.
            dialer: instead of TCP: ``async (addresses, port) -> (stream, address)``; it is given judged addresses only.

        Raises:
            ConfigurationError: a setting is wrong.
        """
        self.settings = settings or Settings()
        self.pipeline = pipeline or Pipeline()
        limits = self.settings.limits
        self._observers = (*self.pipeline.observers, *observers)
        for observer in observers:
            if not callable(observer):
                raise ConfigurationError(f"observer {observer!r} must be a plain function: (event) -> None")
        self._resolver = resolver or SystemResolver(
            overrides=self.settings.resolve,
            threads=limits.resolver_threads,
            cache=limits.resolver_cache,
            timeout=limits.resolve,
        )
        self._dialer = dialer or self._dial
        self._upstream = UpstreamTls(roots=self.settings.upstream_roots, extra_roots=self.settings.extra_upstream_roots)
        self._handshakes = Slots(limits.handshakes, limit="handshakes")
        self._flows = Slots(limits.flows or fd_budget(), limit="flows")
        self._sandboxes: dict[str, Sandbox] = {}
        self._listening: dict[int, dict[IPAddress, int]] = {}
        self._epoch = 0
        self._engine = Engine()
        self._forwarder: Forwarder | None = None
        self._machinery = Loading(*BEHIND)
        self._running = False
        self._boundary = Boundary(
            never=PrefixTable(self.settings.never),
            private=PrefixTable(self.settings.private_networks),
            listeners=self._is_own_listener,
            is_host_address=is_host_address if dialer is None else lambda _address: False,
            epoch=lambda: self._epoch,
        )

    def __repr__(self) -> str:
        return f"<Proxy {len(self._sandboxes)} sandboxes{'' if self._running else ', not running'}>"

    @property
    def sandboxes(self) -> tuple[Sandbox, ...]:
        """The open sandboxes, oldest first."""
        return tuple(self._sandboxes.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled or drained: moves bytes, expires idle connections. Leaving it closes every sandbox.

        Raises:
            ConfigurationError: a file of roots that the settings name can't be loaded. The system's are read later; where they can't
                be, no upstream is believed.
            RuntimeError: it is running already.
        """
        if self._running:
            raise RuntimeError("this proxy is running already")
        if self.settings.upstream_roots is not None or self.settings.extra_upstream_roots:
            await trio.to_thread.run_sync(self._upstream.load)
        self._running = True
        self._done = trio.Event()
        moving = trio.CancelScope(shield=True)

        async def move(*, task_status: trio.TaskStatus[None]) -> None:
            with moving:
                await self._engine.run(task_status=task_status)

        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(move, name="move bytes")
                nursery.start_soon(self._expire, name="expire idle connections")
                nursery.start_soon(self._prepare, name="load what connections need")
                task_status.started()
                await self._done.wait()
            finally:
                self._running = False
                for sandbox in self.sandboxes:
                    with trio.CancelScope(shield=True):
                        await sandbox.aclose()
                # Not before: closing a sandbox cuts its flows, which says why they ended.
                moving.cancel()
            nursery.cancel_scope.cancel(reason="drained")

    async def _prepare(self) -> None:
        await trio.sleep(PAUSE)
        await self._machinery.finish()
        with contextlib.suppress(ConfigurationError):  # which whoever needs them gets to hear
            await trio.to_thread.run_sync(self._upstream.load)
        if self._forwarder is not None:
            await self._forwarder.load()

    async def _expire(self) -> None:
        interval = self.settings.limits.keep_alive / 4
        while True:
            await trio.sleep(interval)
            for sandbox in self.sandboxes:
                await sandbox.expire_idle()

    def create_sandbox(
        self,
        name: str,
        *,
        policy: object,
        secrets: Mapping[str, SecretSource | str | Secret] | Secrets | None = None,
        observers: Sequence[Observer] = (),
        identity: Identity | None = None,
    ) -> Sandbox:
        """Make a sandbox, behind *policy* from its first moment.

        Args:
            name: stands in events and in its certificate; unique among the open sandboxes.
            policy: a policy document (see docs/policy.md) or a ``Policy``.
            secrets: what ``${secret:NAME}`` in the policy may name, by name.
            observers: told of this sandbox's events, beside the proxy's.
            identity: its certificate authority, if that had to be there before the proxy; *name* must be the same.

        Raises:
            PolicyError: the policy is invalid, or names a secret or plugin that isn't there.
            SecretError: a secret given literally can't stand in a header.
            ConfigurationError: the name is empty, too long or taken, or a secret's name or source is wrong.
        """
        if name in self._sandboxes:
            raise ConfigurationError(f"a sandbox named {name!r} is open already")
        compiled = Policy.parse(policy)
        held = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
        check_references(compiled, held, self.pipeline.transforms)
        limits = self.settings.limits
        identity = identity or Identity(name, self.settings)
        if identity.name != name:
            raise ConfigurationError("the sandbox's identity has another name")
        context = Context(
            sandbox=name,
            policy=compiled,
            boundary=self._boundary,
            limits=limits,
            resolver=self._resolver,
            dialer=self._dialer,
            sniffers=self.pipeline.sniffers,
            policies=self.pipeline.policies,
            handlers=self.pipeline.handlers,
            terminator=self.pipeline.terminator or TlsTerminator(identity.authority, self._upstream),
            secrets=held,
            transforms=Transforms(self.pipeline.transforms, held),
            pool=Pool(limits),
            handshakes=Slots(limits.handshakes_per_sandbox, limit="handshakes_per_sandbox", within=self._handshakes),
            emit=telling((*self._observers, *observers)),
            engine=self._engine if self.settings.engine else None,
            known=self._resolver.known if isinstance(self._resolver, SystemResolver) else lambda _name: None,
            dials_tcp=self._dialer == self._dial,
        )
        sandbox = Sandbox(
            identity,
            context=context,
            plugins=self.pipeline.transforms,
            register=self._register,
            forwarder=self._dns_forwarder,
            slots=Slots(limits.flows_per_sandbox, limit="flows_per_sandbox", within=self._flows),
            is_running=lambda: self._running,
            ready=self._machinery.finish,
            closed=lambda: self._forget(name),
        )
        self._sandboxes[name] = sandbox
        return sandbox

    def _dns_forwarder(self) -> Forwarder:
        """Return what asks the name servers, for all sandboxes; made when the first of them needs it."""
        if self._forwarder is None:
            from sbxproxy.dns.forward import Forwarder  # noqa: PLC0415 - many a proxy answers no questions

            self._forwarder = Forwarder(self.settings.nameservers, limits=self.settings.limits)
        return self._forwarder

    def _forget(self, name: str) -> None:
        self._sandboxes.pop(name, None)

    async def drain(self, grace: float = 5.0) -> None:
        """Stop accepting in every sandbox, let flows end for *grace* seconds, cut the rest; then ``run`` returns."""
        async with trio.open_nursery() as nursery:
            for sandbox in self.sandboxes:
                nursery.start_soon(sandbox.drain, grace)
        if self._running:
            self._done.set()

    def note_listeners(self, endpoints: Sequence[tuple[IPAddress, int]]) -> Callable[[], None]:
        """Let nothing be connected to *endpoints*, as to the listeners of this proxy's own sandboxes; returns what takes that back.

        For other processes that serve sandboxes together with this one: by another's listener a program would be another sandbox.
        """
        unregister: Callable[[], None] = self._register(endpoints)
        return unregister

    # -- what sandboxes share

    async def _dial(self, addresses: Sequence[IPAddress], port: int) -> tuple[Stream, IPAddress]:
        limits = self.settings.limits
        return await dial(addresses, port, connect=limits.connect, total=limits.connect_total)

    def _register(self, endpoints: Sequence[tuple[IPAddress, int]]) -> Any:
        """Note addresses that this proxy listens on, which nothing may be connected to; returns what takes that back."""
        self._epoch += 1
        for address, port in endpoints:
            here = self._listening.setdefault(port, {})
            here[address] = here.get(address, 0) + 1

        def unregister() -> None:
            self._epoch += 1
            for address, port in endpoints:
                here = self._listening[port]
                here[address] -= 1
                if not here[address]:
                    del here[address]
                    if not here:
                        del self._listening[port]

        return unregister

    def _is_own_listener(self, address: IPAddress, port: int) -> bool:
        here = self._listening.get(port)
        if here is None:  # as for nearly all that is connected to, and an address takes a while to look up
            return False
        # A listener on 0.0.0.0 or :: is at every address of the host.
        return address in here or (not here.keys().isdisjoint(_EVERYWHERE) and is_host_address(address))
