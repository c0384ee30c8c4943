"""How connections come into a sandbox: accepted from its listeners or handed over, each in a task that can't end another's.

What comes in by a sandbox's listeners is that sandbox, whatever it says of itself.
"""

from __future__ import annotations

__all__ = ["Doors", "Opener", "admit_plain"]

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio.abc import Listener, Stream

from sbxproxy.capture.captured import Captured
from sbxproxy.connection.context import Context
from sbxproxy.errors import ClientProtocolError, LimitError
from sbxproxy.events import FlowClosed, Problem, kinds
from sbxproxy.fronts.ask import Ask
from sbxproxy.fronts.transparent import open_transparent
from sbxproxy.net.bare import BareStream, Until
from sbxproxy.net.goodbye import GOODBYE, close, linger
from sbxproxy.net.listen import Slots
from sbxproxy.net.peek import PeekedStream, peekable
from sbxproxy.net.serve import serve_bounded
from sbxproxy.net.sockets import abort, drop
from sbxproxy.policy.decision import Reason

if TYPE_CHECKING:
    from sbxproxy.connection.express import Express
    from sbxproxy.dns.answerer import DnsAnswerer

DNS_PORT = 53

BEHIND = (
    "sbxproxy.fronts.explicit",
    "sbxproxy.fronts.proxy_protocol",
    "sbxproxy.tls.verifying",
    "sbxproxy.tls.serving",
    "sbxproxy.connection.story",
    "sbxproxy.fronts.dns",
    "sbxproxy.dns.forward",
    "sbxproxy.sandbox.update",
)
"""Modules that must be loaded before a connection is served; ``story`` with most of what it imports is one of them, and one would cut
the connection again."""

Opener = Callable[[PeekedStream], Awaitable[Ask | None]]
"""A front: reads what the client asks for; ``None`` if it left without asking."""


class Doors:
    """Lets connections into one sandbox, until drained or closed."""

    __slots__ = ("_accepting", "_context", "_is_running", "_ready", "_serve_flow", "_serving", "_slots")

    def __init__(
        self, context: Context, slots: Slots, is_running: Callable[[], bool], ready: Callable[[], Awaitable[None]]
    ) -> None:
        """Take what a connection needs.

        Args:
            context: what they share.
            slots: how many there may be.
            is_running: whether the proxy is.
            ready: returns when the modules ``BEHIND`` the doors are loaded.
        """
        self._ready = ready
        self._context = context
        self._slots = slots
        self._is_running = is_running
        self._accepting: set[trio.CancelScope] = set()
        self._serving: set[trio.CancelScope] = set()
        self._serve_flow: Callable[[Context, PeekedStream, Ask], Awaitable[bytes | None]] | None = None

    async def serve(
        self,
        listeners: Sequence[Listener[Any]],
        opener: Opener,
        *,
        aside: Callable[[Stream], Awaitable[bool]] | None = None,
        express: Callable[[Express, BareStream], bool] | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections until ``stop_accepting`` and the end of those that are open, or until cancelled; closes *listeners*.

        Args:
            listeners: open listeners.
            opener: the front.
            aside: serves a connection that is no flow, and says whether it was one; asked first.
            express: gives a connection to the short way, and says whether that has taken it; ``None`` where *opener* asks for more
                than that can answer.
            task_status: started once connections are accepted.
        """

        def accept(stream: Stream) -> Awaitable[None]:  # each coroutine between a task and what it waits for takes memory
            return self._serve_stream(stream, opener, aside)

        serving, accepting = trio.CancelScope(), trio.CancelScope()
        self._serving.add(serving)
        self._accepting.add(accepting)
        try:
            with serving:
                async with trio.open_nursery() as flows:
                    short = (
                        None
                        if express is None
                        else _ShortWay(express, partial(self._open_express, opener, flows), self._is_running)
                    )
                    admit = (lambda _stream: False) if short is None else short.admit
                    try:
                        with accepting:
                            async with trio.open_nursery() as nursery:
                                await nursery.start(
                                    partial(serve_bounded, accept, listeners, self._slots, flows=flows, admit=admit)
                                )
                                task_status.started()
                    finally:
                        if short is not None:
                            short.finish()
        finally:
            self._serving.discard(serving)
            self._accepting.discard(accepting)

    async def serve_captured(
        self,
        captured: Captured,
        answerer: DnsAnswerer,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept the connections of a captured namespace, and answer its DNS, as ``serve`` does; closes its sockets."""
        from sbxproxy.fronts.dns import serve_tcp, serve_udp  # noqa: PLC0415 - see ``BEHIND``

        dns_connections = Slots(answerer.limits.dns_connections, limit="dns_connections")

        async def opener(client: PeekedStream) -> Ask | None:
            await trio.lowlevel.checkpoint()
            return open_transparent(client)

        async def dns(stream: Stream) -> bool:
            if open_transparent(stream).port != DNS_PORT:
                return False
            try:
                dns_connections.acquire_nowait()
            except LimitError as error:
                self._problem(Reason.LIMIT, str(error))
                await abort(stream)
                return True
            try:
                await serve_tcp(stream, answerer)
            finally:
                dns_connections.release()
            return True

        async with trio.open_nursery() as nursery:
            for sock in captured.dns:
                await nursery.start(serve_udp, sock, answerer)
            await self.serve(captured.listeners, opener, aside=dns, express=_admit_captured, task_status=task_status)
            nursery.cancel_scope.cancel(reason="no more connections are accepted")

    async def handle(self, stream: Stream, ask: Ask) -> None:
        """Carry one connection that is already there until it ends; closes *stream*."""
        try:
            self._slots.acquire_nowait()
        except LimitError as error:
            await self._turn_away(stream, Reason.LIMIT, str(error))
            return
        try:
            await self._serve_ask(peekable(stream), ask)
        except* Exception as group:  # noqa: BLE001
            self._failed(group)
        finally:
            try:
                await drop(stream)
            finally:
                self._slots.release()

    def stop_accepting(self, why: str) -> None:
        """Let nobody in any more; who is in stays."""
        for scope in tuple(self._accepting):
            scope.cancel(reason=why)

    def close(self, why: str) -> None:
        """End all that is served, and ``serve`` with it."""
        for scope in (*self._accepting, *self._serving):
            scope.cancel(reason=why)

    def _failed(self, group: BaseException) -> None:
        # Kinds only: the text of an exception may quote what the client sent, or a secret.
        self._problem("internal-error", f"a connection failed with {kinds(group)}")

    async def _serve_stream(
        self,
        stream: Stream,
        opener: Opener,
        aside: Callable[[Stream], Awaitable[bool]] | None,
        since: float | None = None,
    ) -> None:
        client = peekable(stream)
        if isinstance(client, BareStream):
            client.engine = self._context.engine
        try:
            if aside is not None and await aside(stream):
                return
            if self._serve_flow is None:
                await self._ready()
            while (ask := await self._ask(client, opener, trio.current_time() if since is None else since)) is not None:
                since = None
                leftover = await (self._serve_ask(client, ask) if self._serve_flow is None else self._carry(client, ask))
                if leftover is None:
                    return
                client.peeked = leftover + client.peeked
        except* Exception as group:  # noqa: BLE001 - nothing of one connection can end another's
            self._failed(group)

    def _open_express(self, opener: Opener, flows: trio.Nursery) -> Express | None:
        """Make the short way for plain tunnels; ``None`` while there is none, and where others have a part in each connection."""
        context = self._context
        if self._serve_flow is None or context.engine is None or not context.dials_tcp or context.sniffers or context.policies:
            return None
        from sbxproxy.connection.express import Express  # noqa: PLC0415 - it needs what is ``BEHIND``

        def done(client: BareStream) -> None:
            client.close()
            self._slots.release()

        express = Express(
            context,
            context.engine,
            start=partial(flows.start_soon, name="sbxproxy connection"),
            ordinary=lambda client, since: self._serve_stream(client, opener, None, since),
            done=done,
            broke=self._failed,
        )
        flows.start_soon(express.keep)
        return express

    async def _ask(self, client: PeekedStream, opener: Opener, started: float) -> Ask | None:
        """Let the front read whom the client wants; ``None`` after telling it what was wrong."""
        told = False
        try:
            with Until(client, started + self._context.limits.first_bytes):
                return await opener(client)
        except trio.TooSlowError:
            reason, detail = str(Reason.FIRST_BYTES_TIMEOUT), "the request to the proxy did not come in time"
        except ClientProtocolError as error:
            reason, detail, told = str(error.reason), str(error), True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        self._context.emit(self._no_flow(reason, detail, trio.current_time() - started))
        if told:
            with trio.move_on_after(GOODBYE):
                await linger(client)
        await close(client, hard=False)
        return None

    async def _serve_ask(self, client: PeekedStream, ask: Ask) -> bytes | None:
        await self._ready()
        from sbxproxy.connection.story import serve_flow  # noqa: PLC0415 - loaded, see ``BEHIND``

        self._serve_flow = serve_flow
        return await self._carry(client, ask)

    def _carry(self, client: PeekedStream, ask: Ask) -> Awaitable[bytes | None]:
        if not self._is_running():
            return self._turn_away(client, "not-running", "the proxy is not running")
        assert self._serve_flow is not None
        return self._serve_flow(self._context, client, ask)

    async def _turn_away(self, client: Stream, reason: str, detail: str) -> None:
        self._context.emit(self._no_flow(reason, detail, 0.0))
        await abort(client)

    def _problem(self, reason: str, detail: str) -> None:
        self._context.emit(Problem(sandbox=self._context.sandbox, flow=None, reason=str(reason), detail=detail))

    def _no_flow(self, reason: str, detail: str, duration: float) -> FlowClosed:
        return FlowClosed(
            sandbox=self._context.sandbox, flow=0, front="", target="", wire=None, server_name=None, decision="deny",
            reason=str(reason), rule=None, detail=detail, address=None, bytes_up=0, bytes_down=0, requests=0, duration=duration,
            ended="denied",
        )  # fmt: skip


def admit_plain(express: Express, client: BareStream) -> bool:
    """Give the short way a connection whose request is to be read."""
    return express.admit(client)


def _admit_captured(express: Express, client: BareStream) -> bool:
    try:
        ask = open_transparent(client)
    except ClientProtocolError:  # told on the ordinary way
        return False
    return ask.port != DNS_PORT and express.admit(client, ask)


class _ShortWay:
    """The short way of one group of listeners, which opens once connections can be carried at all."""

    __slots__ = ("_admit", "_express", "_is_running", "_open")

    def __init__(
        self,
        admit: Callable[[Express, BareStream], bool],
        open_express: Callable[[], Express | None],
        is_running: Callable[[], bool],
    ) -> None:
        self._admit = admit
        self._open = open_express
        self._is_running = is_running
        self._express: Express | None = None

    def admit(self, stream: Stream) -> bool:
        if self._express is None:
            self._express = self._open()
        return (
            self._express is not None and type(stream) is BareStream and self._is_running() and self._admit(self._express, stream)
        )

    def finish(self) -> None:
        if self._express is not None:
            self._express.finish()
