"""Streams with bytes read ahead."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given

from sbxproxy.net.peek import HalfCloseablePeekedStream, PeekedStream, peekable
from support.peeking import CHUNKS, STEPS, check_order
from support.tcp import clogged_pair, receive_all, receive_exactly, reset, tcp_pair


async def test_bytes_peeked_at_are_received_again():
    """A sniffer must not eat what the upstream is to get."""
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"hello ")
    assert await stream.fill()
    await far.send_all(b"world")
    assert await stream.fill()
    assert stream.peeked == b"hello world"
    await far.send_all(b"!")
    await far.aclose()
    assert await receive_all(stream) == b"hello world!"


async def test_fill_tells_the_end_and_keeps_what_was_peeked():
    """An end before a whole message is an answer too, and what came before it still counts."""
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"abc")
    await far.send_eof()
    assert await stream.fill()
    assert not await stream.fill()
    assert not await stream.fill()
    assert stream.peeked == b"abc"
    assert await stream.receive_some() == b"abc"
    assert await stream.receive_some() == b""


async def test_fill_reads_no_more_than_asked():
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"abcdef")
    assert await stream.fill(2)
    assert stream.peeked == b"ab"
    await stream.fill(3)
    assert stream.peeked == b"abcde"


async def test_consume_takes_from_the_front_and_never_more_than_there_is():
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"abcdef")
    await stream.fill()
    assert stream.consume(2) == b"ab"
    assert stream.consume(0) == b""
    for count in (5, -1):
        with pytest.raises(ValueError):
            stream.consume(count)
    assert stream.peeked == b"cdef"
    assert await stream.receive_some(3) == b"cde"
    assert await stream.receive_some(3) == b"f"


async def test_receiving_buffered_bytes_is_a_checkpoint():
    """A flow that lives from its buffer must not starve others."""
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"abc")
    await stream.fill()
    with trio.testing.assert_checkpoints():
        await stream.receive_some(1)
    await far.send_eof()
    await stream.fill()
    with trio.testing.assert_checkpoints():
        assert not await stream.fill()


async def test_a_cancelled_fill_loses_nothing():
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"abc")
    await stream.fill()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.fill()
    assert scope.cancelled_caught
    await far.send_all(b"def")
    await stream.fill()
    assert stream.peeked == b"abcdef"


async def test_x4_a_reset_while_reading_ahead_is_no_end():
    """Told once by the kernel; who asks again gets an end of file, and half a head would pass for a whole one."""
    far, near = tcp_pair()
    stream = peekable(near)
    await far.send_all(b"half a ")
    assert await stream.fill()
    reset(far)
    with pytest.raises(trio.BrokenResourceError):
        await stream.fill()
    await stream.aclose()


async def test_reading_ahead_from_a_closed_socket_says_so(nursery):
    far, near = tcp_pair()
    stream = peekable(near)
    told = trio.Event()

    async def fill():
        with pytest.raises(trio.ClosedResourceError):
            await stream.fill()
        told.set()

    nursery.start_soon(fill)
    await trio.testing.wait_all_tasks_blocked()
    await near.aclose()
    await told.wait()
    await fill()
    await far.aclose()


async def test_a_socket_closed_between_trying_and_waiting_says_so(monkeypatch):
    far, near = tcp_pair()
    stream = peekable(near)

    def read(number, size):
        near.socket.close()
        raise BlockingIOError

    monkeypatch.setattr("sbxproxy.net.peek.os.read", read)
    with pytest.raises(trio.ClosedResourceError):
        await stream.fill()
    await far.aclose()


async def test_a_fill_in_a_cancelled_scope_takes_nothing():
    far, near = tcp_pair()
    stream = peekable(near)
    await far.send_all(b"still there")
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.fill()
    assert scope.cancelled_caught
    assert stream.peeked == b""
    assert await receive_exactly(near, 11) == b"still there"
    await far.aclose()
    await near.aclose()


async def test_whoever_sends_without_pause_does_not_keep_others_from_their_turn():
    far, near = tcp_pair()
    stream = peekable(near)
    await far.send_all(bytes(100))
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        for _ in range(10):
            await stream.fill(10)
        assert turns >= 5
        nursery.cancel_scope.cancel()
    await far.aclose()
    await near.aclose()


async def test_invalid_sizes_are_refused_with_and_without_buffered_bytes():
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    with pytest.raises(ValueError):
        await stream.receive_some(0)
    await far.send_all(b"abc")
    await stream.fill()
    with pytest.raises(ValueError):
        await stream.receive_some(0)


async def test_half_close_is_offered_only_where_it_works():
    """A relay decides by the type whether an end can be passed on."""
    near, _ = trio.testing.memory_stream_pair()
    assert isinstance(peekable(near), HalfCloseablePeekedStream)
    whole = PeekedStream(near)
    assert not isinstance(whole, trio.abc.HalfCloseableStream)
    assert type(peekable(PeekedStream(whole))) is PeekedStream
    assert peekable(whole) is whole

    class Whole(trio.abc.Stream):
        send_all = wait_send_all_might_not_block = receive_some = aclose = None

    assert type(peekable(Whole())) is PeekedStream


async def test_a_repr_shows_no_bytes():
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"secret")
    await stream.fill()
    assert repr(stream) == "<HalfCloseablePeekedStream 6 bytes over StapledStream>"


async def test_closing_forgets_what_was_read_ahead():
    near, far = trio.testing.memory_stream_pair()
    stream = peekable(near)
    await far.send_all(b"abc")
    await stream.fill()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


async def test_it_behaves_as_trio_demands_of_streams_that_end_as_a_whole():
    async def make():
        near, far = trio.testing.memory_stream_pair()
        return PeekedStream(near), PeekedStream(far)

    async def make_clogged():
        near, far = trio.testing.lockstep_stream_pair()
        return PeekedStream(near), PeekedStream(far)

    await trio.testing.check_two_way_stream(make, make_clogged)


async def test_it_behaves_as_trio_demands_of_half_closeable_streams():
    async def make():
        near, far = tcp_pair()
        return peekable(near), peekable(far)

    async def make_clogged():
        near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in clogged_pair())
        return peekable(near), peekable(far)

    await trio.testing.check_half_closeable_stream(make, make_clogged)


@given(chunks=CHUNKS, steps=STEPS)
def test_no_order_of_filling_consuming_and_receiving_changes_the_bytes(chunks, steps):
    async def main():
        near, far = trio.testing.memory_stream_pair()
        await check_order(peekable(near), far, chunks, steps)

    trio.run(main)
