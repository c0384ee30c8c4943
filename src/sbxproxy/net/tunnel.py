"""The two lanes of a tunnel between sockets: how bytes are moved in one go, without ever waiting.

Theory of operation. A lane moves what it can from its source to its sink and says what it stopped at: the source
is dry, the sink is full, its turn is over, or it has come to the end. Whoever watches the descriptors (see
``engine``) calls it again when that has changed. It does not know of event loops.

What is surprising: a short read counts as dry without asking again, which saves a call per message. With edges
instead of levels that is right only while more can't be waiting behind it unannounced: an end or an error that
came before the read, and whatever stands behind TCP's urgent mark, where reads stop short. Those show in the
events, and from then on the lane is ``careful`` and reads until nothing is there. Other kinds of sockets than
TCP are careful from the start: a local one stops short at every message with descriptors attached.

Descriptors are asked from their socket objects once a go. A socket that another task closes has -1 from then
on, and that fails; a number kept could by then be somebody else's connection.
"""

from __future__ import annotations

__all__ = ["Lane", "State", "Tunnel"]

import errno
import os
import socket
import sys
from collections.abc import Callable
from enum import Enum, auto
from typing import NoReturn

from sbxproxy.net import direction
from sbxproxy.net.direction import CHUNK, CHUNKS_PER_TURN, SPLICE_FLAGS, SPLICE_PER_TURN, Broken
from sbxproxy.net.outcome import Counts, Ended
from sbxproxy.net.pipes import Pipe, PipePool
from sbxproxy.net.sockets import AnySocket, is_tcp


class State(Enum):
    """What a lane waits for."""

    READING = auto()
    """For its source to have something."""

    FULL = auto()
    """For its sink to take more; it holds bytes."""

    QUEUED = auto()
    """For its turn: neither end has stopped it."""

    DONE = auto()
    """For nothing: its end was passed on, or the tunnel is gone."""


class Tunnel:
    """Two sockets with a lane each way, and whom to tell when it is over.

    Attributes:
        client: the sandboxed program's socket.
        upstream: the other.
        up: the lane from client to upstream.
        down: the lane back.
        closing: whether both sockets are closed once it is over, so that the second end is passed on by that.
        idle: seconds without a byte after which it ends; infinity for no bound.
        moved: when a byte moved last, by Trio's clock.
        numbers: the descriptors' numbers at the beginning, client's and upstream's.
        tell: told why it is over, once somebody waits for that.
        ended: why it is over; ``None`` before.
        probe: whether the kernel is still to be asked to probe the upstream.
    """

    __slots__ = ("client", "closing", "count", "down", "ended", "idle", "moved", "numbers", "probe", "tell", "up", "upstream")

    def __init__(
        self,
        client: AnySocket,
        upstream: AnySocket,
        *,
        closing: bool,
        idle: float,
        count: Counts,
        up: bytes,
        down: bytes,
        now: float,
        pipes: PipePool,
    ) -> None:
        """Put it together; no I/O. *up* and *down* were read before and go first."""
        self.client = client
        self.upstream = upstream
        self.closing = closing
        self.idle = idle
        self.count = count
        self.moved = now
        self.numbers = (client.fileno(), upstream.fileno())
        self.tell: Callable[[Ended], None] | None = None
        self.probe = False
        self.ended: Ended | None = None
        self.up = Lane(self, client, upstream, up, pipes)
        self.down = Lane(self, upstream, client, down, pipes)

    def is_open(self) -> bool:
        """Tell whether neither socket was closed by somebody."""
        return self.client.fileno() >= 0 and self.upstream.fileno() >= 0

    def leave(self) -> None:
        """Stop both lanes, giving back what they borrowed."""
        self.up.leave()
        self.down.leave()


class Lane:
    """One direction of a tunnel.

    Attributes:
        tunnel: what it belongs to.
        source: where bytes come from.
        sink: where they go.
        careful: whether a short read may have left something behind.
        state: what it waits for.
    """

    __slots__ = ("_pending", "_pipe", "_pipes", "_splice_at", "_splices", "_took", "careful", "sink", "source", "state", "tunnel")

    def __init__(self, tunnel: Tunnel, source: AnySocket, sink: AnySocket, pending: bytes, pipes: PipePool) -> None:
        """Set it up; *pending* goes first."""
        self.tunnel = tunnel
        self.source = source
        self.sink = sink
        self.careful = not is_tcp(source)
        self.state = State.READING
        self._pending = pending
        self._took = 0
        self._splice_at = direction.SPLICE_AFTER if direction.CAN_SPLICE else sys.maxsize
        self._splices = False
        self._pipes = pipes
        self._pipe: Pipe | None = None

    def blame(self, failure: Broken) -> Ended:
        """Say which side a failure of this lane is to be put down to."""
        if failure.closed:
            return "closed"
        return "client-reset" if failure.at_source is (self is self.tunnel.up) else "upstream-reset"

    def leave(self) -> None:
        """Stop, for good; a pipe with bytes in it is closed by the pool, never lent again."""
        self.state = State.DONE
        self._pending = b""
        del self.tunnel  # each would keep the other until garbage is collected
        self._give_back()
        if self._splices:
            self._splices = False
            self._pipes.leave()

    def pump(self, scratch: memoryview | None, now: float) -> int:
        """Move bytes until something stops it, and put that into ``state``.

        Args:
            scratch: a buffer of ``CHUNK`` bytes that is anybody's before and after; ``None`` to send only what was read before.
            now: Trio's time.

        Returns:
            How many bytes the sink took; they are counted already, even if this raises.

        Raises:
            Broken: a socket failed.
        """
        before = self._took
        try:
            self.state = self._move(scratch)
        finally:
            moved = self._took - before
            if moved:
                tunnel = self.tunnel
                if self is tunnel.up:
                    tunnel.count.bytes_up += moved
                else:
                    tunnel.count.bytes_down += moved
                tunnel.moved = now
        return moved

    def _move(self, scratch: memoryview | None) -> State:
        source, sink = self.source.fileno(), self.sink.fileno()
        if self._pending and not self._send_pending(sink):
            return State.FULL
        if self._pipe is not None:
            if not self._drain(self._pipe, sink):
                return State.FULL
            self._give_back()
        if scratch is None:
            return State.READING
        chunks = CHUNKS_PER_TURN
        while chunks:
            chunks -= 1
            if self._took >= self._splice_at:
                state = self._splice(source, sink)
                if state is not None:
                    return state
            try:
                size = os.readv(source, (scratch,))
            except BlockingIOError:
                return State.READING
            except OSError as error:
                _fail(error, at_source=True)
            if not size:
                return self._finish()
            try:
                sent = os.write(sink, scratch[:size])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                _fail(error, at_source=False)
            self._took += sent
            if sent < size:
                self._pending = bytes(scratch[sent:size])
                return State.FULL
            if size < CHUNK and not self.careful:
                return State.READING
        return State.QUEUED

    def _send_pending(self, sink: int) -> bool:
        """Send the bytes held in memory; False if the sink is full before that is done."""
        view = memoryview(self._pending)
        while view:
            try:
                sent = os.write(sink, view)
            except BlockingIOError:
                self._pending = bytes(view)
                return False
            except OSError as error:
                _fail(error, at_source=False)
            self._took += sent
            view = view[sent:]
        self._pending = b""
        return True

    def _splice(self, source: int, sink: int) -> State | None:
        """Move bytes within the kernel; ``None`` if it is better to copy for a while."""
        if not self._splices:
            self._splices = True
            self._pipes.join()
        pipe = self._pipe = self._pipes.take()
        if pipe is None:
            self._splice_at = self._took + direction.SPLICE_AFTER
            return None
        left = SPLICE_PER_TURN
        while left > 0:
            try:
                size = os.splice(source, pipe.write, pipe.size, flags=SPLICE_FLAGS)
            except BlockingIOError:
                # The pipe is empty, so it is the source that has nothing.
                self._give_back()
                return State.READING
            except OSError as error:
                if error.errno != errno.EINVAL:
                    _fail(error, at_source=True)
                self._splice_at = sys.maxsize  # a kind of socket that can't
                self._give_back()
                return None
            if not size:
                self._give_back()
                return self._finish()
            pipe.held = size
            left -= size
            if not self._drain(pipe, sink):
                return State.FULL
        self._give_back()
        return State.QUEUED

    def _drain(self, pipe: Pipe, sink: int) -> bool:
        """Empty *pipe* into the sink; False if that is full before it is done."""
        while pipe.held:
            try:
                sent = os.splice(pipe.read, sink, pipe.held, flags=SPLICE_FLAGS)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.EINVAL:
                    _fail(error, at_source=False)
                self._splice_at = sys.maxsize
                while pipe.held:
                    data = os.read(pipe.read, pipe.held)
                    pipe.held -= len(data)
                    self._pending += data
                return self._send_pending(sink)
            if not sent:  # can't be, and would spin
                raise Broken(at_source=False, closed=False)
            pipe.held -= sent
            self._took += sent
        return True

    def _give_back(self) -> None:
        if self._pipe is not None:
            self._pipes.give(self._pipe)
            self._pipe = None

    def _finish(self) -> State:
        """Pass the source's end on."""
        tunnel = self.tunnel
        if tunnel.closing and (tunnel.down if self is tunnel.up else tunnel.up).state is State.DONE:
            return State.DONE
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            _fail(error, at_source=False)
        return State.DONE


def _fail(error: OSError, *, at_source: bool) -> NoReturn:
    raise Broken(at_source=at_source, closed=error.errno == errno.EBADF) from None
