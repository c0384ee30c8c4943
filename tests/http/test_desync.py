"""Connections that are out of step: what must not be used for another request, whoever is to blame."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import httptools
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.net import abort
from support.http_peers import OK, RequestParser, ResponseParser, World, limits, read_until, request
from support.tcp import tcp_pair

HEAD_END = b"\r\n\r\n"
EARLY = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
SIZE = 60_000  # one piece, and more than the small buffers of the test's sockets take


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d" % SIZE, bytes(SIZE)),
        (b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, bytes(SIZE))),
    ],
)
async def test_h18_an_early_response_to_a_half_sent_body_does_not_free_its_connection(nursery, framing, body):
    """Whatever the upstream still misses of that body, it would take from the next request, credential included."""
    leftovers = b""
    sending, drained = trio.Event(), trio.Event()

    async def upstream(stream):
        nonlocal leftovers
        head = await read_until(stream, HEAD_END)
        if b"/second" in head:
            await stream.send_all(OK)
            return
        await sending.wait()
        await stream.send_all(EARLY)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the second request is on its way, by whatever connection
        try:
            with trio.move_on_after(0.2):
                while chunk := await stream.receive_some():
                    leftovers += chunk
            await stream.send_all(OK)
        except trio.BrokenResourceError:
            pass
        drained.set()

    world = World(nursery, upstream, pair=lambda: tcp_pair(buffers=4096), client_pair=trio.testing.memory_stream_pair)
    client = world.client()
    await client.send_all(request(b"POST /first HTTP/1.1", framing))
    await trio.testing.wait_all_tasks_blocked()
    await client.send_all(body)
    await trio.testing.wait_all_tasks_blocked(0.05)  # the last piece is stuck in its send
    sending.set()
    await read_until(client, EARLY[-2:])
    await client.send_all(request(b"GET /second HTTP/1.1", b"Authorization: Bearer ours"))
    await read_until(client, OK[-2:])
    await drained.wait()
    assert b"Bearer" not in leftovers
    assert len(world.connects) == 2
    await client.aclose()
    await world.over.wait()
    await world.pool.aclose_all()


# --- a property: whatever an upstream does and when, nobody gets what is another's ------------------------

NORMAL, EARLY_READS, EARLY_STALLS, CLOSES, RESETS, STRAY = range(6)
"""What an upstream does about one request: answers it; answers at its head and goes on reading, or stops for a
while; answers and closes; breaks off unheard; answers with a second response behind, that nobody asked for."""


@dataclass
class Plan:
    number: int
    method: bytes
    size: int
    chunked: bool
    behaviour: int

    @property
    def mark(self) -> bytes:
        return b"<%d>" % self.number

    def raw(self) -> bytes:
        body = self.mark * (self.size // len(self.mark))
        framing = b"Transfer-Encoding: chunked" if self.chunked else b"Content-Length: %d" % len(body)
        if self.chunked:
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:700], body[700:]) if piece) + b"0\r\n\r\n"
        return request(self.method + b" /%d HTTP/1.1" % self.number, framing, body=body)

    def answer(self) -> bytes:
        if self.number % 2:
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(self.mark), self.mark)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.mark), self.mark)


class Watching(RequestParser):
    """Also tells of each head, as soon as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.news: list[tuple[str, int]] = []

    def on_headers_complete(self):
        self.news.append(("head", int(self._now.url[1:])))

    def on_message_complete(self):
        super().on_message_complete()
        self.news.append(("end", int(self._now.url[1:])))


class Unruly:
    """Does with each request what was planned for it, the first time that it sees it."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.seen: list[int] = []
        self.connections: list[Watching] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        watching = Watching()
        self.connections.append(watching)
        while chunk := await stream.receive_some(1000):
            watching.feed(chunk)
            for what, number in watching.news:
                plan = self.plans[number]
                again = number in self.seen
                behaviour = NORMAL if again and plan.behaviour == RESETS else plan.behaviour
                if what == "head" and behaviour == RESETS:
                    self.seen.append(number)
                    await abort(stream)
                    return
                early = behaviour in {EARLY_READS, EARLY_STALLS}
                if (what == "head") is not early:
                    continue
                self.seen.append(number)
                stray = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen" if behaviour == STRAY else b""
                await stream.send_all(plan.answer() + stray)
                if behaviour == CLOSES:
                    return
                if behaviour == EARLY_STALLS:
                    await trio.sleep(0.002)
            watching.news.clear()


PLANS = st.lists(
    st.builds(
        Plan,
        number=st.just(0),
        method=st.sampled_from([b"GET", b"POST", b"PUT"]),
        size=st.sampled_from([0, 3, 900, 20_000, 60_000]),
        chunked=st.booleans(),
        behaviour=st.sampled_from(range(6)),
    ),
    min_size=1,
    max_size=6,
).map(lambda plans: [replace(plan, number=number) for number, plan in enumerate(plans)])


@settings(max_examples=120, deadline=None)
@given(PLANS, st.sampled_from([0, 1460, 20_100]))
def test_h18_no_request_and_no_response_ever_mixes_with_another(plans, cut):
    """Marks of a request occur in its own body, and in the response to it, and nowhere else."""
    upstream = Unruly(plans)

    async def main() -> tuple[World, bytes]:
        async with trio.open_nursery() as nursery:
            world = World(
                nursery,
                upstream,
                limits=limits(linger=0.01),
                pair=lambda: tcp_pair(buffers=4096),
                client_pair=trio.testing.memory_stream_pair,
            )
            got = await world.talk(b"".join(plan.raw() for plan in plans), cut=cut)
            await world.pool.aclose_all()
        return world, got

    world, got = trio.run(main)
    judged = [int(sent.target[1:]) for sent in world.requests]
    assert judged == list(range(len(judged)))
    for connection in upstream.connections:
        for seen in connection.complete:
            plan = plans[int(seen.url[1:])]
            assert seen.method == plan.method
            assert seen.body == plan.mark * (plan.size // len(plan.mark))
    for number in judged:
        sights = upstream.seen.count(number)
        assert sights <= (2 if plans[number].behaviour == RESETS and plans[number].method != b"POST" else 1)
    parser = ResponseParser()
    with suppress(httptools.HttpParserError):  # behind a last response there is nothing to parse
        parser.feed(got)
    for number, (status, _, body) in enumerate(parser.complete):
        assert (status, body) == (200, plans[number].mark) or status == 502
    statuses = [record.status for record in world.records[: len(parser.complete)]]
    assert statuses == [status for status, _, _ in parser.complete]
    if all(plan.behaviour in {NORMAL, CLOSES, STRAY} for plan in plans):
        assert statuses == [200] * len(plans)


@pytest.mark.parametrize("reused", [False, True])
async def test_a_large_body_at_hand_and_its_echo_do_not_wait_for_each_other(nursery, reused):
    """An upstream that answers as it reads stops to read when nobody takes its answer."""
    size = 300_000

    async def echo(stream):
        if reused:
            await read_until(stream, HEAD_END)
            await stream.send_all(OK)
        head = b""
        while not head.endswith(HEAD_END):
            head += await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        left = size
        while left:
            chunk = await stream.receive_some(4096)
            left -= len(chunk)
            await stream.send_all(chunk)

    world = World(
        nursery,
        echo,
        pair=lambda: tcp_pair(buffers=4096),
        client_pair=trio.testing.memory_stream_pair,
        on_request=lambda sent: replace(sent, body=b"x" * size) if sent.method == "PUT" else sent,
    )
    with trio.fail_after(30):
        client = world.client()
        if reused:
            await client.send_all(request())
            await read_until(client, OK)
        await client.send_all(request(b"PUT / HTTP/1.1", b"Content-Length: 1", body=b"y"))
        got = await read_until(client, lambda got: len(got) > size and got.endswith(b"x"))
        assert got.endswith(b"\r\n\r\n" + b"x" * size)
        await client.aclose()
        await world.over.wait()
    assert len(world.connects) == 1
    assert world.records[-1].bytes_up == world.records[-1].bytes_down == size
    await world.pool.aclose_all()


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_large_body_at_hand_is_sent_again_if_the_reused_connection_was_dead(nursery, size):
    bodies = []

    async def upstream(stream):
        parser = RequestParser()
        while chunk := await stream.receive_some(65536):
            parser.feed(chunk)
            if parser.complete:
                bodies.append(parser.complete[0].body)
                await stream.send_all(OK)
                break
        await stream.receive_some(1)  # the next request: too late

    world = World(
        nursery,
        upstream,
        pair=tcp_pair,
        client_pair=trio.testing.memory_stream_pair,
        on_request=lambda sent: replace(sent, body=b"x" * size),
    )
    assert await world.talk(request(b"PUT / HTTP/1.1") * 2) == OK * 2
    assert bodies == [b"x" * size] * 2
    assert len(world.connects) == 2
    await world.pool.aclose_all()
