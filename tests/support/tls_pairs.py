"""TLS streams joined end to end in memory, and transports that misbehave on demand."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio
import trio.testing
from OpenSSL import SSL

from sbxproxy.hostname import Hostname
from sbxproxy.tls.stream import TlsStream

NAME = Hostname("api.example.com")

Pair = tuple[trio.abc.Stream, trio.abc.Stream]


def memory_pair() -> Pair:
    return trio.testing.memory_stream_pair()


def client_context(*, tls: int | None = None, alpn: tuple[bytes, ...] = (b"http/1.1",)) -> SSL.Context:
    """A client that believes anybody."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if tls is not None:
        context.set_min_proto_version(tls)
        context.set_max_proto_version(tls)
    if alpn:
        context.set_alpn_protos(list(alpn))
    return context


async def handshake_both(one, other) -> None:
    """Do both handshakes at once; an error of either comes out as it is."""
    errors: list[BaseException] = []

    async def shake(stream) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            errors.append(error)
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake, one)
        nursery.start_soon(shake, other)
    if errors:
        raise errors[0]


async def tls_pair(
    server_context: SSL.Context,
    client: SSL.Context | None = None,
    *,
    pair: Callable[[], Pair] = trio.testing.memory_stream_pair,
    wrap: Callable[[trio.abc.Stream], trio.abc.Stream] = lambda stream: stream,
    **options,
) -> tuple[TlsStream, TlsStream]:
    """Return (client, server), both through their handshake."""
    left, right = pair()
    one = TlsStream(wrap(left), client or client_context(), server_side=False, server_name=NAME, **options)
    other = TlsStream(wrap(right), server_context, server_side=True, **options)
    await handshake_both(one, other)
    return one, other


class Recorder(trio.abc.Stream):
    """Passes everything on and keeps what was sent; can cut, chop, damage and hang."""

    def __init__(self, inner: trio.abc.Stream, *, chop: int | None = None) -> None:
        self.inner = inner
        self.sent: list[bytes] = []
        self.chop = chop
        self.stuck = False
        self.damage = False
        self.eof = False
        self.closes = 0

    async def send_all(self, data) -> None:
        if self.stuck:
            await trio.sleep_forever()
        self.sent.append(bytes(data))
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.eof:
            await trio.lowlevel.checkpoint()
            return b""
        data = bytes(await self.inner.receive_some(self.chop or max_bytes))
        if self.damage and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return data

    async def aclose(self) -> None:
        self.closes += 1
        await self.inner.aclose()


class Shuffler(trio.abc.Stream):
    """Sleeps a random while before and after each step, to find what depends on order."""

    def __init__(self, inner: trio.abc.Stream, seed: int) -> None:
        self.inner = inner
        self.random = random.Random(seed)

    async def _pause(self) -> None:
        await trio.sleep(self.random.choice((0, 0, 0.1, 1, 5)) * self.random.random())

    async def send_all(self, data) -> None:
        await self._pause()
        await self.inner.send_all(data)
        await self._pause()

    async def wait_send_all_might_not_block(self) -> None:
        await self._pause()
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._pause()
        data = await self.inner.receive_some(max_bytes and self.random.randint(1, max_bytes))
        with trio.CancelScope(shield=True):
            await self._pause()
        return data

    async def aclose(self) -> None:
        await self._pause()
        await self.inner.aclose()
