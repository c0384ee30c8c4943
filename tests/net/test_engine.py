"""The engine: what is its own beside what every relay does (see ``test_relay``), and how it ends."""

from __future__ import annotations

import array
import errno
import hashlib
import os
import random
import select
import socket

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.net import engine as module
from sbxproxy.net import pipes, tunnel
from sbxproxy.net.engine import Engine
from sbxproxy.net.peek import peekable
from sbxproxy.net.relay import relay
from support.tcp import Counts, fill_up, open_descriptors, receive_all, receive_exactly, reset, tcp_pair, unix_pair


def small_pair():
    return tcp_pair(buffers=16 * 1024)


async def carried(engine, *args, **options):
    tunnel = engine.take(*args, **options)
    return None if tunnel is None else await engine.carry(tunnel)


class Line:
    """Two pairs of sockets with a tunnel between their near ends."""

    def __init__(self, engine, *, pair=tcp_pair, idle=30.0, up=b"", down=b""):
        self.client, self.near = pair()
        self.upstream, self.far = pair()
        self.engine, self.idle, self.first = engine, idle, (up, down)
        self.count = Counts()
        self.scope = trio.CancelScope()
        self.ended = None
        self.done = trio.Event()

    async def run(self):
        try:
            with self.scope:
                up, down = self.first
                self.ended = await carried(
                    self.engine, self.near.socket, self.far.socket, idle=self.idle, count=self.count, up=up, down=down
                )
        finally:
            self.done.set()

    async def close(self):
        for end in (self.client, self.near, self.upstream, self.far):
            await trio.aclose_forcefully(end)


@pytest.fixture
async def line(nursery, engine):
    made = []

    def start(**options):
        line = Line(engine, **options)
        made.append(line)
        nursery.start_soon(line.run)
        return line

    yield start
    for line in made:
        await line.close()


# Starting and ending.


async def test_an_engine_that_does_not_run_takes_nothing():
    """The caller still has the bytes that it read ahead, and relays by itself."""
    engine = Engine()
    line = Line(engine, up=b"hello")
    await line.run()
    assert (line.ended, line.count, engine.running) == (None, Counts(), False)
    await line.close()


async def relay_by_two_tasks(engine):
    """See that ``relay`` does without *engine*, and that bytes read ahead are still there for it."""
    line = Line(engine)
    await line.client.send_all(b"hello ")
    near = peekable(line.near)
    await near.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: relay(near, line.far, idle=9, linger=1, count=line.count, engine=engine))
        await line.client.send_all(b"there")
        assert await receive_exactly(line.upstream, 11) == b"hello there"
        nursery.cancel_scope.cancel()
    assert line.count == Counts(11, 0)
    await line.close()


async def test_relaying_goes_on_without_a_running_engine():
    await relay_by_two_tasks(Engine())


async def test_two_runs_of_one_engine_are_a_mistake(engine):
    with pytest.raises(RuntimeError):
        await engine.run()
    assert engine.running


async def test_an_engine_can_run_again():
    engine = Engine()
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            line = Line(engine)
            nursery.start_soon(line.run)
            await line.client.send_all(b"x")
            assert await receive_exactly(line.upstream, 1) == b"x"
            nursery.cancel_scope.cancel()
        await line.close()
        assert repr(engine) == "<Engine 0 tunnels, not running>"


async def test_x9_stopping_the_engine_wakes_every_flow_and_moves_nothing_more():
    """No flow may wait for an engine that is no more, and the outcome is none that passes for a clean end."""
    engine = Engine()
    before = open_descriptors()
    async with trio.open_nursery() as flows:
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            lines = [Line(engine, pair=small_pair) for _ in range(20)]
            for line in lines:
                flows.start_soon(line.run)
            await trio.testing.wait_all_tasks_blocked()
            assert engine.tunnels == 20
            await fill_up(lines[0].client)
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            for line in lines:
                await line.done.wait()
    assert {line.ended for line in lines} == {"stopped"}
    await lines[1].client.send_all(b"late")
    await trio.sleep(0.05)
    assert lines[1].count == Counts()
    for line in lines:
        await line.close()
    assert (engine.tunnels, open_descriptors(), pipes.pipe_pool().made) == (0, before, 0)


async def test_a_fault_in_the_engine_is_raised_where_it_runs_and_ends_all_tunnels(monkeypatch):
    """A part that is broken must be seen, and must not leave connections hanging."""
    engine = Engine()
    line = Line(engine)

    def pump(lane, scratch, now):
        raise ZeroDivisionError

    async def feed():
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(tunnel.Lane, "pump", pump)
        await line.client.send_all(b"x")

    async with trio.open_nursery() as flows:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(engine.run)
                flows.start_soon(line.run)
                flows.start_soon(feed)
        with trio.fail_after(30):
            await line.done.wait()
    assert line.ended == "stopped"
    await line.close()


async def test_without_epoll_it_takes_nothing(monkeypatch, nursery):
    monkeypatch.setattr(module, "CAN_RUN", False)
    engine = Engine()
    await nursery.start(engine.run)
    assert not engine.running


# What it refuses.


async def test_a_socket_is_in_one_tunnel_only(engine, line):
    first = line()
    await trio.testing.wait_all_tasks_blocked()
    other, far = tcp_pair()
    for ends in ((first.near, far), (far, first.near), (far, far)):
        with pytest.raises(trio.BusyResourceError):
            await carried(engine, ends[0].socket, ends[1].socket, idle=9, count=Counts())
    await first.client.send_all(b"x")
    assert await receive_exactly(first.upstream, 1) == b"x"
    assert engine.tunnels == 1
    await other.aclose()
    await far.aclose()


@pytest.mark.parametrize("which", [0, 1])
async def test_a_kernel_that_takes_no_more_sockets_leaves_the_pair_untouched(nursery, monkeypatch, which):
    """Then two tasks do it, and bytes read ahead are still there for them."""
    real = select.epoll
    calls = 0

    class Full:
        def __init__(self):
            self.real = real()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.real.close()

        def __getattr__(self, name):
            return getattr(self.real, name)

        def register(self, number, events):
            nonlocal calls
            calls += 1
            if calls - 1 == which:
                raise OSError(errno.ENOSPC, "max_user_watches")
            self.real.register(number, events)

    engine = Engine()
    with monkeypatch.context() as patch:
        patch.setattr(select, "epoll", Full)
        await nursery.start(engine.run)
    await relay_by_two_tasks(engine)
    assert (engine.running, engine.tunnels, engine._lanes) == (True, 0, {})


# Edges: what edge-triggered waiting can miss.


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair], ids=["tcp", "unix"])
@pytest.mark.parametrize("ahead", [False, True])
async def test_an_end_right_behind_the_last_byte_is_seen(line, pair, ahead):
    """It may be there before the bytes are read, and a short read is not asked twice."""
    one = line(pair=pair)
    if not ahead:
        await trio.testing.wait_all_tasks_blocked()
    await one.client.send_all(b"all there is")
    await one.client.send_eof()
    await one.upstream.send_all(b"indeed")
    await one.upstream.send_eof()
    with trio.fail_after(30):
        assert await receive_all(one.upstream) == b"all there is"
        assert await receive_all(one.client) == b"indeed"
        await one.done.wait()
    assert (one.ended, one.count) == ("eof", Counts(12, 6))


async def test_bytes_behind_urgent_data_are_not_left_waiting(line):
    """TCP reads stop short at the urgent mark (tcp(7)), with more behind it and no further event to come."""
    one = line()
    await trio.testing.wait_all_tasks_blocked()
    for text in (b"before ", b"after "):
        await one.client.send_all(text)
        sock = socket.socket(fileno=os.dup(one.client.socket.fileno()))
        sock.send(b"!", socket.MSG_OOB)
        sock.close()
        await one.client.send_all(b"behind ")
    with trio.fail_after(30):
        assert await receive_exactly(one.upstream, 27) == b"before behind after behind "


async def test_bytes_behind_a_message_with_descriptors_are_not_left_waiting(line):
    """Reads of a local socket stop short at each; the descriptors themselves are not passed on."""
    one = line(pair=unix_pair)
    await trio.testing.wait_all_tasks_blocked()
    sock = socket.socket(fileno=os.dup(one.client.socket.fileno()))
    for _ in range(3):
        sock.sendmsg([b"with "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
        sock.send(b"without ")
    sock.close()
    with trio.fail_after(30):
        assert await receive_exactly(one.upstream, 39) == b"with without " * 3


async def test_bytes_that_are_there_before_the_tunnel_are_moved(engine, nursery):
    line = Line(engine, up=b"1", down=b"a")
    await line.client.send_all(b"2")
    await line.upstream.send_all(b"b")
    await line.client.send_eof()
    await line.upstream.send_eof()
    nursery.start_soon(line.run)
    with trio.fail_after(30):
        assert await receive_all(line.upstream) == b"12"
        assert await receive_all(line.client) == b"ab"
        await line.done.wait()
    assert line.ended == "eof"
    await line.close()


async def test_more_read_ahead_than_the_sink_takes_waits_its_turn(line):
    data = random.Random(3).randbytes(3_000_000)
    one = line(pair=small_pair, up=data)
    await one.client.send_all(b"the rest")
    await one.client.send_eof()
    assert await receive_all(one.upstream) == data + b"the rest"


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_side_that_is_gone_before_the_tunnel_ends_it(engine, side):
    """The outcome comes at once, with nothing parked."""
    line = Line(engine, up=b"x", down=b"y")
    reset(getattr(line, side))
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable((line.near if side == "client" else line.far).socket)
        await line.run()
    assert line.ended == f"{side}-reset"
    assert engine.tunnels == 0
    await line.close()


async def test_a_reset_behind_a_full_sink_is_found_once_that_takes_bytes(line):
    one = line(pair=small_pair)
    accepted = await fill_up(one.client)
    reset(one.client)
    await trio.sleep(0.05)
    assert not one.done.is_set()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_exactly, one.upstream, accepted + 1)
            await one.done.wait()
            nursery.cancel_scope.cancel()
    assert one.ended == "client-reset"


async def test_an_end_behind_a_full_sink_is_passed_on_in_order(line):
    one = line(pair=small_pair)
    accepted = await fill_up(one.client)
    await one.client.send_eof()
    assert len(await receive_all(one.upstream)) == accepted
    await one.upstream.send_eof()
    await one.done.wait()
    assert (one.ended, one.count.bytes_up) == ("eof", accepted)


async def test_a_full_tunnel_costs_no_turns(line, engine, monkeypatch):
    """Edges, not levels: a sink that takes nothing and a source that has more make no noise."""
    one = line(pair=small_pair)
    await fill_up(one.client)
    turns = 0
    real = Engine._turn

    def turn(self, epoll):
        nonlocal turns
        turns += 1
        real(self, epoll)

    monkeypatch.setattr(Engine, "_turn", turn)
    await trio.sleep(0.2)
    assert turns <= 1
    assert one.ended is None


async def test_more_news_than_are_taken_at_once_are_all_taken(line, monkeypatch):
    monkeypatch.setattr(module, "EVENTS", 2)
    lines = [line() for _ in range(20)]
    await trio.testing.wait_all_tasks_blocked()
    for one in lines:
        await one.client.send_all(b"x")
    with trio.fail_after(30):
        for one in lines:
            assert await receive_exactly(one.upstream, 1) == b"x"


# Sockets closed by others.


async def test_a_closed_sockets_number_may_come_back_at_once(engine, line):
    """The old tunnel ends as closed; the new one gets the number and none of the old one's bytes."""
    old = line()
    await old.client.send_all(b"old")
    await receive_exactly(old.upstream, 3)
    number = old.near.socket.fileno()
    client, first = tcp_pair()
    old.near.socket.close()
    os.dup2(first.socket.fileno(), number)
    await first.aclose()
    near = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=number)))
    upstream, far = tcp_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: carried(engine, near.socket, far.socket, idle=9, count=Counts()))
        await trio.testing.wait_all_tasks_blocked()
        await old.done.wait()
        assert old.ended == "closed"
        await old.upstream.send_all(b"stray")
        await client.send_all(b"new")
        await client.send_eof()
        assert await receive_all(upstream) == b"new"
        await upstream.send_all(b"answer")
        assert await receive_exactly(client, 6) == b"answer"
        nursery.cancel_scope.cancel()
    for end in (client, near, upstream, far):
        await trio.aclose_forcefully(end)


async def test_a_closed_socket_that_a_duplicate_keeps_in_epoll_harms_nobody(line, monkeypatch):
    """A child process may have one. Its events come under a number that is nobody's, or somebody else's."""
    monkeypatch.setattr(module, "LOOK", 0.05)
    one, other = line(), line()
    await trio.testing.wait_all_tasks_blocked()
    duplicate = os.dup(one.near.socket.fileno())
    one.near.socket.close()
    with trio.fail_after(30):
        await one.done.wait()
    assert one.ended == "closed"
    await one.client.send_all(b"nobody's")
    await other.client.send_all(b"x")
    assert await receive_exactly(other.upstream, 1) == b"x"
    os.close(duplicate)


@pytest.mark.parametrize("end", ["near", "far"])
async def test_a_silent_tunnel_whose_socket_was_closed_is_found(line, monkeypatch, end):
    monkeypatch.setattr(module, "LOOK", 0.05)
    one = line(idle=None)
    await trio.testing.wait_all_tasks_blocked()
    getattr(one, end).socket.close()
    with trio.fail_after(30):
        await one.done.wait()
    assert one.ended == "closed"


# Cancelling.


@pytest.mark.parametrize("spliced", [False, True], ids=["copied", "spliced"])
async def test_c1_a_cut_is_at_once_though_bytes_are_on_their_way(line, engine, monkeypatch, spliced):
    """When cancel() returns, the pair is out of the engine, and the pipe with its bytes is gone."""
    monkeypatch.setattr(tunnel.direction, "CAN_SPLICE", spliced)
    one = line(pair=small_pair)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.client.send_all, bytes(500_000))
        await receive_exactly(one.upstream, 500_000)
    await fill_up(one.client)
    assert pipes.pipe_pool().made == (1 if spliced else 0)
    moved = one.count.bytes_up
    one.scope.cancel()
    assert (engine.tunnels, engine._lanes, pipes.pipe_pool().made) == (0, {}, 0)
    with trio.move_on_after(0.2):
        await receive_exactly(one.upstream, 10_000_000)
    assert one.count.bytes_up == moved
    await one.done.wait()
    assert one.ended is None


async def test_a_tunnel_cancelled_while_it_stands_in_line_is_passed_by(line, engine):
    one = line()
    await trio.testing.wait_all_tasks_blocked()
    lanes = engine._lanes[one.near.socket.fileno()]
    for lane in lanes:
        lane.state = tunnel.State.QUEUED
    engine._greedy.append(lanes[0])
    engine._ready.append(lanes[1])
    one.scope.cancel()
    engine._turn(engine._epoll)
    assert (len(engine._ready), len(engine._greedy), one.count) == (0, 0, Counts())


async def test_a_flow_cancelled_before_it_parks_leaves_nothing(engine):
    line = Line(engine)
    line.scope.cancel()
    await line.run()
    assert (line.ended, engine.tunnels) == (None, 0)
    await line.close()


# Time.


async def test_limits_that_run_out_one_after_the_other_are_looked_at_together(patient_clock, engine, nursery, monkeypatch):
    """Never early, and less than a second late."""
    looks = 0
    real = Engine._look

    def look(self):
        nonlocal looks
        looks += 1
        real(self)

    monkeypatch.setattr(Engine, "_look", look)
    monkeypatch.setattr(module, "LOOK", 1000.0)
    ended = {}

    async def run(line, started):
        await line.run()
        ended[started] = (line.ended, trio.current_time() - started)

    lines = []
    for index in range(40):
        lines.append(Line(engine, idle=20.0))
        nursery.start_soon(run, lines[-1], index * 0.05)
        patient_clock.jump(0.05)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    while len(ended) < 40:
        await trio.sleep(1)
    assert {why for why, _ in ended.values()} == {"idle"}
    assert all(20 <= after <= 21.1 for _, after in ended.values())
    assert looks <= 5
    for line in lines:
        await line.close()


async def test_a_byte_in_either_direction_is_life(patient_clock, line):
    one = line(idle=10.0)
    for source, sink in ((one.client, one.upstream), (one.upstream, one.client)) * 3:
        await trio.sleep(9)
        await source.send_all(b"x")
        await receive_exactly(sink, 1)
    last = trio.current_time()
    await one.done.wait()
    assert one.ended == "idle"
    assert last + 10 <= trio.current_time() <= last + 11


async def test_a_tunnel_without_a_limit_outlives_others(patient_clock, line):
    one, other = line(idle=None), line(idle=5.0)
    await other.done.wait()
    assert (other.ended, one.ended, trio.current_time()) == ("idle", None, 5)


async def test_an_engine_without_tunnels_sleeps(patient_clock, engine, line):
    one = line(idle=5.0)
    await one.done.wait()
    assert engine._due == float("inf")


# Many at once.


async def test_x11_a_keystroke_does_not_wait_for_every_download(line):
    """Lanes with news go first; with sixteen bulk streams a round trip waits for a few turns."""
    bulk = [line() for _ in range(16)]
    typed = line()
    left = 0
    async with trio.open_nursery() as nursery:

        async def drink(stream):
            while True:
                await stream.receive_some(1 << 20)

        async def pour(stream):
            block = bytes(1 << 20)
            while True:
                await stream.send_all(block)

        for one in bulk:
            nursery.start_soon(pour, one.client)
            nursery.start_soon(drink, one.upstream)
        await trio.sleep(0.1)
        with trio.fail_after(60):
            for _ in range(100):
                await typed.client.send_all(b"x")
                assert await receive_exactly(typed.upstream, 1) == b"x"
                await typed.upstream.send_all(b"y")
                assert await receive_exactly(typed.client, 1) == b"y"
        left = min(one.count.bytes_up for one in bulk)
        nursery.cancel_scope.cancel()
    assert left > 0, "a download was starved"


async def test_x11_fresh_lanes_go_before_greedy_ones_but_never_alone(engine, line, monkeypatch):
    """However much news there is, one that was sent back in line gets on in each turn."""
    order = []
    one, other = line(), line()
    await trio.testing.wait_all_tasks_blocked()
    lanes = [engine._lanes[number][0] for number in (one.near.socket.fileno(), other.near.socket.fileno())]
    monkeypatch.setattr(Engine, "_advance", lambda _self, lane, _scratch: order.append(lane) or module.TURN * 2)
    engine._greedy.extend([lanes[0], lanes[0]])
    engine._ready.extend([lanes[1], lanes[1]])
    engine._turn(engine._epoll)
    assert order == [lanes[1], lanes[0]]
    engine._greedy.clear()
    engine._ready.clear()


class Traffic:
    """One tunnel with a random story, and what has to come of it."""

    def __init__(self, engine, seed, pair):
        self.chance = random.Random(seed)
        self.line = Line(engine, pair=pair)
        self.complete = True

    async def one_way(self, source, sink, *, up):
        chance = random.Random(self.chance.random())
        size = chance.choice([0, 1, 1000, 70_000, 700_000])
        data = chance.randbytes(size)
        pace = chance.choice([1000, 65_536, 1_000_000])

        async def send():
            at = 0
            while at < size:
                part = chance.randint(1, max(1, size // 3))
                await source.send_all(data[at : at + part])
                at += part
                if chance.random() < 0.3:
                    await trio.sleep(chance.random() * 0.01)
            await source.send_eof()

        async def receive():
            got, count = hashlib.sha256(), 0
            while chunk := await sink.receive_some(pace):
                got.update(chunk)
                count += len(chunk)
                if chance.random() < 0.02:
                    await trio.sleep(0.002)
            assert count == size
            assert got.digest() == hashlib.sha256(data).digest()
            assert (self.line.count.bytes_up if up else self.line.count.bytes_down) == size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)

    async def run(self):
        line = self.line
        try:
            resets = line.near.socket.family == socket.AF_INET
            fate = self.chance.choice(["eof"] * 3 + ["cancel", "reset" if resets else "cancel"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.run)
                if fate == "eof":
                    async with trio.open_nursery() as ways:
                        ways.start_soon(lambda: self.one_way(line.client, line.upstream, up=True))
                        ways.start_soon(lambda: self.one_way(line.upstream, line.client, up=False))
                    await line.done.wait()
                    assert line.ended == "eof"
                    return
                nursery.start_soon(line.client.send_all, bytes(self.chance.choice([0, 100, 300_000])))
                await trio.sleep(self.chance.random() * 0.1)
                if fate == "cancel":
                    line.scope.cancel()
                else:
                    reset(line.upstream)
                await line.done.wait()
                assert line.ended == (None if fate == "cancel" else "upstream-reset")
                nursery.cancel_scope.cancel()
        finally:
            await line.close()


@pytest.mark.parametrize("pair", [tcp_pair, small_pair, unix_pair], ids=["tcp", "small", "unix"])
async def test_two_hundred_tunnels_at_once_each_get_their_own_bytes(engine, pair):
    """In order, each once, none of a neighbour's; and nothing is left when they have ended."""
    before = open_descriptors()
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for seed in range(200):
                nursery.start_soon(Traffic(engine, seed, pair).run)
    assert (engine.tunnels, engine._lanes, pipes.pipe_pool().made) == (0, {}, 0)
    assert open_descriptors() == before


# Both ways at once, against what was sent.

MOVE = st.tuples(st.sampled_from(["send", "send", "send", "receive", "receive", "eof"]), st.booleans(), st.integers(1, 400_000))


async def act(moves, fate, pair):
    """Carry out *moves* without waiting for their effect, then end as *fate* says, and compare what came with what was sent."""
    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        line = Line(engine, pair=pair)
        nursery.start_soon(line.run)
        sent = {True: bytearray(), False: bytearray()}
        got = {True: bytearray(), False: bytearray()}
        ended = set()
        ends = {True: line.client, False: line.upstream}
        for what, side, size in moves:
            match what:
                case "send" if side not in ended:
                    data = random.Random(size).randbytes(size)
                    try:
                        sent[side] += data[: os.write(ends[side].socket.fileno(), data)]
                    except BlockingIOError:
                        await trio.lowlevel.checkpoint()
                case "receive":
                    try:
                        got[side] += os.read(ends[side].socket.fileno(), size)
                    except BlockingIOError:
                        await trio.lowlevel.checkpoint()
                case "eof" if side not in ended:
                    ends[side].socket.shutdown(socket.SHUT_WR)
                    ended.add(side)
                    await trio.lowlevel.checkpoint()
        if fate == "cancel":
            line.scope.cancel()
            await line.near.aclose()
            await line.far.aclose()
        else:
            for side in {True, False} - ended:
                ends[side].socket.shutdown(socket.SHUT_WR)

        async def rest(side):
            while chunk := await ends[side].receive_some():
                got[side].extend(chunk)

        with trio.fail_after(30):
            try:
                async with trio.open_nursery() as receiving:
                    receiving.start_soon(rest, True)
                    receiving.start_soon(rest, False)
            except* trio.BrokenResourceError:
                assert fate == "cancel"
            await line.done.wait()
        for side in (True, False):
            if fate == "eof":
                assert got[side] == sent[not side]
            assert sent[not side].startswith(got[side])
        if fate == "eof":
            assert line.ended == "eof"
            assert line.count == Counts(len(sent[True]), len(sent[False]))
        else:
            assert line.count.bytes_up >= len(got[False])
            assert line.count.bytes_down >= len(got[True])
        assert (engine.tunnels, engine._lanes) == (0, {})
        await line.close()
        nursery.cancel_scope.cancel()
    assert pipes.pipe_pool().made == 0


@settings(max_examples=80, deadline=None)
@given(
    moves=st.lists(MOVE, max_size=30),
    fate=st.sampled_from(["eof", "eof", "cancel"]),
    pair=st.sampled_from([tcp_pair, small_pair, unix_pair]),
)
def test_nothing_is_lost_doubled_or_reordered(moves, fate, pair):
    before = open_descriptors()
    trio.run(act, moves, fate, pair)
    assert open_descriptors() == before


# Those who are told, and what they may do.


async def test_time_is_now_for_whoever_is_called_outside_of_a_turn(engine, autojump_clock):
    """An engine with nothing to do makes no turns, and its last one may be long ago."""
    await trio.sleep(30)
    assert engine.time() == engine.now == trio.current_time()


@pytest.mark.parametrize("ended", ["idle", "closed", "stopped"])
async def test_whoever_is_told_of_an_end_may_end_others(nursery, ended):
    """An observer of one flow may cut another one, in the middle of a look at all of them."""
    engine = Engine()
    scope = trio.CancelScope()

    async def run(task_status):
        with scope:
            await engine.run(task_status=task_status)

    await nursery.start(run)
    pairs = [(tcp_pair(), tcp_pair()) for _ in range(2)]
    told = []
    tunnels = [
        engine.take(near[1].socket, far[0].socket, idle=0.3 if ended == "idle" else None, count=Counts()) for near, far in pairs
    ]

    def tell(which):
        def tell(why):
            told.append((which, why))
            engine.cut(tunnels[1 - which])

        return tell

    for which, taken in enumerate(tunnels):
        taken.tell = tell(which)
    match ended:
        case "closed":
            for near, _ in pairs:
                near[1].socket.close()
        case "stopped":
            scope.cancel()
    with trio.fail_after(30):
        while len(told) < 2:
            await trio.sleep(0.01)
    assert engine.running is (ended != "stopped")
    assert (told, engine.tunnels) == ([(1, "closed"), (0, ended)] if told[0][0] else [(0, ended), (1, "closed")], 0)
    for pair in pairs:
        for streams in pair:
            for stream in streams:
                await trio.aclose_forcefully(stream)
    scope.cancel()
