"""One sandbox: its policy, its certificate authority, its secrets and its live flows. It shares nothing that carries a secret.

A sandbox never exists without a policy, and an update is a replacement: the new policy is read whole, put in force in one step,
and then every live flow is judged again by it.
"""

from __future__ import annotations

__all__ = ["Sandbox"]

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio
from trio.abc import Listener, Stream

from sbxproxy.address import IPAddress, IPNetwork, PrefixTable, parse_address
from sbxproxy.connection import Context, narrow, serve_flow
from sbxproxy.errors import (
    ClientProtocolError,
    ConfigurationError,
    LimitError,
    PolicyError,
    PolicyProblem,
    StageError,
)
from sbxproxy.events import Event, FlowClosed, Observer, PolicyChanged, Problem
from sbxproxy.flow import Flow
from sbxproxy.fronts import Ask, ListenerAuth, StreamAsk, open_explicit, open_proxy_protocol
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.net import BoundedListener, Slots, describe, local_endpoints, peekable
from sbxproxy.net.peek import PeekedStream
from sbxproxy.net.sockets import abort
from sbxproxy.policy import Deny, Policy, Reason
from sbxproxy.secrets import Secrets
from sbxproxy.tls import Authority, bundle_pem
from sbxproxy.tls.trust import proxy_environment, trust_environment

CUT_PATIENCE = 1.0
"""Seconds that an update waits for the flows that it cut to be closed on both sides."""

SLICE = 256
"""Flows judged again at a stretch before other tasks get a turn."""


class Sandbox:
    """What one sandbox may do, changed while it runs. Made by ``Proxy.create_sandbox``.

    Attributes:
        name: as given; in every event.
    """

    def __init__(
        self,
        name: str,
        *,
        context: Context,
        authority: Authority,
        roots: Path | None,
        extra_roots: Sequence[Path],
        observers: Sequence[Observer],
        plugins: Mapping[str, Any],
        register: Callable[[Sequence[tuple[IPAddress, int]]], Callable[[], None]],
        slots: Slots,
        is_running: Callable[[], bool],
        closed: Callable[[], None],
    ) -> None:
        """Not called by embedders: see ``Proxy.create_sandbox``."""
        self.name = name
        self._context = context
        self._authority = authority
        self._roots = roots
        self._extra_roots = tuple(extra_roots)
        self._observers = tuple(observers)
        self._plugins = plugins
        self._register = register
        self._slots = slots
        self._is_running = is_running
        self._on_close = closed
        self._directory: Path | None = None
        self._accepting: set[trio.CancelScope] = set()
        self._serving: set[trio.CancelScope] = set()
        self._closed = False
        context.emit = self._emit

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
        the new ones from its next request on. Returns when that is done.

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
        context = self._context
        context.policy = policy
        context.pool.forget()
        context.transforms.forget()
        cut: list[Flow] = []
        kept = 0
        for index, flow in enumerate(tuple(context.flows.values())):
            if index % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            if context.policy is not policy:
                break  # a newer update has taken over, and judges them all
            if context.rejudge(flow) and await self._stages_agree(flow):
                kept += 1
            else:
                flow.cut(Reason.POLICY_CHANGED)
                cut.append(flow)
        with trio.move_on_after(CUT_PATIENCE):
            for flow in cut:
                await flow.finished.wait()
        with trio.CancelScope(shield=True):
            await context.pool.bury()
        event = PolicyChanged(sandbox=self.name, mode=policy.mode.value, cut=tuple(flow.id for flow in cut), kept=kept)
        self._emit(event)
        return event

    async def _stages_agree(self, flow: Flow) -> bool:
        if not self._context.policies or flow.decision is None or isinstance(flow.decision, Deny):
            return True
        before = type(flow.decision)
        try:
            return type(await narrow(self._context, flow)) is before
        except StageError as error:
            self._emit(Problem(sandbox=self.name, flow=flow.id, reason=Reason.STAGE_FAILED, detail=str(error)))
            return False

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
        self, *, proxy: Listener[Any] | str, auth: ListenerAuth | None = None, directory: Path | None = None
    ) -> dict[str, str | None]:
        """Return the variables that make clients use the proxy and trust the sandbox's certificate authority.

        The trust files are written to *directory*, or to a private temporary directory that lives until the sandbox is closed.

        Args:
            proxy: the listener, or its address as the program sees it (``host:port``).
            auth: user and password if the listener asks for them.
            directory: where to write ``ca.pem`` and ``bundle.pem``.

        Returns:
            Values by name; ``None`` for variables that must be removed, because they would override these.

        Raises:
            ConfigurationError: the listener is no TCP listener: proxy variables can't name a Unix socket.
            OSError: the files can't be written.
        """
        self._require_open()
        where = proxy if isinstance(proxy, str) else describe(proxy)
        if where.startswith("unix:"):
            raise ConfigurationError("proxy variables can't name a Unix socket; give the address that the program will see")
        user = "" if auth is None else f"{quote(auth.user, safe='')}:{quote(auth.password, safe='')}@"
        certificate, bundle = self.write_trust(directory)
        return {
            **trust_environment(bundle=bundle, certificate=certificate),
            **proxy_environment(f"http://{user}{where}"),
        }

    def write_trust(self, directory: Path | None = None) -> tuple[Path, Path]:
        """Write ``ca.pem`` (the certificate alone) and ``bundle.pem``, readable by all.

        The bundle has the roots that upstreams are verified with, the operator's extra ones included, and the certificate: relayed
        hosts show their own certificates to the program.

        Returns:
            Their paths.
        """
        if directory is None:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="sbxproxy-"))
                self._directory.chmod(0o755)  # certificates are public, and the program may run as another user
            directory = self._directory
        certificate, bundle = directory / "ca.pem", directory / "bundle.pem"
        for path, content in ((certificate, self.certificate_pem), (bundle, self._bundle())):
            temporary = path.with_suffix(".new")
            temporary.write_bytes(content)
            temporary.chmod(0o644)
            temporary.replace(path)
        return certificate, bundle

    def _bundle(self) -> bytes:
        extra = [path.read_bytes().rstrip(b"\n") + b"\n" for path in self._extra_roots]
        return bundle_pem(self.certificate_pem, self._roots) + b"".join(extra)

    # -- connections

    async def serve(
        self,
        listeners: Sequence[Listener[Any]],
        *,
        auth: ListenerAuth | None = None,
        trusted_proxies: Sequence[IPNetwork] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept HTTP CONNECT, absolute-form HTTP and SOCKS5 on *listeners* until drained or cancelled; closes them then.

        What comes in by these listeners is this sandbox, whatever it says of itself.

        Args:
            listeners: open listeners, TCP or Unix.
            auth: ask for this user name and password.
            trusted_proxies: if given, connections begin with a PROXY protocol v2 header instead, accepted from these addresses
                only, and its destination is the target.
            task_status: started once connections are accepted.

        Raises:
            RuntimeError: the sandbox is closed.
        """
        self._require_open()
        trusted = PrefixTable(trusted_proxies) if trusted_proxies else None
        unregister = self._register([endpoint for listener in listeners for endpoint in local_endpoints(listener)])

        async def accept(stream: Stream) -> None:
            await self._guarded(lambda: self._serve_stream(stream, auth, trusted), stream)

        bounded = [BoundedListener(listener, self._slots) for listener in listeners]
        handler = self._slots.bound(accept)

        serving, accepting = trio.CancelScope(), trio.CancelScope()
        self._serving.add(serving)
        self._accepting.add(accepting)
        try:
            with serving:
                async with trio.open_nursery() as flows:
                    with accepting:
                        async with trio.open_nursery() as nursery:
                            serve = partial(trio.serve_listeners, handler, bounded, handler_nursery=flows)
                            await nursery.start(serve)
                            task_status.started()
        finally:
            self._serving.discard(serving)
            self._accepting.discard(accepting)
            unregister()

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
        try:
            self._slots.acquire_nowait()
        except LimitError as error:
            await self._turn_away(stream, Reason.LIMIT, str(error))
            return
        try:
            await self._guarded(lambda: self._serve_ask(peekable(stream), ask), stream)
        finally:
            self._slots.release()

    async def _guarded(self, work: Callable[[], Awaitable[object]], stream: Stream) -> None:
        """Run one connection's work so that nothing of it can end another's."""
        try:
            await work()
        except* Exception as group:  # noqa: BLE001
            # Kinds only: the text of an exception may quote what the client sent, or a secret.
            kinds = ", ".join(sorted({type(error).__name__ for error in _leaves(group)}))
            self._emit(Problem(sandbox=self.name, flow=None, reason="internal-error", detail=f"a connection failed with {kinds}"))
        finally:
            with trio.CancelScope(shield=True):  # never waits
                await trio.aclose_forcefully(stream)

    async def _serve_stream(self, stream: Stream, auth: ListenerAuth | None, trusted: PrefixTable | None) -> None:
        client = peekable(stream)
        while True:
            ask = await self._ask(client, auth, trusted)
            if ask is None:
                return
            leftover = await self._serve_ask(client, ask)
            if leftover is None:
                return
            client.peeked = leftover + client.peeked

    async def _ask(self, client: PeekedStream, auth: ListenerAuth | None, trusted: PrefixTable | None) -> Ask | None:
        """Let the front read whom the client wants; ``None`` after telling it what was wrong."""
        limits = self._context.limits
        started = trio.current_time()
        try:
            with trio.fail_after(limits.first_bytes):
                if trusted is not None:
                    return await open_proxy_protocol(client, trusted)
                return await open_explicit(client, limits, auth)
        except trio.TooSlowError:
            reason, detail = str(Reason.FIRST_BYTES_TIMEOUT), "the request to the proxy did not come in time"
        except ClientProtocolError as error:
            reason, detail = str(error.reason), str(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        self._emit(self._no_flow(reason, detail, trio.current_time() - started))
        with trio.move_on_after(1.0), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await client.aclose()
        return None

    async def _serve_ask(self, client: PeekedStream, ask: Ask) -> bytes | None:
        if not self._is_running():
            await self._turn_away(client, "not-running", "the proxy is not running")
            return None
        return await serve_flow(self._context, client, ask)

    async def _turn_away(self, client: Stream, reason: str, detail: str) -> None:
        self._emit(self._no_flow(reason, detail, 0.0))
        await abort(client)

    def _no_flow(self, reason: str, detail: str, duration: float) -> FlowClosed:
        return FlowClosed(
            sandbox=self.name, flow=0, front="", target="", wire=None, server_name=None, decision="deny", reason=str(reason),
            rule=None, detail=detail, address=None, bytes_up=0, bytes_down=0, requests=0, duration=duration, ended="denied",
        )  # fmt: skip

    # -- ends

    async def drain(self, grace: float = 5.0) -> None:
        """Stop accepting, give live flows *grace* seconds to end, then cut them; ``serve`` returns."""
        for scope in tuple(self._accepting):
            scope.cancel(reason="draining")
        with trio.move_on_after(grace):
            for flow in self.flows:
                await flow.finished.wait()
        self._cut_all("drained")
        for scope in tuple(self._serving):
            scope.cancel(reason="drained")

    async def aclose(self) -> None:
        """Cut all flows, stop serving, and remove the trust files; again is harmless."""
        if self._closed:
            return
        self._closed = True
        self._cut_all("sandbox-closed")
        for scope in (*self._accepting, *self._serving):
            scope.cancel(reason="the sandbox was closed")
        self._on_close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        with trio.CancelScope(shield=True):
            await self._context.pool.aclose_all()
        await trio.lowlevel.checkpoint()

    async def expire_idle(self) -> None:
        """Close idle upstream connections that are too old."""
        self._context.pool.expire()
        await self._context.pool.bury()

    def _cut_all(self, why: str) -> None:
        for flow in self.flows:
            flow.cut(why)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"sandbox {self.name!r} is closed")

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            with contextlib.suppress(Exception):  # an observer can't end or change a flow; its loss is its own
                observer(event)


def check_references(policy: Policy, secrets: Secrets, plugins: Mapping[str, Any]) -> None:
    """Check that all that *policy* names exists.

    Raises:
        PolicyError: it names a secret without a source, or a plugin that isn't loaded.
    """
    problems = [
        PolicyProblem("", f"it uses the secret {name!r}, which has no source", _known("secrets", secrets.names))
        for name in sorted(set(policy.secrets) - secrets.names)
    ]
    problems += [
        PolicyProblem(place, f"no transform named {name!r} is loaded", _known("loaded transforms", plugins))
        for name, place in policy.plugins
        if name not in plugins
    ]
    if problems:
        raise PolicyError(*problems)


def _known(what: str, names: Any) -> str:
    return f"{what}: {', '.join(sorted(names)) or 'none'}"


def _host(host: str) -> Hostname | IPAddress:
    found = parse_address(host) or canonical_hostname(host)
    if found is None:
        raise ValueError("target: neither a host name nor an IP address")
    return found


def _port(port: int) -> int:
    if not 0 < port < 65536:
        raise ValueError("target: a port is a number from 1 to 65535")
    return port


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
