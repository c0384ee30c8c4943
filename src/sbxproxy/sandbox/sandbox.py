"""One sandbox: its policy, its certificate authority, its secrets and its live flows. It shares nothing that carries a secret.

A sandbox never exists without a policy, and an update is a replacement: the new policy is read whole, put in force in one step,
and then every live flow is judged again by it.
"""

from __future__ import annotations

__all__ = ["Sandbox"]

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import trio
from trio.abc import Listener, Stream

from sbxproxy.address import IPAddress, IPNetwork, PrefixTable, parse_address
from sbxproxy.capture.captured import Captured
from sbxproxy.connection.context import Context
from sbxproxy.errors import ConfigurationError
from sbxproxy.events import PolicyChanged
from sbxproxy.flow import Flow, all_finished
from sbxproxy.fronts.ask import Ask, ListenerAuth, StreamAsk
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.net.listen import Slots, describe, local_endpoints
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.model import Policy
from sbxproxy.sandbox.doors import Doors, admit_plain
from sbxproxy.sandbox.identity import Identity
from sbxproxy.sandbox.references import check_references

if TYPE_CHECKING:
    from sbxproxy.dns.answerer import DnsAnswerer
    from sbxproxy.dns.forward import Forward


class Sandbox:
    """What one sandbox may do, changed while it runs. Made by ``Proxy.create_sandbox``.

    Attributes:
        name: as given; in every event.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        context: Context,
        plugins: Mapping[str, Any],
        register: Callable[[Sequence[tuple[IPAddress, int]]], Callable[[], None]],
        slots: Slots,
        forwarder: Callable[[], Forward],
        is_running: Callable[[], bool],
        ready: Callable[[], Awaitable[None]],
        closed: Callable[[], None],
    ) -> None:
        """Not called by embedders: see ``Proxy.create_sandbox``."""
        self.name = identity.name
        self._context = context
        self._authority = identity.authority
        self._trust = identity.trust
        self._plugins = plugins
        self._register = register
        self._doors = Doors(context, slots, is_running, ready)
        self._forwarder = forwarder
        self._on_close = closed
        self._dns: DnsAnswerer | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._context.flows)} flows"
        return f"<Sandbox {self.name!r} {self.policy.mode.value} {state}>"

    # -- policy

    @property
    def policy(self) -> Policy:
        """The policy in force; ``policy.document()`` shows it without secrets."""
        return self._context.policy

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The live flows, oldest first."""
        return tuple(self._context.flows.values())

    async def update_policy(self, policy: object) -> PolicyChanged:
        """Put *policy* in force and end what it no longer allows.

        Every live flow is judged again on the facts it was admitted on. One that is denied now, or is to be handled otherwise
        (relayed or inspected), is cut at once, and the peer sees a reset. An inspected flow whose rules changed stays and uses
        the new ones from its next request on; one that has not left yet is decided on anew, or refused. Returns when that is done.

        Args:
            policy: a policy document (see docs/policy.md) or a ``Policy``.

        Returns:
            What changed: the same event that observers are told.

        Raises:
            PolicyError: it is invalid; the old policy is still in force.
            RuntimeError: the sandbox is closed.
        """
        self._require_open()
        compiled = policy if isinstance(policy, Policy) else await trio.to_thread.run_sync(Policy.parse, policy)
        check_references(compiled, self._context.secrets, self._plugins)
        return await self._put_in_force(compiled)

    async def _put_in_force(self, policy: Policy) -> PolicyChanged:
        from sbxproxy.sandbox.update import put_in_force  # noqa: PLC0415 - see ``doors.BEHIND``

        return await put_in_force(self._context, policy)

    @asynccontextmanager
    async def scoped_policy(self, policy: object) -> AsyncIterator[PolicyChanged]:
        """Put *policy* in force for a block, and the one before it again afterwards, whatever happens in the block.

        Raises:
            PolicyError: it is invalid; nothing changed.
        """
        before = self.policy
        changed = await self.update_policy(policy)
        try:
            yield changed
        finally:
            if not self._closed:
                with trio.CancelScope(shield=True):  # bounded by CUT_PATIENCE and the stages' limit
                    await self._put_in_force(before)

    # -- what the program in the sandbox needs

    @property
    def certificate_pem(self) -> bytes:
        """The certificate of this sandbox's own authority; its key never leaves the process."""
        return self._authority.certificate_pem

    def environment(
        self, *, proxy: Listener[Any] | str | None = None, auth: ListenerAuth | None = None, directory: Path | None = None
    ) -> dict[str, str | None]:
        """Return the variables that make clients trust the sandbox's certificate authority, and use the proxy.

        The trust files are written to *directory*, or to a private temporary directory that lives until the sandbox is closed.

        Args:
            proxy: the listener, or its address as the program sees it (``host:port``); none where all connections are captured,
                and then inherited proxy variables are removed.
            auth: user and password if the listener asks for them.
            directory: where to write ``ca.pem`` and ``bundle.pem``, and ``added.pem`` if the operator has extra roots.

        Returns:
            Values by name; ``None`` for variables that must be removed, because they would override these.

        Raises:
            ConfigurationError: the listener is no TCP listener: proxy variables can't name a Unix socket.
            OSError: the files can't be written.
        """
        self._require_open()
        url = None
        if proxy is not None:
            where = proxy if isinstance(proxy, str) else describe(proxy)
            if where.startswith("unix:"):
                raise ConfigurationError("proxy variables can't name a Unix socket; give the address that the program will see")
            user = "" if auth is None else f"{quote(auth.user, safe='')}:{quote(auth.password, safe='')}@"
            url = f"http://{user}{where}"
        return self._trust.environment(url, directory)

    def write_trust(self, directory: Path | None = None) -> tuple[Path, Path]:
        """Write ``ca.pem`` (the certificate alone) and ``bundle.pem``, readable by all.

        The bundle has the roots that upstreams are verified with, the operator's extra ones included, and the certificate: relayed
        hosts show their own certificates to the program.

        Returns:
            Their paths.
        """
        return self._trust.write(directory)

    def mounts(self, directory: Path | None = None, *, nss_home: Path | None = None) -> dict[Path, Path]:
        """Write what a runtime should mount, read-only, over files of the system that the program sees.

        For programs that heed no variable: the system's bundles of roots, Java's trust store, and ``resolv.conf``. Paths are those
        of this machine; a runtime with another file system mounts ``bundle.pem`` wherever that has its bundle.

        Args:
            directory: where to write; a temporary directory until the sandbox is closed, by default.
            nss_home: the program's home directory, for a certificate database of NSS in its ``.pki/nssdb``, which Chromium and its
                kin read; for that one a whole directory is to be mounted. Takes the program ``certutil``.

        Returns:
            The file written, by the path that it is to be seen at.

        Raises:
            ConfigurationError: there is no ``certutil``.
            OSError: the files can't be written.
        """
        self._require_open()
        return self._trust.mounts(directory, nss_home=nss_home)

    def _answerer(self) -> DnsAnswerer:
        if self._dns is None:
            from sbxproxy.dns.answerer import DnsAnswerer  # noqa: PLC0415 - many a sandbox asks no questions

            context = self._context
            self._dns = DnsAnswerer(
                self.name,
                policy=lambda: context.policy,
                boundary=context.boundary,
                resolver=context.resolver,
                emit=context.emit,
                forwarder=self._forwarder(),
                limits=context.limits,
            )
        return self._dns

    # -- connections

    async def serve(
        self,
        listeners: Sequence[Listener[Any]],
        *,
        auth: ListenerAuth | None = None,
        trusted_proxies: Sequence[IPNetwork | Literal["unix"]] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept HTTP CONNECT, absolute-form HTTP and SOCKS5 on *listeners* until drained or cancelled; closes them then.

        What comes in by these listeners is this sandbox, whatever it says of itself.

        Args:
            listeners: open listeners, TCP or Unix.
            auth: ask for this user name and password.
            trusted_proxies: if given, connections begin with a PROXY protocol v2 header instead, accepted from these addresses
                only, and its destination is the target. ``"unix"`` stands for whoever may connect to the Unix sockets among the
                listeners.
            task_status: started once connections are accepted.

        Raises:
            RuntimeError: the sandbox is closed.
        """
        self._require_open()
        trusted = PrefixTable([network for network in trusted_proxies if network != "unix"])
        unix = "unix" in trusted_proxies
        limits = self._context.limits

        async def opener(client: PeekedStream) -> Ask | None:
            # Loaded by now, see ``doors.BEHIND``.
            if trusted_proxies:
                from sbxproxy.fronts.proxy_protocol import open_proxy_protocol  # noqa: PLC0415

                return await open_proxy_protocol(client, trusted, unix=unix)
            from sbxproxy.fronts.explicit import open_explicit  # noqa: PLC0415

            return await open_explicit(client, limits, auth)

        unregister = self._register([endpoint for listener in listeners for endpoint in local_endpoints(listener)])
        try:
            plain = auth is None and not trusted_proxies
            await self._doors.serve(listeners, opener, express=admit_plain if plain else None, task_status=task_status)
        finally:
            unregister()

    async def serve_captured(
        self,
        captured: Captured,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve all TCP and DNS of a captured network namespace until drained or cancelled; closes its sockets then.

        Args:
            captured: what ``sbxproxy.capture`` made: ``listeners`` whose connections the kernel redirected, and ``dns`` sockets.
            task_status: started once connections and queries are answered.

        Raises:
            RuntimeError: the sandbox is closed.
        """
        self._require_open()
        await self._doors.serve_captured(captured, self._answerer(), task_status=task_status)

    async def capture(self, *, netns: str | Path | int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make this sandbox the only way out of a network namespace, until drained or cancelled.

        The namespace keeps its rules when this ends: nothing gets out any more then.

        Args:
            netns: its path (``/proc/PID/ns/net``, ``/run/netns/NAME``) or an open descriptor; not our own namespace.
            task_status: started once the namespace is captured and served. Let the program run only then.

        Raises:
            CaptureUnavailable: a step failed; it says which and why.
            RuntimeError: the sandbox is closed.
        """
        self._require_open()
        from sbxproxy.capture import attach  # noqa: PLC0415 - few embedders need it

        async with await attach(netns) as captured:
            await self.serve_captured(captured, task_status=task_status)

    async def gateway(
        self,
        *,
        interface: str,
        netns: str | Path | int,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make this sandbox the only way out for what comes in by *interface* of a gateway namespace; for root.

        Args:
            interface: a veth's or tap's end in that namespace, through which a container or virtual machine is routed.
            netns: the gateway namespace, which has no other interface.
            task_status: started once it is captured and served.

        Raises:
            CaptureUnavailable: a step failed; it says which and why.
            RuntimeError: the sandbox is closed.
        """
        self._require_open()
        from sbxproxy.capture import gateway  # noqa: PLC0415 - few embedders need it

        async with await gateway(netns, interface) as captured:
            await self.serve_captured(captured, task_status=task_status)

    async def handle(self, stream: Stream, target: tuple[str, int]) -> None:
        """Carry one connection that is already there, to *target*, until it ends; closes *stream*.

        For streams of any kind: vsock, a user-space TCP stack, a test. Trouble with the connection is in its event, not raised.

        Args:
            stream: the program's side.
            target: a host name or IP address, and a port.

        Raises:
            ValueError: *target* is neither a name nor an address, or its port is out of range; *stream* is closed.
            RuntimeError: the sandbox is closed; *stream* is closed.
        """
        try:
            self._require_open()
            ask = StreamAsk(_host(target[0]), _port(target[1]))
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        await self._doors.handle(stream, ask)

    # -- ends

    async def drain(self, grace: float = 5.0) -> None:
        """Stop accepting, give live flows *grace* seconds to end, then cut them; ``serve`` returns."""
        self._doors.stop_accepting("draining")
        await all_finished(self.flows, grace)
        self._cut_all("drained")
        self._doors.close("drained")

    async def aclose(self) -> None:
        """Cut all flows, stop serving, and remove the trust files; again is harmless."""
        if self._closed:
            return
        self._closed = True
        self._cut_all("sandbox-closed")
        self._doors.close("the sandbox was closed")
        self._on_close()
        self._trust.close()
        with trio.CancelScope(shield=True):
            await self._context.pool.aclose_all()
        await trio.lowlevel.checkpoint()

    async def expire_idle(self) -> None:
        """Close idle upstream connections that are too old, or more than are kept."""
        await self._context.pool.tidy()

    def _cut_all(self, why: str) -> None:
        for flow in self.flows:
            flow.cut(why)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"sandbox {self.name!r} is closed")


def _host(host: str) -> Hostname | IPAddress:
    found = parse_address(host) or canonical_hostname(host)
    if found is None:
        raise ValueError("target: neither a host name nor an IP address")
    return found


def _port(port: int) -> int:
    if not 0 < port < 65536:
        raise ValueError("target: a port is a number from 1 to 65535")
    return port
