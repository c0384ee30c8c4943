"""Waiting for sockets without a task: who is told what, when, once, and in what order with the bytes of tunnels."""

from __future__ import annotations

import os
import select
import socket

import pytest
import trio
import trio.testing

from sbxproxy.net.engine import Engine
from sbxproxy.net.waiting import CALLS, News
from support.tcp import Counts, black_hole, open_descriptors, wait_for_news


class Watched:
    """A pair of TCP sockets, and what the engine told of the near one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.far = socket.create_connection(server.getsockname())
            self.near, _ = server.accept()
        self.near.setblocking(False)
        self.told: list[News] = []

    def watch(self, until: float = float("inf"), **options: bool) -> Watched:
        self.engine.watch(self.near, self.told.append, until, **options)
        return self

    async def news(self) -> News:
        with trio.fail_after(30):
            while not self.told:
                await trio.sleep(0.001)
        await trio.sleep(0.005)
        assert len(self.told) == 1
        return self.told.pop()

    async def quiet(self) -> None:
        await trio.sleep(0.02)
        assert self.told == []

    def reset(self) -> None:
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.far.close()

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def watched(engine: Engine):
    made: list[Watched] = []

    def make() -> Watched:
        made.append(Watched(engine))
        return made[-1]

    yield make
    for one in made:
        one.close()


# What is told.


async def test_bytes_and_nothing_else_are_ready(watched) -> None:
    one = watched().watch()
    await one.quiet()
    one.far.send(b"x")
    assert await one.news() is News.READY
    one.far.send(b"y")
    await one.quiet()


async def test_bytes_that_are_there_already_are_told(watched) -> None:
    one = watched()
    one.far.send(b"x")
    await trio.sleep(0.005)
    one.watch()
    assert one.told == []  # never from within
    assert await one.news() is News.READY


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("what", ["end", "bytes and end", "reset", "urgent"])
async def test_an_end_a_reset_or_urgent_data_is_another_thing(watched, what: str, before: bool) -> None:
    """Whoever reads once would not see it."""
    one = watched()
    if not before:
        one.watch()
    match what:
        case "end":
            one.far.shutdown(socket.SHUT_WR)
        case "bytes and end":
            one.far.send(b"x")
            one.far.shutdown(socket.SHUT_WR)
        case "reset":
            one.reset()
        case "urgent":
            one.far.send(b"x", socket.MSG_OOB)
    if before:
        one.watch()
    assert await one.news() is News.OTHER


async def test_an_end_that_comes_while_it_stands_in_line_is_told_with_the_bytes(engine: Engine, watched) -> None:
    one = watched().watch()
    others = [watched().watch() for _ in range(3 * CALLS)]
    for other in others:
        other.far.send(b"x")
    one.far.send(b"x")
    wait_for_news(one.near, *(other.near for other in others))
    engine._turn(engine._epoll)
    assert [wait for wait in engine._calls if wait.sock is one.near]
    one.far.shutdown(socket.SHUT_WR)
    engine._turn(engine._epoll)
    assert await one.news() is News.OTHER


async def test_room_is_told_at_once_where_there_is_some(watched) -> None:
    assert await watched().watch(room=True).news() is News.READY


async def test_a_connecting_that_fails_is_told(engine: Engine) -> None:
    told: list[News] = []
    with socket.socket() as bound, socket.socket() as sock:
        bound.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.connect_ex(bound.getsockname())
        engine.watch(sock, told.append, room=True)
        with trio.fail_after(30):
            while not told:
                await trio.sleep(0.001)
    assert told == [News.OTHER]


# Time.


async def test_being_late_is_told_by_trio_s_clock(patient_clock, engine: Engine) -> None:
    one, told = Watched(engine), []
    started = trio.current_time()
    engine.watch(one.near, lambda news: told.append((news, trio.current_time() - started)), started + 7)
    await trio.sleep(20)
    ((news, when),) = told
    assert news is News.LATE
    assert 7 <= when <= 7.2
    assert engine._waits == {}
    one.far.send(b"x")
    await trio.sleep(1)
    assert len(told) == 1
    one.close()


async def test_a_limit_that_is_reset_by_waiting_anew_runs_from_there(patient_clock, engine: Engine) -> None:
    one, started = Watched(engine), trio.current_time()
    one.watch(started + 5)
    await trio.sleep(4)
    engine.ignore(one.near)
    one.watch(started + 50)
    await trio.sleep(40)
    assert one.told == []
    await trio.sleep(10.2)
    assert one.told == [News.LATE]
    one.close()


async def test_a_connecting_that_hangs_is_late(patient_clock, engine: Engine) -> None:
    told: list[News] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with black_hole("127.0.0.9", port), socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.9", port))
        engine.watch(sock, told.append, trio.current_time() + 0.25, room=True)
        await trio.sleep(0.2)
        assert told == []
        await trio.sleep(0.2)
        assert told == [News.LATE]


# Not any more.


async def test_what_is_ignored_is_told_nothing(engine: Engine, watched) -> None:
    one = watched().watch()
    engine.ignore(one.near)
    engine.ignore(one.near)
    one.far.send(b"x")
    await one.quiet()
    one.watch()
    assert await one.news() is News.READY


async def test_what_is_ignored_while_it_stands_in_line_is_told_nothing(engine: Engine, watched) -> None:
    """Its news were taken from the kernel, and not told yet."""
    ones = [watched() for _ in range(3 * CALLS)]
    told: list[int] = []

    def hear(index: int) -> None:
        told.append(index)
        for other in ones:
            engine.ignore(other.near)

    for index, one in enumerate(ones):
        engine.watch(one.near, lambda _news, index=index: hear(index))
        one.far.send(b"x")
    wait_for_news(*(one.near for one in ones))
    await trio.testing.wait_all_tasks_blocked(0.03)
    assert len(told) == 1
    assert engine._waits == {}
    assert not engine._calls


async def test_ignoring_takes_the_very_socket(engine: Engine, watched) -> None:
    """A number alone says nothing of whose it is."""
    one = watched().watch()
    with socket.socket(fileno=os.dup(one.near.fileno())) as twin:
        engine.ignore(twin)
        engine.ignore(one.far)
    alias = socket.socket(fileno=one.near.fileno())
    engine.ignore(alias)
    alias.detach()
    closed = socket.socket()
    closed.close()
    engine.ignore(closed)
    one.far.send(b"x")
    assert await one.news() is News.READY


async def test_forgetting_tells_whoever_waits(engine: Engine, watched) -> None:
    one = watched().watch()
    engine.forget(one.near)
    assert one.told == [News.CLOSED]
    engine.forget(one.near)
    assert len(one.told) == 1


async def test_a_socket_closed_by_somebody_is_found(patient_clock, engine: Engine) -> None:
    one = Watched(engine).watch()
    one.near.close()
    await trio.sleep(3)
    assert one.told == [News.CLOSED]
    one.far.close()


async def test_a_number_that_came_back_is_the_new_socket_s(engine: Engine, watched) -> None:
    first, second = watched().watch(), watched()
    number = first.near.fileno()
    first.near.close()
    os.dup2(second.near.fileno(), number)
    second.near.close()
    second.near = socket.socket(fileno=number)
    second.watch()
    assert first.told == [News.CLOSED]
    second.far.send(b"x")
    assert await second.news() is News.READY
    assert len(first.told) == 1


async def test_news_of_a_socket_closed_in_line_are_that_it_is_closed(engine: Engine, watched) -> None:
    """Whoever is told first may close others' sockets."""
    ones = [watched() for _ in range(2 * CALLS)]
    told: dict[int, News] = {}

    def hear(index: int, news: News) -> None:
        told[index] = news
        for other in ones:
            other.near.close()

    for index, one in enumerate(ones):
        engine.watch(one.near, lambda news, index=index: hear(index, news))
        one.far.send(b"x")
    with trio.fail_after(30):
        while len(told) < len(ones):
            await trio.sleep(0.001)
    first, *others = told.values()
    assert first is News.READY
    assert set(others) == {News.CLOSED}


# Mistakes.


async def test_a_socket_is_waited_for_by_one_only(engine: Engine, watched) -> None:
    one = watched().watch()
    with pytest.raises(trio.BusyResourceError):
        one.watch()
    with pytest.raises(trio.BusyResourceError):
        await engine.readable(one.near)
    one.far.send(b"x")
    assert await one.news() is News.READY


async def test_a_closed_socket_is_not_waited_for(watched) -> None:
    one = watched()
    one.near.close()
    with pytest.raises(trio.ClosedResourceError):
        one.watch()


async def test_an_engine_that_does_not_run_waits_for_nothing() -> None:
    one = Watched(Engine())
    with pytest.raises(RuntimeError):
        one.watch()
    one.close()


async def test_what_epoll_can_not_take_is_raised_and_not_waited_for(engine: Engine, tmp_path) -> None:
    """A plain file, for one."""
    number = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)

    class Odd:
        def fileno(self) -> int:
            return number

    with pytest.raises(OSError):
        engine.watch(Odd(), lambda _news: None)
    assert engine._waits == {}
    os.close(number)


# The end of the engine.


async def test_x9_an_engine_that_stops_tells_all_who_wait() -> None:
    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        ones = [Watched(engine).watch() for _ in range(2 * CALLS)]
        for one in ones[:CALLS]:
            one.far.send(b"x")
        nursery.cancel_scope.cancel()
    assert all(len(one.told) == 1 for one in ones)
    assert {one.told[0] for one in ones[CALLS:]} == {News.CLOSED}
    assert (engine._waits, len(engine._calls)) == ({}, 0)
    for one in ones:
        one.close()


# Waiting again, and tunnels.


async def test_waiting_again_is_an_edge(watched) -> None:
    """Nobody is told twice of the same bytes, and whoever read until the socket was dry misses none."""
    one = watched().watch()
    one.far.send(b"x")
    assert await one.news() is News.READY
    assert one.near.recv(10) == b"x"
    one.watch(again=True)
    await one.quiet()
    one.far.send(b"y")
    assert await one.news() is News.READY
    one.far.send(b"z")
    await trio.sleep(0.005)
    one.watch()  # anew, and what is there counts
    assert await one.news() is News.READY


@pytest.mark.parametrize("first", [b"", b"first "])
async def test_a_watched_socket_becomes_the_end_of_a_tunnel(engine: Engine, watched, first: bytes) -> None:
    """What came between the last read and the tunnel is not missed, nor an end behind it."""
    client, upstream, count = watched().watch(), watched(), Counts()
    client.far.send(b"ask")
    assert await client.news() is News.READY
    assert client.near.recv(10) == b"ask"
    client.far.send(b"more")
    client.far.shutdown(socket.SHUT_WR)
    await trio.sleep(0.005)
    tunnel = engine.take(client.near, upstream.near, idle=9, count=count, up=first, watched=True)
    assert tunnel is not None
    ended: list[str] = []
    tunnel.tell = ended.append
    upstream.far.send(b"answer")
    upstream.far.shutdown(socket.SHUT_WR)
    with trio.fail_after(30):
        while not ended:
            await trio.sleep(0.001)
    assert ended == ["eof"]
    upstream.far.settimeout(30)
    client.far.settimeout(30)
    assert upstream.far.recv(100) == first + b"more"
    assert client.far.recv(100) == b"answer"
    assert count == Counts(len(first) + 4, 6)


async def test_a_socket_that_was_not_watched_is_taken_as_if_it_had_been(engine: Engine, watched) -> None:
    """``watched`` saves a call where it is true, and costs one where it is not."""
    client, upstream = watched(), watched()
    tunnel = engine.take(client.near, upstream.near, idle=9, count=Counts(), watched=True)
    assert tunnel is not None
    client.far.send(b"x")
    upstream.far.settimeout(30)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert upstream.far.recv(5) == b"x"
    engine.cut(tunnel)
    engine.cut(tunnel)
    assert (tunnel.ended, engine.tunnels) == ("closed", 0)
    client.far.send(b"y")
    await trio.sleep(0.02)
    upstream.far.setblocking(False)
    with pytest.raises(BlockingIOError):
        upstream.far.recv(5)


async def test_x2_a_tunnel_that_lives_on_has_its_upstream_probed(patient_clock, engine: Engine) -> None:
    client, upstream = Watched(engine), Watched(engine)
    tunnel = engine.take(client.near, upstream.near, idle=None, count=Counts(), probe=True)
    assert tunnel is not None
    assert not upstream.near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    await trio.sleep(3)
    assert upstream.near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    engine.cut(tunnel)
    client.close()
    upstream.close()


# Fairness.


async def test_x11_many_who_wait_are_told_a_few_a_turn_and_in_order(engine: Engine, watched, monkeypatch) -> None:
    turns: list[list[int]] = [[]]
    turn = Engine._turn

    def counted(self: Engine, epoll: select.epoll) -> None:
        turns.append([])
        turn(self, epoll)

    monkeypatch.setattr(Engine, "_turn", counted)
    ones = [watched() for _ in range(5 * CALLS + 1)]
    for index, one in enumerate(ones):
        engine.watch(one.near, lambda _news, index=index: turns[-1].append(index))
        one.far.send(b"x")
    wait_for_news(*(one.near for one in ones))
    with trio.fail_after(30):
        while sum(map(len, turns)) < len(ones):
            await trio.sleep(0.001)
    assert sorted(index for told in turns for index in told) == list(range(len(ones)))
    assert max(map(len, turns)) == CALLS
    assert len([told for told in turns if told]) == 6


async def test_x11_a_flood_of_calls_does_not_hold_up_a_tunnel(engine: Engine, watched) -> None:
    """A tunnel's bytes go in the turn that finds them, however many wait to be told."""
    client, upstream = watched(), watched()
    tunnel = engine.take(client.near, upstream.near, idle=9, count=Counts())
    ones = [watched().watch() for _ in range(6 * CALLS)]
    await trio.testing.wait_all_tasks_blocked(0.01)
    for one in ones:
        one.far.send(b"x")
    client.far.send(b"key")
    wait_for_news(client.near, *(one.near for one in ones))
    engine._turn(engine._epoll)
    told = sum(len(one.told) for one in ones)
    assert told == CALLS
    upstream.far.setblocking(False)
    assert upstream.far.recv(5) == b"key"
    assert tunnel is not None
    engine.cut(tunnel)


async def test_x11_a_call_does_not_wait_for_busy_tunnels(engine: Engine, watched) -> None:
    lines = [(watched(), watched()) for _ in range(6)]
    for client, upstream in lines:
        engine.take(client.near, upstream.near, idle=9, count=Counts())
        client.far.setblocking(False)
        client.far.send(bytes(200_000))
    one = watched().watch()
    await trio.sleep(0)
    one.far.send(b"x")
    wait_for_news(one.near)
    engine._turn(engine._epoll)
    assert one.told == [News.READY]
    for tunnel in tuple(engine._tunnels):
        engine.cut(tunnel)


async def test_x9_nothing_stays_open(engine: Engine) -> None:
    before = open_descriptors()
    ones = [Watched(engine).watch() for _ in range(20)]
    for one in ones:
        one.far.send(b"x")
        await one.news()
        one.close()
    assert open_descriptors() == before
