"""Copies bytes both ways between two streams until both are done, and says why it ended.

Three ways lead through here with one behaviour. Where both ends are sockets, perhaps with bytes read ahead, they
are moved on the descriptors: by the engine if there is one (see ``engine``), else by two tasks (see ``direction``);
any other streams (TLS, memory, a virtual machine's) go through ``receive_some`` and ``send_all``. What is surprising:
an end is passed on in its own direction only, because a client may well shut down its sending side and then wait for
the answer.
"""

from __future__ import annotations

__all__ = ["Counts", "Ended", "relay", "take_tunnel"]

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from sbxproxy.net.bare import BareStream
from sbxproxy.net.direction import CHUNK, Broken, Direction
from sbxproxy.net.engine import Engine
from sbxproxy.net.outcome import Counts, Ended
from sbxproxy.net.peek import PeekedStream
from sbxproxy.net.sockets import AnySocket, bare_socket
from sbxproxy.net.tunnel import Tunnel

_Copy = Callable[[], Awaitable[None]]


class _Patience:
    """The one deadline of a relay, moved on as bytes move.

    It is set about once a second at most, not per chunk, and then by that much more: a relay is never ended
    before *idle* seconds without a byte, and at most a tenth or a second later, whichever is less.
    """

    __slots__ = ("_again", "_idle", "_scope", "_slack", "lingering")

    def __init__(self, scope: trio.CancelScope, idle: float | None) -> None:
        self._scope = scope
        self.lingering = False
        self._again = 0.0
        self._slack = 0.0
        self._start(idle)

    def _start(self, idle: float | None) -> None:
        self._idle = idle
        if idle is not None:
            self._slack = min(1.0, idle / 10)
            self._again = trio.current_time()
            self._scope.deadline = self._again + idle

    def moved(self) -> None:
        """Note that bytes moved."""
        if self._idle is not None and (now := trio.current_time()) >= self._again:
            self._again = now + self._slack
            self._scope.deadline = self._again + self._idle

    def linger(self, seconds: float) -> None:
        """From now on wait for *seconds* only."""
        if self._idle is None or seconds < self._idle:
            self.lingering = True
            self._start(seconds)


async def relay(
    client: trio.abc.Stream,
    upstream: trio.abc.Stream,
    *,
    idle: float | None,
    linger: float,
    count: Counts,
    engine: Engine | None = None,
) -> Ended:
    """Copy untouched bytes between *client* and *upstream* until both directions have ended.

    Each direction holds at most 64 KiB in memory (and what is in one borrowed pipe, at most 1 MiB) and reads
    no more before its sink has taken that. Neither stream is closed: the caller does, and after a ``…-reset``
    it should ``abort`` the other stream, so that a cut message is not taken for a whole one. Cancelling this
    ends both directions, with an unknown part of the last chunk sent; the streams are then fit for closing
    only.

    Args:
        client: the sandboxed program's side.
        upstream: the other side.
        idle: seconds without a byte in either direction after which it ends; ``None`` for no bound.
        linger: the same once one direction has ended towards a stream that can't be half-closed.
        count: gets ``bytes_up`` and ``bytes_down`` increased at once as bytes are handed to the receiving
            side. Between sockets that is what its kernel took. Other streams don't tell how much of a failed
            send they took, and what may have left counts as having left.
        engine: moves the bytes where both streams are bare sockets and it is running.

    Returns:
        Why it ended.
    """
    if engine is not None:
        tunnel = take_tunnel(client, upstream, idle=idle, count=count, engine=engine)
        if tunnel is not None:
            return await engine.carry(tunnel)
    ours, theirs = bare_socket(client), bare_socket(upstream)
    sockets = None if ours is None or theirs is None else _Sockets(ours, theirs, _take_peeked(client), _take_peeked(upstream))
    return await _relay_in_two_tasks(client, upstream, sockets, idle=idle, linger=linger, count=count)


def take_tunnel(
    client: trio.abc.Stream,
    upstream: trio.abc.Stream,
    *,
    idle: float | None,
    count: Counts,
    engine: Engine,
    closing: bool = False,
) -> Tunnel | None:
    """Give *engine* the pair as ``relay`` does, for whoever awaits ``engine.carry`` without a frame of ``relay`` between.

    With *closing* the caller closes both streams at once afterwards: the second end need not be passed on before that.

    Returns:
        What to carry; ``None`` if one of the streams is not a bare socket or the engine can't take them: they are as before.
    """
    ours, theirs = bare_socket(client), bare_socket(upstream)
    if ours is None or theirs is None:
        return None
    up, down = _take_peeked(client), _take_peeked(upstream)
    tunnel = engine.take(ours, theirs, idle=idle, count=count, closing=closing, up=up, down=down)
    if tunnel is None:
        _put_back(client, up)
        _put_back(upstream, down)
    return tunnel


@dataclass(frozen=True, slots=True)
class _Sockets:
    """Both ends' sockets, and what was read from them before."""

    client: AnySocket
    upstream: AnySocket
    up: bytes
    down: bytes


async def _relay_in_two_tasks(
    client: trio.abc.Stream,
    upstream: trio.abc.Stream,
    sockets: _Sockets | None,
    *,
    idle: float | None,
    linger: float,
    count: Counts,
) -> Ended:
    """Relay without an engine, by the streams' own methods if *sockets* is ``None``."""

    def moved_up(size: int) -> None:
        count.bytes_up += size
        patience.moved()

    def moved_down(size: int) -> None:
        count.bytes_down += size
        patience.moved()

    ended: Ended = "eof"
    broken = False

    async def guarded(run: _Copy, source: Ended, sink: Ended) -> None:
        nonlocal ended, broken
        try:
            await run()
        except Broken as failure:
            if not broken:
                broken = True
                ended = "closed" if failure.closed else source if failure.at_source else sink
            nursery.cancel_scope.cancel(reason="the relay broke")

    # One child a relay: the other direction runs in this task, and the nursery's scope carries the deadline.
    async with trio.open_nursery() as nursery:
        patience = _Patience(nursery.cancel_scope, idle)
        if sockets is None:
            copy = partial(_copy_stream, patience=patience, linger=linger)
            there: _Copy = partial(copy, client, upstream, moved=moved_up)
            back: _Copy = partial(copy, upstream, client, moved=moved_down)
        else:
            there = Direction(sockets.client, sockets.upstream, pending=sockets.up, moved=moved_up).run
            back = Direction(sockets.upstream, sockets.client, pending=sockets.down, moved=moved_down).run
        nursery.start_soon(guarded, back, "upstream-reset", "client-reset")
        await guarded(there, "client-reset", "upstream-reset")
    if nursery.cancel_scope.cancelled_caught and not broken:
        return "linger" if patience.lingering else "idle"
    return ended


def _take_peeked(stream: trio.abc.Stream) -> bytes:
    """Take what was read ahead, the outermost wrapper's bytes first."""
    taken = b""
    while isinstance(stream, PeekedStream):
        taken += stream.consume(len(stream.peeked))
        if type(stream) is BareStream:
            break
        stream = stream.inner
    return taken


def _put_back(stream: trio.abc.Stream, taken: bytes) -> None:
    if taken:
        assert isinstance(stream, PeekedStream)
        stream.peeked = taken + stream.peeked


async def _copy_stream(
    source: trio.abc.Stream,
    sink: trio.abc.Stream,
    *,
    moved: Callable[[int], None],
    patience: _Patience,
    linger: float,
) -> None:
    """Copy *source* to *sink* and end the sink's receiving, or shorten the patience where it can't be told.

    Raises:
        Broken: one of the streams failed.
    """
    while True:
        try:
            chunk = await source.receive_some(CHUNK)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _broken(error, at_source=True) from None
        try:
            if chunk:
                moved(len(chunk))
                await sink.send_all(chunk)
                patience.moved()
                continue
            if isinstance(sink, trio.abc.HalfCloseableStream):
                await sink.send_eof()
            else:
                patience.linger(linger)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _broken(error, at_source=False) from None
        return


def _broken(error: Exception, *, at_source: bool) -> Broken:
    return Broken(at_source=at_source, closed=isinstance(error, trio.ClosedResourceError))
