"""Checks of the parts that hold streams: terminators and handlers. Most of it is about who closes what, and when it ends."""

from __future__ import annotations

__all__ = ["check_handler", "check_terminator"]

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
import trio.testing
from trio.abc import Stream

from sbxproxy.errors import ClientError, UpstreamTlsError
from sbxproxy.flow import Flow
from sbxproxy.hostname import canonical_hostname
from sbxproxy.stages import slots
from sbxproxy.stages.slots import Handler, Terminator
from sbxproxy.testing.checks import PATIENCE, Unchanged, ensure, of_part
from sbxproxy.testing.make import make_flow

_GARBAGE = (b"", b"\0", b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(64))
_WORDS = b"ping" * 1000

Peer = Callable[[Stream], Awaitable[Stream]]
"""Completes a handshake from the other end and returns the stream of plain text."""

Talk = Callable[[Stream, Stream], Awaitable[object]]
"""Plays the client and the upstream of a handler, given the far end of each; closes neither."""


async def check_terminator(
    terminator: Terminator,
    *,
    client: Peer | None = None,
    upstream: Peer | None = None,
    server_name: str = "api.example.com",
    patience: float = PATIENCE,
) -> None:
    """Check *terminator* against peers that speak something else, leave, or never answer, and against real ones if given.

    ``accept`` must raise ``ClientError`` and ``connect`` ``UpstreamTlsError`` for such peers, and both must close the stream they
    were given whenever they raise, cancellation included. With real peers, bytes must go through in both directions.

    Args:
        terminator: the part.
        client: a client's handshake with ``accept``, for *server_name*.
        upstream: an upstream's handshake with ``connect``, for *server_name*, verified.
        server_name: whom they talk of.
        patience: seconds that one call may take.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule.
    """
    slots.check_terminator(terminator)
    flow = make_flow(server_name)
    name = canonical_hostname(server_name)
    assert name is not None
    for words in _GARBAGE:
        await _check_refusal(lambda stream: terminator.accept(flow, stream), words, "accept", ClientError, patience)
        await _check_refusal(lambda stream: terminator.connect(flow, stream, name), words, "connect", UpstreamTlsError, patience)
    await _check_cancelled(lambda stream: terminator.accept(flow, stream), "accept")
    await _check_cancelled(lambda stream: terminator.connect(flow, stream, name), "connect")
    if client is not None:
        await _check_words(lambda stream: terminator.accept(flow, stream), client, "accept", patience)
    if upstream is not None:
        await _check_words(lambda stream: terminator.connect(flow, stream, name), upstream, "connect", patience)


async def _check_refusal(
    handshake: Callable[[Stream], Awaitable[Stream]], words: bytes, label: str, error: type[Exception], patience: float
) -> None:
    near, far = trio.testing.memory_stream_pair()
    if words:
        await far.send_all(words)
    await far.send_eof()
    with of_part(f"terminator.{label}", patience):
        try:
            await handshake(near)
        except error:
            pass
        except Exception as other:
            raise AssertionError(f"terminator.{label} must raise {error.__name__}, not {type(other).__name__}") from other
        else:
            raise AssertionError(f"terminator.{label} took a peer that made no handshake")
    await _ensure_closed(far, f"terminator.{label} raised and left the stream open")


async def _check_cancelled(handshake: Callable[[Stream], Awaitable[Stream]], label: str) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def run() -> None:
        await handshake(near)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="the check of a cancelled handshake")
    await _ensure_closed(far, f"terminator.{label} was cancelled and left the stream open")


async def _ensure_closed(far: Stream, message: str) -> None:
    """Fail if the other end isn't closed: reading to the end would wait for ever, or bytes could still be sent."""
    ended = False

    async def read() -> None:
        nonlocal ended
        with suppress(trio.BrokenResourceError):
            while await far.receive_some():
                pass
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="closed or not, it has shown")
    ensure(ended, message)
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await far.send_all(b"x")
        raise AssertionError(message)


async def _check_words(handshake: Callable[[Stream], Awaitable[Stream]], peer: Peer, label: str, patience: float) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def other_end() -> None:
        stream = await peer(far)
        received = bytearray()
        while len(received) < len(_WORDS):
            chunk = await stream.receive_some()
            ensure(chunk, f"the stream of terminator.{label} ended early")
            received += chunk
        await stream.send_all(received)
        with suppress(trio.BrokenResourceError):
            await stream.aclose()

    failure: BaseException | None = None  # raised below: older Python wraps what is raised in ``except*`` once more
    with of_part(f"terminator.{label}", patience):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other_end)
                stream = await handshake(near)
                await stream.send_all(_WORDS)
                back = bytearray()
                async for chunk in stream:
                    back += chunk
                ensure(bytes(back) == _WORDS, f"bytes got lost or changed in the stream of terminator.{label}")
                with suppress(trio.BrokenResourceError):
                    await stream.aclose()
        except* AssertionError as group:
            failure = _first(group)
        except* Exception as group:  # noqa: BLE001
            if failure is None:
                failure = AssertionError(f"terminator.{label} and a real peer failed with {type(_first(group)).__name__}")
                failure.__cause__ = group
        if failure is not None:
            raise failure


async def check_handler(
    handler: Handler, *, flow: Flow | None = None, talk: Talk | None = None, patience: float = PATIENCE
) -> None:
    """Check that *handler* ends: when either or both ends do, when they break, and when it is cancelled; and what *talk* says.

    It may raise when an end breaks, but must not go on, and must leave the flow as it is. It may close the streams or not.

    Args:
        handler: the part.
        flow: what it is given as flow.
        talk: a conversation from outside; what it raises fails the check.
        patience: seconds that one conversation may take. With an autojump clock they cost nothing.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule.
    """
    slots.check_handler(handler)
    flow = flow or make_flow(wire="third-party", server_name="api.example.com")
    unchanged = Unchanged(flow)

    async def both_end(client: Stream, upstream: Stream) -> None:
        await client.aclose()
        await upstream.aclose()

    async def client_first(client: Stream, upstream: Stream) -> None:
        await client.aclose()
        with suppress(trio.BrokenResourceError):
            while await upstream.receive_some():
                pass
        await upstream.aclose()

    async def upstream_first(client: Stream, upstream: Stream) -> None:
        await client_first(upstream, client)

    for label, ends in (
        ("both ends are closed", both_end),
        ("the client has closed", client_first),
        ("the upstream has closed", upstream_first),
    ):
        await _converse(handler, flow, ends, f"handler, when {label},", patience, may_raise=True)
        unchanged.verify("handler")
    await _check_handler_cancelled(handler, flow, patience)
    unchanged.verify("handler")
    if talk is not None:
        await _converse(handler, flow, talk, "handler", patience, may_raise=False)
        unchanged.verify("handler")


async def _converse(handler: Handler, flow: Flow, talk: Talk, label: str, patience: float, *, may_raise: bool) -> None:
    client, far_client = trio.testing.memory_stream_pair()
    upstream, far_upstream = trio.testing.memory_stream_pair()
    failure: Exception | None = None
    broken: BaseExceptionGroup[Exception] | None = None

    async def run() -> None:
        nonlocal failure
        try:
            await handler.handle(flow, client, upstream)
        except* Exception as group:  # noqa: BLE001 - whatever it raises is looked at below
            failure = _first(group)
        finally:
            await trio.aclose_forcefully(client)
            await trio.aclose_forcefully(upstream)

    with of_part(label, patience):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await talk(far_client, far_upstream)
                await trio.aclose_forcefully(far_client)
                await trio.aclose_forcefully(far_upstream)
        except* Exception as group:  # noqa: BLE001
            broken = group
        if broken is not None:  # older Python wraps what is raised in ``except*`` once more
            raise AssertionError(f"the conversation with the {label} failed: {type(_first(broken)).__name__}") from broken
    if failure is not None and not may_raise:
        raise AssertionError(f"{label} raised {type(failure).__name__}") from failure


async def _check_handler_cancelled(handler: Handler, flow: Flow, patience: float) -> None:
    client, _far_client = trio.testing.memory_stream_pair()
    upstream, _far_upstream = trio.testing.memory_stream_pair()
    with of_part("handler, when cancelled,", patience):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.handle, flow, client, upstream)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the check of a cancelled handler")


def _first(error: BaseException) -> Exception:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
