"""Relaying: the same behaviour on bare descriptors and on any stream."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.net import direction, pipes
from sbxproxy.net.engine import TURN, Engine
from sbxproxy.net.peek import PeekedStream, peekable
from sbxproxy.net.relay import _Patience, relay
from sbxproxy.net.sockets import abort
from support.tcp import (
    Counts,
    Opaque,
    fill_up,
    open_descriptors,
    receive_all,
    receive_exactly,
    reset,
    tcp_pair,
    unix_pair,
)

BOTH_WAYS = pytest.mark.parametrize("wrap", [lambda s: s, Opaque, peekable], ids=["sockets", "any", "peeked"])


class Story:
    """A client and an upstream with a relay in between."""

    def __init__(self, wrap=lambda s: s, *, pair=tcp_pair, idle=30.0, linger=5.0, engine=None):
        self.engine = engine
        self.client, near = pair()
        self.upstream, far = pair()
        self.ends = (self.client, near, self.upstream, far)
        self.near, self.far = wrap(near), wrap(far)
        self.count = Counts()
        self.ended = None
        self.done = trio.Event()
        self.idle, self.linger = idle, linger

    async def run(self):
        try:
            self.ended = await relay(
                self.near, self.far, idle=self.idle, linger=self.linger, count=self.count, engine=self.engine
            )
        finally:
            self.done.set()

    async def close(self):
        for end in self.ends:
            await trio.aclose_forcefully(end)


@pytest.fixture(params=[False, True], ids=["tasks", "engine"])
async def engine(request, nursery):
    """How bytes are moved between sockets: by two tasks a connection, or by one for all."""
    if not request.param:
        return None
    engine = Engine()
    await nursery.start(engine.run)
    return engine


@pytest.fixture
async def stories(nursery, engine):
    made = []

    def start(*args, **options):
        story = Story(*args, engine=engine, **options)
        made.append(story)
        nursery.start_soon(story.run)
        return story

    yield start
    for story in made:
        await story.close()


@BOTH_WAYS
async def test_x3_an_end_is_passed_on_and_the_answer_still_arrives(stories, wrap):
    """``nc -N``, curl uploads and COPY end their sending side and wait for what the other has to say."""
    story = stories(wrap)
    await story.client.send_all(b"request")
    await story.client.send_eof()
    assert await receive_all(story.upstream) == b"request"
    answer = random.Random(1).randbytes(1_000_000)

    async def reply():
        await story.upstream.send_all(answer)
        await story.upstream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reply)
        assert await receive_all(story.client) == answer
    await story.done.wait()
    assert (story.ended, story.count) == ("eof", Counts(7, 1_000_000))


@BOTH_WAYS
async def test_t17_a_server_that_speaks_first_is_heard_before_the_client_says_anything(stories, wrap):
    story = stories(wrap)
    await story.upstream.send_all(b"220 ready\r\n")
    assert await receive_exactly(story.client, 11) == b"220 ready\r\n"
    await story.client.send_all(b"QUIT\r\n")
    assert await receive_exactly(story.upstream, 6) == b"QUIT\r\n"


@BOTH_WAYS
@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_x4_a_reset_ends_it_at_once_and_names_the_side(stories, wrap, side, caplog):
    story = stories(wrap)
    await story.client.send_all(b"ping")
    await receive_exactly(story.upstream, 4)
    await story.upstream.send_all(b"pong")
    await receive_exactly(story.client, 4)
    reset(getattr(story, side))
    with trio.fail_after(30):
        await story.done.wait()
    assert (story.ended, story.count) == (f"{side}-reset", Counts(4, 4))
    await abort(story.far if side == "client" else story.near)
    with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
        await (story.upstream if side == "client" else story.client).receive_some()
    assert not caplog.records


@BOTH_WAYS
async def test_x4_a_sink_that_is_gone_is_blamed_and_not_the_source(stories, wrap):
    """Nothing reads from a side that has ended, so its failure shows in sending only."""
    story = stories(wrap)
    await story.upstream.send_eof()
    assert await story.client.receive_some() == b""
    reset(story.upstream)
    with trio.fail_after(30):
        while not story.done.is_set():
            await story.client.send_all(b"x")
            await trio.sleep(0.001)
    assert story.ended == "upstream-reset"


@BOTH_WAYS
async def test_a_stream_that_another_task_closes_ends_it(stories, wrap):
    """And the descriptor's number, which may be another connection's by then, is not used again."""
    story = stories(wrap)
    await story.client.send_all(b"ping")
    await receive_exactly(story.upstream, 4)
    await story.near.aclose()
    await story.done.wait()
    assert story.ended == "closed"


async def test_a_socket_closed_beforehand_ends_it_too(stories):
    story = stories()
    story.ends[3].socket.close()
    await story.done.wait()
    assert story.ended == "closed"


async def test_a_socket_closed_while_the_relay_waits_to_send_ends_it(stories):
    story = stories(pair=lambda: tcp_pair(buffers=16 * 1024))
    await fill_up(story.client)
    await story.far.aclose()
    with trio.fail_after(30):
        await story.done.wait()
    assert story.ended == "closed"


async def test_peeked_bytes_of_both_sides_go_first(nursery, engine):
    """Whatever was sniffed at, layer on layer, belongs to the stream."""
    story = Story(peekable, engine=engine)
    story.near = PeekedStream(story.near)
    await story.client.send_all(b"one two ")
    await story.near.inner.fill()
    await story.near.fill(4)
    assert (story.near.peeked, story.near.inner.peeked) == (b"one ", b"two ")
    await story.upstream.send_all(b"hello ")
    await story.far.fill()
    nursery.start_soon(story.run)
    await story.client.send_all(b"three")
    await story.client.send_eof()
    assert await receive_all(story.upstream) == b"one two three"
    await story.upstream.send_all(b"there")
    await story.upstream.send_eof()
    assert await receive_all(story.client) == b"hello there"
    await story.done.wait()
    assert (story.ended, story.count) == ("eof", Counts(13, 11))
    await story.close()


async def test_a_subclass_of_a_peeked_stream_is_not_passed_by(nursery):
    """It may do something to the bytes."""

    class Shouting(PeekedStream):
        async def receive_some(self, max_bytes=None):
            return (await super().receive_some(max_bytes)).upper()

    story = Story()
    story.near = Shouting(story.near)
    nursery.start_soon(story.run)
    await story.client.send_all(b"quiet")
    assert await receive_exactly(story.upstream, 5) == b"QUIET"
    await story.close()


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair], ids=["tcp", "unix"])
async def test_fifty_megabytes_each_way_arrive_unchanged(stories, pair):
    """Most of it never enters this process's memory."""
    story = stories(pair=pair)
    made = 0
    size = 50_000_000
    blocks = {side: random.Random(side).randbytes(999_983) for side in ("up", "down")}

    async def send(stream, block):
        left = size
        while left:
            part = block[: min(left, len(block))]
            await stream.send_all(part)
            left -= len(part)
        await stream.send_eof()

    async def check(stream, block):
        nonlocal made
        at = 0
        async for chunk in stream:
            made = max(made, pipes.pipe_pool().made)
            offset = at % len(block)
            expected = (block * 2)[offset : offset + len(chunk)]
            assert chunk == expected
            at += len(chunk)
        assert at == size

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, story.client, blocks["up"])
        nursery.start_soon(send, story.upstream, blocks["down"])
        nursery.start_soon(check, story.upstream, blocks["up"])
        nursery.start_soon(check, story.client, blocks["down"])
    await story.done.wait()
    assert (story.ended, story.count) == ("eof", Counts(size, size))
    assert made > 0, "nothing was spliced"
    assert pipes.pipe_pool().made == 0, "pipes outlived their users"


@pytest.mark.parametrize("wrap", [lambda s: s, Opaque], ids=["sockets", "any"])
@pytest.mark.parametrize("read_before", [0, 3_000_000], ids=["copied", "spliced"])
async def test_x5_a_side_that_never_reads_stops_the_other(stories, wrap, read_before):
    """What the sender gets rid of is what buffers hold: four of the kernel's, a chunk, a pipe at most."""
    story = stories(wrap, pair=lambda: tcp_pair(buffers=32 * 1024))
    if read_before:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(story.client.send_all, bytes(read_before))
            await receive_exactly(story.upstream, read_before)
    accepted = await fill_up(story.client)
    assert accepted < 2 * 1024 * 1024
    # The other direction is not held up by it.
    await story.upstream.send_all(b"hello")
    assert await receive_exactly(story.client, 5) == b"hello"
    # And nothing is lost once it does read.
    await story.client.send_eof()
    assert len(await receive_all(story.upstream)) == accepted


async def test_x5_other_streams_are_read_one_chunk_ahead():
    client, near = trio.testing.lockstep_stream_pair()
    _, far = trio.testing.lockstep_stream_pair()
    count = Counts()
    accepted = 0

    async def flood():
        nonlocal accepted
        while True:
            await client.send_all(bytes(16 * 1024))
            accepted += 16 * 1024

    with trio.move_on_after(0.2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await relay(near, far, idle=None, linger=5, count=count)
    assert accepted <= direction.CHUNK
    assert count.bytes_up <= direction.CHUNK


@pytest.mark.parametrize("wrap", [lambda s: s, Opaque], ids=["sockets", "any"])
async def test_x9_flows_cancelled_at_random_moments_leave_no_descriptor(wrap, engine):
    """Whether a pipe is full, a send half done, or nothing has happened yet."""
    await trio.sleep(0)
    before = open_descriptors()
    chance = random.Random(9)

    async def flow():
        story = Story(wrap, pair=chance.choice([tcp_pair, unix_pair]), engine=engine)
        try:
            with trio.move_on_after(chance.uniform(0, 0.1)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(story.run)
                    for end in (story.client, story.upstream):
                        nursery.start_soon(end.send_all, bytes(chance.choice([0, 10, 3_000_000])))
                        if chance.random() < 0.7:
                            nursery.start_soon(receive_all, end)
        finally:
            with trio.CancelScope(shield=True):
                await story.close()

    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(flow)
    assert pipes.pipe_pool().made == 0
    assert open_descriptors() == before
    assert engine is None or engine.tunnels == 0


async def test_x9_a_pipe_with_bytes_in_it_is_never_used_again(stories, monkeypatch):
    """They are one sandbox's, and would come out in another's connection."""
    given_back = []
    give = pipes.PipePool.give
    monkeypatch.setattr(pipes.PipePool, "give", lambda pool, pipe: (given_back.append(pipe.held), give(pool, pipe)))
    other = stories()  # keeps the pool in use
    await other.client.send_all(bytes(200_000))
    story = stories(pair=lambda: tcp_pair(buffers=32 * 1024))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(story.client.send_all, bytes(1_000_000))
        await receive_exactly(story.upstream, 1_000_000)
    pipes.pipe_pool().join()
    await fill_up(story.client)
    reset(story.client)
    await story.far.aclose()
    await story.done.wait()
    assert given_back[-1] > 0
    assert all(pipe.held == 0 for pipe in pipes.pipe_pool()._idle)
    assert pipes.pipe_pool().made == len(pipes.pipe_pool()._idle)
    pipes.pipe_pool().leave()


async def test_bytes_are_counted_exactly_though_it_is_cancelled(engine):
    """What the upstream's kernel took counts, and no byte more."""
    story = Story(pair=lambda: tcp_pair(buffers=32 * 1024), engine=engine)
    got = 0
    with trio.move_on_after(0.3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(story.run)
            nursery.start_soon(story.client.send_all, bytes(20_000_000))
            while got < 1_000_000:
                got += len(await story.upstream.receive_some(10_000))
            await trio.sleep_forever()
    await story.far.aclose()
    got += len(await receive_all(story.upstream))
    assert story.ended is None
    assert story.count == Counts(got, 0)
    await story.close()


class Steps(trio.abc.Instrument):
    """Counts tasks, and the most bytes that were relayed within one step of a task."""

    def __init__(self, count):
        self.count = count
        self.tasks = 0
        self.most = 0
        self.at = 0

    def task_spawned(self, task):
        self.tasks += 1

    def before_task_step(self, task):
        self.at = self.count.bytes_up

    def after_task_step(self, task):
        self.most = max(self.most, self.count.bytes_up - self.at)


@pytest.mark.parametrize("can_splice", [True, False], ids=["spliced", "copied"])
async def test_x11_no_connection_holds_the_loop(stories, engine, monkeypatch, can_splice):
    """A source that never runs dry still lets others have their turn."""
    monkeypatch.setattr(direction, "CAN_SPLICE", can_splice)
    story = stories()
    steps = Steps(story.count)
    trio.lowlevel.add_instrument(steps)
    try:
        async with trio.open_nursery() as nursery:

            async def send():
                for _ in range(40):
                    await story.client.send_all(bytes(1_000_000))
                await story.client.send_eof()

            nursery.start_soon(send)
            await receive_all(story.upstream)
    finally:
        trio.lowlevel.remove_instrument(steps)
    assert story.count.bytes_up == 40_000_000
    limit = direction.SPLICE_PER_TURN + pipes.PIPE_SIZE if can_splice else direction.CHUNK * 4
    assert 0 < steps.most <= (TURN + limit if engine else limit)


async def test_x11_ten_thousand_tiny_writes_make_no_tasks(stories):
    story = stories()
    steps = Steps(story.count)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.add_instrument(steps)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_exactly, story.upstream, 10_000)
                for _ in range(10_000):
                    await story.client.send_all(b"x")
    finally:
        trio.lowlevel.remove_instrument(steps)
    assert story.count.bytes_up == 10_000
    assert steps.tasks <= 1


# Deadlines.


def memory_story(*, whole=(), idle=30.0, linger=5.0):
    """A story over memory; sides named in *whole* can't be half-closed, as with TLS."""
    story = Story(pair=trio.testing.memory_stream_pair, idle=idle, linger=linger)
    if "client" in whole:
        story.near = PeekedStream(story.near)
    if "upstream" in whole:
        story.far = PeekedStream(story.far)
    return story


async def test_idle_ends_a_silent_relay_on_time(autojump_clock):
    story = memory_story(idle=30)
    await story.run()
    assert story.ended == "idle"
    assert trio.current_time() == 30


async def test_idle_between_sockets_ends_on_time(patient_clock, stories):
    story = stories(idle=30)
    await story.done.wait()
    assert (story.ended, trio.current_time()) == ("idle", 30)


async def test_idle_counts_from_the_last_byte_of_either_direction(autojump_clock, nursery):
    """Never earlier than promised, and at most a second or a tenth later, since it is not set for each chunk."""
    story = memory_story(idle=30)
    nursery.start_soon(story.run)
    for end in (story.client, story.upstream) * 10:
        await trio.sleep(7.3)
        await end.send_all(b"x")
    last = trio.current_time()
    await story.done.wait()
    assert story.ended == "idle"
    assert last + 30 <= trio.current_time() <= last + 31


async def test_a_byte_just_after_the_deadline_was_set_counts_in_full(autojump_clock, nursery):
    """It does not move the deadline, so that has to have been set far enough."""
    story = memory_story(idle=30)
    nursery.start_soon(story.run)
    await trio.sleep(10)
    await story.client.send_all(b"x")
    await trio.sleep(0.9)
    await story.client.send_all(b"x")
    await story.done.wait()
    assert (story.ended, trio.current_time()) == ("idle", 41)


async def test_no_idle_limit_means_none(autojump_clock, nursery):
    story = memory_story(idle=None)
    nursery.start_soon(story.run)
    await trio.sleep(1_000_000)
    assert not story.done.is_set()
    await story.client.send_all(b"x")
    await story.client.send_eof()
    await story.upstream.send_eof()
    await story.done.wait()
    assert story.ended == "eof"


async def test_a_sink_that_stops_reading_counts_as_silence(autojump_clock, nursery):
    """The peer's acknowledgements don't keep a connection that nobody empties."""
    client, near = trio.testing.lockstep_stream_pair()
    _, far = trio.testing.lockstep_stream_pair()
    nursery.start_soon(client.send_all, bytes(10))
    assert await relay(near, far, idle=30, linger=5, count=Counts()) == "idle"
    assert 30 <= trio.current_time() <= 31
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("idle", [30.0, None])
async def test_linger_where_the_other_side_cannot_be_told_of_an_end(autojump_clock, nursery, idle):
    """An end over TLS is the end of both directions; waiting for the idle limit would hold a slot for nothing."""
    story = memory_story(whole=["upstream"], idle=idle)
    nursery.start_soon(story.run)
    await story.client.send_all(b"bye")
    await trio.sleep(3)
    await story.client.send_eof()
    await story.done.wait()
    assert (story.ended, trio.current_time()) == ("linger", 8)
    assert story.count == Counts(3, 0)


async def test_linger_lets_an_answer_that_keeps_coming_finish(autojump_clock, nursery):
    story = memory_story(whole=["upstream"])
    nursery.start_soon(story.run)
    await story.client.send_eof()
    for _ in range(5):
        await trio.sleep(4)
        await story.upstream.send_all(b"x")
    await story.upstream.send_eof()
    assert await receive_all(story.client) == b"xxxxx"
    await story.done.wait()
    assert (story.ended, trio.current_time()) == ("eof", 20)


async def test_linger_is_not_needed_where_half_close_works(autojump_clock, nursery):
    story = memory_story(whole=["client"])
    nursery.start_soon(story.run)
    await story.client.send_eof()
    await trio.sleep(29)
    assert not story.done.is_set()
    await story.done.wait()
    assert (story.ended, trio.current_time()) == ("idle", 30)


async def test_linger_longer_than_idle_changes_nothing(autojump_clock, nursery):
    story = memory_story(whole=["upstream"], idle=4, linger=5)
    nursery.start_soon(story.run)
    await story.client.send_eof()
    await story.done.wait()
    assert (story.ended, trio.current_time()) == ("idle", 4)


async def test_the_deadline_is_set_once_a_second_and_not_per_chunk(mock_clock):
    class Scope:
        sets = 0

        def __setattr__(self, name, value):
            Scope.sets += 1

    patience = _Patience(Scope(), 600)
    for _ in range(1000):
        patience.moved()
        mock_clock.jump(0.01)
    assert Scope.sets <= 12


async def test_cancelling_goes_through(autojump_clock):
    """A cut flow ends now; nothing shields what it sends."""
    client, near = trio.testing.lockstep_stream_pair()
    _, far = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(10))
        with trio.move_on_after(2) as scope:
            await relay(near, far, idle=30, linger=5, count=Counts())
        assert scope.cancelled_caught
        assert trio.current_time() == 2
        nursery.cancel_scope.cancel()


# When splicing does not work.


async def transfer(story, size):
    data = random.Random(size).randbytes(size)

    async def send():
        await story.client.send_all(data)
        await story.client.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await receive_all(story.upstream) == data
    assert story.count.bytes_up == size


async def test_sockets_that_cannot_be_spliced_from_are_copied(stories, monkeypatch):
    def splice(*args, **options):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "splice", splice)
    await transfer(stories(), 3_000_000)


async def test_sockets_that_cannot_be_spliced_to_get_what_is_in_the_pipe(stories, monkeypatch):
    real = os.splice
    pipe_ends = set()

    def splice(source, sink, size, *, flags):
        if source in pipe_ends:
            raise OSError(errno.EINVAL, "no")
        return real(source, sink, size, flags=flags)

    make = pipes.Pipe.__init__

    def remember(pipe):
        make(pipe)
        pipe_ends.add(pipe.read)

    monkeypatch.setattr(pipes.Pipe, "__init__", remember)
    monkeypatch.setattr(os, "splice", splice)
    await transfer(stories(), 3_000_000)
    assert pipe_ends


@pytest.mark.parametrize("fault", ["end", "broken"])
async def test_a_splice_that_fails_in_sending_blames_the_sink(stories, monkeypatch, fault):
    real = os.splice
    calls = 0

    def splice(source, sink, size, *, flags):
        nonlocal calls
        calls += 1
        if calls % 2:
            return real(source, sink, size, flags=flags)
        if fault == "end":
            return 0
        raise OSError(errno.EPIPE, "gone")

    story = stories()
    await story.client.send_all(bytes(200_000))
    await receive_exactly(story.upstream, 200_000)
    monkeypatch.setattr(direction, "SPLICE_AFTER", 0)
    story = stories()
    monkeypatch.setattr(os, "splice", splice)
    await story.client.send_all(b"x")
    with trio.fail_after(30):
        await story.done.wait()
    assert story.ended == "upstream-reset"


async def test_x4_a_reset_while_splicing_names_the_source(stories):
    story = stories()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(story.client.send_all, bytes(1_000_000))
        await receive_exactly(story.upstream, 1_000_000)
    reset(story.client)
    with trio.fail_after(30):
        await story.done.wait()
    assert story.ended == "client-reset"


@pytest.mark.parametrize("why", ["no descriptors", "too small", "too many"])
async def test_without_a_pipe_it_is_copied(stories, monkeypatch, why):
    match why:
        case "no descriptors":

            def pipe2(flags):
                raise OSError(errno.EMFILE, "none")

            monkeypatch.setattr(os, "pipe2", pipe2)
        case "too small":
            monkeypatch.setattr(pipes, "LEAST_SIZE", pipes.PIPE_SIZE * 2)
        case "too many":
            monkeypatch.setattr(pipes.pipe_pool(), "_most", 0)
    await transfer(stories(), 3_000_000)
    assert pipes.pipe_pool().made == 0


async def test_a_pipe_of_the_default_size_will_do(stories, monkeypatch):
    """The unprivileged may not get a large one."""
    monkeypatch.setattr(pipes, "PIPE_SIZE", 1 << 40)
    await transfer(stories(), 3_000_000)


async def test_the_pool_keeps_few_idle_pipes():
    pool = pipes.PipePool(20)
    pool.join()
    lent = [pool.take() for _ in range(20)]
    assert None not in lent
    assert pool.take() is None
    for pipe in lent:
        pool.give(pipe)
    assert pool.made == pipes.MOST_IDLE
    pool.leave()
    assert pool.made == 0


# The plain path as the oracle.

STEP = st.one_of(
    st.tuples(st.sampled_from(["send"]), st.booleans(), st.integers(1, 600_000), st.integers(1, 100_000)),
    st.tuples(st.sampled_from(["send"]), st.booleans(), st.integers(1, 100), st.integers(1, 100)),
    st.tuples(st.sampled_from(["eof", "reset"]), st.booleans(), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["cancel"]), st.just(True), st.just(0), st.just(0)),
)


async def play(steps, wrap, peeked, engine=None):
    """Play *steps* one after the other, each until its effect is seen on the far side; return what was seen."""
    story = Story(wrap, engine=engine)
    near, far = story.near, story.far
    seen = []
    for end, stream in ((story.client, "near"), (story.upstream, "far")):
        if peeked:
            setattr(story, stream, peekable(getattr(story, stream)))
            await end.send_all(peeked)
            await getattr(story, stream).fill()
    ended = {True: False, False: False}
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(story.run)
            if peeked:
                for end in (story.client, story.upstream):
                    assert await receive_exactly(end, len(peeked)) == peeked
            for what, from_client, size, piece in steps:
                source, sink = (story.client, story.upstream) if from_client else (story.upstream, story.client)
                if ended[from_client] and what != "cancel":
                    continue
                match what:
                    case "send":
                        data = random.Random(size).randbytes(size)
                        async with trio.open_nursery() as moving:
                            moving.start_soon(source.send_all, data)
                            assert await receive_exactly(sink, size, max(piece, size // 50)) == data
                    case "eof":
                        await source.send_eof()
                        assert await sink.receive_some() == b""
                        ended[from_client] = True
                    case "reset":
                        reset(source)
                        await story.done.wait()
                    case "cancel":
                        nursery.cancel_scope.cancel()
                seen.append((what, from_client))
                if what in {"reset", "cancel"} or all(ended.values()):
                    break
            else:
                nursery.cancel_scope.cancel()
            if what_ends := all(ended.values()):
                await story.done.wait()
            seen.append(what_ends)
    result = (seen, story.ended, story.count)
    await near.aclose()
    await far.aclose()
    await story.close()
    return result


async def play_with_engine(steps, peeked):
    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        result = await play(steps, lambda stream: stream, peeked, engine)
        assert engine.tunnels == 0
        nursery.cancel_scope.cancel()
    return result


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, max_size=8), peeked=st.binary(max_size=50))
def test_descriptors_and_plain_streams_behave_alike(steps, peeked):
    """The fast ways are right where they do what the obvious way does."""
    before = open_descriptors()
    plain = trio.run(play, steps, Opaque, peeked)
    assert trio.run(play, steps, lambda stream: stream, peeked) == plain
    assert trio.run(play_with_engine, steps, peeked) == plain
    assert open_descriptors() == before
