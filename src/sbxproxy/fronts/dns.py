"""Carries DNS between a sandbox and its answerer: datagrams, and TCP with its two octets of length (RFC 1035 4.2, RFC 7766).

The sockets may have been born in another network namespace; which resolver a program thought to ask does not matter here.
"""

from __future__ import annotations

__all__ = ["serve_dns", "serve_tcp", "serve_udp"]

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from trio.abc import Listener, Stream

from sbxproxy.dns.answerer import DnsAnswerer, Lookup
from sbxproxy.net.listen import BoundedListener, Slots

MOST_QUERY = 4096
"""Bytes of one query; with the longest name, EDNS and a signature it has a few hundred. Longer datagrams are cut, and so
malformed; longer TCP messages end the connection."""

PIPELINE = 16
"""Queries of one TCP connection answered at once; the next is read when one is done (RFC 7766 section 6.2.1.1)."""

BATCH = 32
"""Datagrams read at a stretch before other tasks get a turn."""

PAUSE = 0.1
"""Seconds of rest after an error of the socket, so that a lasting one is no busy loop."""

_Client = tuple[Any, ...]

_GONE = frozenset({errno.EBADF, errno.ENOTSOCK})


async def serve_dns(
    answerer: DnsAnswerer,
    *,
    udp: Sequence[socket.socket | trio.socket.SocketType] = (),
    tcp: Sequence[Listener[Any]] = (),
    slots: Slots | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one sandbox's DNS on sockets and listeners until cancelled; closes them then.

    Args:
        answerer: the sandbox's.
        udp: see ``serve_udp``.
        tcp: open listeners. While all slots are taken, connections wait in their backlogs.
        slots: the bound of TCP connections; by default ``Limits.dns_connections``.
        task_status: started once all are served.

    Raises:
        OSError: a socket was closed, or accepting fails for good.
    """
    slots = slots or Slots(answerer.limits.dns_connections, limit="dns_connections")
    handler = slots.bound(partial(serve_tcp, answerer=answerer))
    async with trio.open_nursery() as nursery:
        for sock in udp:
            await nursery.start(serve_udp, sock, answerer)
        if tcp:
            await nursery.start(trio.serve_listeners, handler, [BoundedListener(listener, slots) for listener in tcp])
        task_status.started()


async def serve_udp(
    sock: socket.socket | trio.socket.SocketType,
    answerer: DnsAnswerer,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer the datagrams that come to *sock* until cancelled; closes it then.

    Args:
        sock: a bound UDP socket. Answers go out by it, so they come from the address that it is bound to: bind it to one, or let
            the kernel redirect to it.
        answerer: the sandbox's.
        task_status: started once datagrams are read.

    Raises:
        OSError: *sock* was closed.
    """
    # One descriptor for both kinds of socket: Trio's own would cost a scheduler's turn for every datagram.
    with sock, socket.socket(fileno=os.dup(sock.fileno())) as own:
        own.setblocking(False)  # noqa: FBT003 - positional only
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(own)
                try:
                    _read_batch(own, answerer, nursery)
                except OSError as error:
                    if error.errno in _GONE:
                        raise
                    await trio.sleep(PAUSE)


def _read_batch(sock: socket.socket, answerer: DnsAnswerer, nursery: trio.Nursery) -> None:
    for _ in range(BATCH):
        try:
            data, client = sock.recvfrom(MOST_QUERY)
        except BlockingIOError:
            return
        begun = answerer.begin(data, udp=True)
        if isinstance(begun, Lookup):
            nursery.start_soon(_finish_udp, sock, client, answerer, begun, name="DNS look-up")
        elif begun is not None:
            _send(sock, begun, client)


async def _finish_udp(sock: socket.socket, client: _Client, answerer: DnsAnswerer, lookup: Lookup) -> None:
    _send(sock, await answerer.finish(lookup), client)


def _send(sock: socket.socket, answer: bytes, client: _Client) -> None:
    # A full buffer or a client without a route: the answer is lost, as on a network, and the client asks again.
    with suppress(OSError):
        sock.sendto(answer, client)


async def serve_tcp(stream: Stream, answerer: DnsAnswerer) -> None:
    """Answer the queries on one connection until it ends, or is idle; closes *stream*. Its trouble is not raised.

    Queries may be sent without waiting, and their answers come as they are ready.
    """
    try:
        async with stream:
            await _Connection(stream, answerer).serve()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client is gone
    except* Exception as group:  # noqa: BLE001 - one connection must not end another
        answerer.report("a DNS connection", group)


class _Connection:
    """One TCP connection: reads messages whole, and writes answers whole, one at a time."""

    def __init__(self, stream: Stream, answerer: DnsAnswerer) -> None:
        self.stream = stream
        self.answerer = answerer
        self.idle = answerer.limits.dns_idle
        self.slots = trio.Semaphore(PIPELINE)
        self.sending = trio.Lock()
        self.broken = False
        self.received = bytearray()

    async def serve(self) -> None:
        """Read queries until there are no more.

        Raises:
            BrokenResourceError: the connection broke.
        """
        async with trio.open_nursery() as nursery:
            while not self.broken:
                await self.slots.acquire()
                message = await self.next_message()
                if message is None:
                    self.slots.release()
                    break
                begun = self.answerer.begin(message, udp=False)
                nursery.start_soon(self.reply, begun, name="DNS answer")

    async def next_message(self) -> bytes | None:
        """Return the next message; ``None`` at the end, at nonsense, and when it takes too long."""
        received = self.received
        with trio.move_on_after(self.idle):
            while True:
                if len(received) >= 2:
                    end = 2 + int.from_bytes(received[:2])
                    if end > 2 + MOST_QUERY:
                        return None
                    if len(received) >= end:
                        message = bytes(received[2:end])
                        del received[:end]
                        await trio.lowlevel.checkpoint()
                        return message
                try:
                    more = await self.stream.receive_some()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.broken = True
                    return None
                if not more:
                    return None
                received += more
        return None

    async def reply(self, begun: bytes | Lookup | None) -> None:
        """Send an answer when it is there. A client that doesn't take it loses the connection."""
        try:
            answer = await self.answerer.finish(begun) if isinstance(begun, Lookup) else begun
            if answer is None:
                return
            async with self.sending:
                if self.broken:
                    return
                with trio.move_on_after(self.idle) as scope:
                    try:
                        await self.stream.send_all(len(answer).to_bytes(2) + answer)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self.broken = True
                if scope.cancelled_caught:
                    self.broken = True
                    await trio.aclose_forcefully(self.stream)
        finally:
            self.slots.release()
