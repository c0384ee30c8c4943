"""Reuse of upstream connections: within one sandbox, bounded, and never of a dead one."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing

from sbxproxy.errors import UpstreamConnectError
from sbxproxy.http import Origin, Pool
from support.http_peers import OK, ORIGIN, Upstream, World, limits, read_until, request
from support.tcp import tcp_pair

OTHER = Origin("other.example.com", 443)


def memory() -> trio.abc.Stream:
    return trio.testing.memory_stream_pair()[0]


async def is_closed(stream: trio.abc.Stream) -> bool:
    try:
        await stream.send_all(b"x")
    except trio.ClosedResourceError:
        return True
    return False


async def tidy_for_ever(pool: Pool) -> None:
    """Do to a pool what a running proxy does to its sandboxes' pools, as often, with ``keep_alive=60``."""
    while True:
        await trio.sleep(15)
        await pool.tidy()


async def test_a_connection_comes_back_for_its_own_origin_only(autojump_clock):
    pool, stream = Pool(limits()), memory()
    pool.give(ORIGIN, stream)
    for other in (OTHER, Origin(ORIGIN.host, 8443), Origin(ORIGIN.host, ORIGIN.port, "http")):
        assert pool.take(other) is None
    assert pool.take(ORIGIN) is stream
    assert pool.take(ORIGIN) is None


async def test_the_youngest_connection_is_taken_first():
    """It is the least likely to be closed by the other end."""
    pool, old, young = Pool(limits()), memory(), memory()
    pool.give(ORIGIN, old)
    pool.give(ORIGIN, young)
    assert pool.take(ORIGIN) is young


async def test_the_oldest_gives_way_when_the_pool_is_full(autojump_clock):
    pool = Pool(limits(pooled_per_sandbox=2))
    streams = [memory() for _ in range(3)]
    for stream in streams:
        await trio.sleep(1)
        pool.give(ORIGIN, stream)
    await pool.bury()
    assert len(pool) == 2
    assert [await is_closed(stream) for stream in streams] == [True, False, False]
    assert "2 idle" in repr(pool)


async def test_a_burst_is_kept_for_a_second(autojump_clock, nursery):
    """Many requests end at once, and the next ones begin; else they would open as many connections again."""
    pool = Pool(limits(pooled_per_sandbox=2, keep_alive=60.0))
    nursery.start_soon(tidy_for_ever, pool)
    streams = [memory() for _ in range(10)]
    for stream in streams:
        pool.give(ORIGIN, stream)
    await pool.bury()
    assert len(pool) == 8, "but not more than four times as many"
    assert [await is_closed(stream) for stream in streams] == [True] * 2 + [False] * 8
    await trio.sleep(1)
    pool.give(ORIGIN, memory())
    await pool.bury()
    assert len(pool) == 2
    for _ in range(5):
        pool.give(ORIGIN, memory())
    assert len(pool) == 6, "one of them is old"
    await trio.sleep(16)
    assert len(pool) == 2, "also if nothing happens"
    nursery.cancel_scope.cancel()


async def test_one_that_is_looked_at_stays():
    pool, first, second = Pool(limits()), memory(), memory()
    assert pool.idle(ORIGIN) is None
    pool.give(ORIGIN, first)
    pool.give(ORIGIN, second)
    assert pool.idle(ORIGIN) is second
    assert len(pool) == 2
    assert pool.take(ORIGIN) is second
    assert pool.take(ORIGIN) is first
    assert pool.take(ORIGIN) is pool.idle(ORIGIN) is None


async def test_many_origins_are_not_remembered_for_ever():
    """A sandbox names as many as it likes."""
    pool = Pool(limits(pooled_per_sandbox=2))
    for number in range(100):
        origin = Origin(f"h{number}.example", 443)
        pool.give(origin, memory())
        assert pool.take(origin) is not None
    assert len(pool._by_origin) <= 4


async def test_a_connection_idle_for_too_long_is_given_up(autojump_clock):
    pool, stream = Pool(limits(keep_alive=60.0)), memory()
    pool.give(ORIGIN, stream)
    await trio.sleep(59)
    pool.give(OTHER, memory())
    await trio.sleep(2)
    assert pool.take(ORIGIN) is None
    assert len(pool) == 1
    await pool.bury()
    assert await is_closed(stream)


async def test_tidying_closes_old_connections_and_closing_all_the_rest(autojump_clock, nursery):
    pool, old, young = Pool(limits(keep_alive=60.0)), memory(), memory()
    pool.give(ORIGIN, old)
    with trio.move_on_after(90):
        async with trio.open_nursery() as running:
            running.start_soon(tidy_for_ever, pool)
            await trio.sleep(80)
            assert await is_closed(old)
            pool.give(ORIGIN, young)
    await pool.aclose_all()
    assert await is_closed(young)
    late = memory()
    pool.give(ORIGIN, late)
    assert pool.take(ORIGIN) is None
    await pool.bury()
    assert await is_closed(late)


async def test_forget_gives_up_everything():
    """After a policy change nothing opened under the old one is used."""
    pool, stream = Pool(limits()), memory()
    pool.give(ORIGIN, stream)
    pool.forget()
    assert pool.take(ORIGIN) is None
    await pool.bury()
    assert await is_closed(stream)


@pytest.mark.parametrize("what", [b"", b"HTTP/1.1 408 x\r\n\r\n"])
async def test_a_connection_with_something_to_read_is_dead(what):
    """An end, or a response that nobody asked for and that would answer the next request."""
    pool = Pool(limits())
    near, far = tcp_pair()
    other, other_far = tcp_pair()
    pool.give(ORIGIN, other)
    pool.give(ORIGIN, near)
    await (far.send_all(what) if what else far.aclose())
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable(near.socket)
    assert pool.take(ORIGIN) is other
    await pool.bury()
    assert near.socket.fileno() == -1
    for stream in (far, other, other_far):
        await stream.aclose()


async def test_a_closed_socket_is_dead():
    pool = Pool(limits())
    near, far = tcp_pair()
    await near.aclose()
    await far.aclose()
    pool.give(ORIGIN, near)
    assert pool.take(ORIGIN) is None


async def test_c15_sandboxes_share_no_connection(nursery):
    """Each has a pool; a connection that carried one's credentials never serves the other."""
    one, two = World(nursery), World(nursery)
    await one.talk(request())
    assert len(one.pool) == 1
    await two.talk(request())
    assert len(two.connects) == 1
    assert len(one.upstream.requests) == len(two.upstream.requests) == 1


async def test_connections_of_a_sandbox_are_shared_by_its_clients(nursery):
    world = World(nursery)
    await world.talk(request())
    world.over = trio.Event()
    await world.talk(request())
    assert len(world.connects) == 1


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"],
)
async def test_a_connection_that_ends_is_not_pooled(nursery, answer):
    world = World(nursery, Upstream(answer))
    assert await world.talk(request() * 2) == OK * 2
    assert len(world.connects) == 2


def dies_on_reuse(seen: list[bytes], *, heard: bytes = b""):
    """An upstream that answers once, and closes its connection when it gets a second request."""

    async def upstream(stream):
        seen.append(await read_until(stream, b"\r\n\r\n"))
        await stream.send_all(OK)
        with suppress(AssertionError):  # no second request came
            seen.append(await read_until(stream, lambda got: b"\r\n\r\n" in got))
        await stream.send_all(heard)

    return upstream


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE"])
async def test_a_request_is_sent_again_if_a_reused_connection_was_dead(nursery, method):
    seen = []
    world = World(nursery, dies_on_reuse(seen))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    await client.send_all(request(method + b" /2 HTTP/1.1"))
    answer = await read_until(client, b"\r\n\r\n" if method == b"HEAD" else OK)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert [line.split(b" HTTP")[0] for line in seen] == [b"GET /", method + b" /2", method + b" /2"]
    await client.aclose()


@pytest.mark.parametrize(
    ("raw", "heard"),
    [
        (request(b"POST / HTTP/1.1", b"Content-Length: 0"), b""),
        (request(b"GET / HTTP/1.1"), b"HTTP/1.1 2"),
        (request(b"PUT / HTTP/1.1", b"Content-Length: 500000", body=b"part"), b""),
    ],
)
async def test_a_request_that_may_have_been_served_is_not_sent_again(nursery, raw, heard):
    """Not idempotent, already half answered, or with a body that is gone in part."""
    seen = []
    world = World(nursery, dies_on_reuse(seen, heard=heard))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    await client.send_all(raw)
    answer = await read_until(client, b"}\n")
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert len(world.connects) == 1
    await client.aclose()
    await world.over.wait()


async def test_a_body_at_hand_is_sent_again_with_its_request(nursery):
    seen = []
    world = World(nursery, dies_on_reuse(seen))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    await client.send_all(request(b"PUT / HTTP/1.1", b"Content-Length: 4", body=b"\r\n\r\n"))
    await read_until(client, OK)
    assert seen[-1].endswith(b"\r\n\r\n\r\n\r\n")
    assert len(world.connects) == 2
    await client.aclose()


async def test_a_new_connection_that_dies_is_not_tried_again(nursery):
    async def dies(stream):
        await read_until(stream, b"\r\n\r\n")

    world = World(nursery, dies)
    assert (await world.talk(request())).startswith(b"HTTP/1.1 502 ")
    assert len(world.connects) == 1


async def test_the_second_try_may_fail_to_connect(nursery):
    world = World(nursery, dies_on_reuse([]))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK)
    world.connect_error = UpstreamConnectError("refused")
    await client.send_all(request())
    assert b"connect-failed" in await read_until(client, b"}\n")
    await client.aclose()


async def test_a_connection_in_use_while_all_was_forgotten_does_not_come_back(nursery):
    """The request was allowed; the next one is judged by another policy, and so is its connection."""

    def forget(request, response):
        world.pool.forget()
        return response

    world = World(nursery, on_response=forget)
    assert await world.talk(request() * 2) == OK * 2
    assert len(world.connects) == 2
    assert len(world.pool) == 0
