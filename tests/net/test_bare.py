"""The stream that is a socket and no more."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from hypothesis import given

from sbxproxy.net.bare import BareStream
from sbxproxy.net.sockets import abort, bare_socket, close_now, drop, socket_below
from support.peeking import CHUNKS, STEPS, check_order
from support.tcp import clogged_pair, open_descriptors, receive_all


def pair(*, buffers: int | None = None) -> tuple[BareStream, BareStream]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.socket()
        for end in (server, near):
            if buffers is not None:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        near.connect(server.getsockname())
        far, _ = server.accept()
    for end in (near, far):
        end.setblocking(False)
    return BareStream(near), BareStream(far)


async def takes_no_turn(call) -> bool:
    """Tell whether no other task ran during *call*."""
    ran = []

    async def other() -> None:
        ran.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await call()
        return not ran


async def test_it_behaves_as_trio_demands_of_half_closeable_streams():
    async def make():
        return pair()

    async def make_clogged():
        near, far = clogged_pair()
        return BareStream(near), BareStream(far)

    await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_a_blocking_socket_is_refused():
    with socket.socket() as sock, pytest.raises(ValueError, match="non-blocking"):
        BareStream(sock)


async def test_fill_and_receive_give_what_was_read_ahead_first():
    near, far = pair()
    async with near, far:
        await far.send_all(b"abcdef")
        assert await near.fill(2)
        assert near.peeked == b"ab"
        assert await near.fill(2)
        assert near.peeked == b"abcd"
        assert near.consume(1) == b"a"
        assert await near.receive_some(2) == b"bc"
        assert await near.receive_some() == b"d"
        assert await near.receive_some() == b"ef"


async def test_the_end_is_told_again_and_keeps_what_was_peeked():
    near, far = pair()
    async with near, far:
        await far.send_all(b"x")
        await far.send_eof()
        await far.send_eof()
        assert await near.fill()
        assert not await near.fill()
        with trio.testing.assert_checkpoints():
            assert not await near.fill()
        assert await receive_all(near) == b"x"


async def test_filling_takes_a_turn_only_where_a_flood_might_go_on():
    """A peer that always has more must not keep all others from their turn."""
    near, far = pair()
    async with near, far:
        await far.send_all(b"abcd")
        await trio.testing.wait_all_tasks_blocked()
        assert await takes_no_turn(near.fill)
        turns = []
        for _ in range(30):  # who runs first in a turn is chance
            await far.send_all(b"efgh")
            turns.append(not await takes_no_turn(lambda: near.fill(4)))
        assert any(turns)


async def test_send_at_once_takes_no_turn_unless_it_must_wait():
    near, far = pair(buffers=16 * 1024)
    async with near, far, trio.open_nursery() as nursery:
        assert await takes_no_turn(lambda: near.send_at_once(b"hello"))
        assert await far.receive_some() == b"hello"
        received = bytearray()

        async def receive() -> None:
            async for chunk in far:
                received.extend(chunk)

        nursery.start_soon(receive)
        sent = bytes(range(256)) * 8192
        await near.send_at_once(sent)
        await near.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.05)
        while len(received) < len(sent):
            await trio.sleep(0.01)
        assert bytes(received) == sent


async def test_a_cancelled_task_does_not_read():
    near, far = pair()
    async with near, far:
        await far.send_all(b"abc")
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.fill()
        assert scope.cancelled_caught
        assert near.peeked == b""


@pytest.mark.parametrize("how", ["close", "drop", "abort", "close_now"])
async def test_closing_wakes_whoever_waits(how, nursery):
    """Otherwise a flow that is cut would leave its task behind, waiting for a number that is somebody else's."""
    near, far = pair()
    raised = []

    async def expect(wait) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait()
        raised.append(True)

    async def clog() -> None:
        await near.send_all(bytes(50_000_000))

    nursery.start_soon(expect, near.receive_some)
    nursery.start_soon(expect, clog)
    await trio.testing.wait_all_tasks_blocked(0.05)
    match how:
        case "close":
            near.close()
        case "close_now":
            assert close_now(near)
        case "drop":
            await drop(near)
        case "abort":
            await abort(near)
    await trio.testing.wait_all_tasks_blocked()
    assert raised == [True, True]
    near.close()
    for attempt in (near.receive_some, near.fill, near.send_eof, near.wait_send_all_might_not_block):
        with pytest.raises(trio.ClosedResourceError):
            await attempt()
    with pytest.raises(trio.ClosedResourceError):
        await near.send_at_once(b"x")
    await far.aclose()


async def test_x4_a_reset_is_no_end():
    near, far = pair()
    async with near:
        await abort(far)
        with pytest.raises(trio.BrokenResourceError):
            await near.fill()
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x" * 1000)


async def test_two_tasks_may_not_receive_or_send_at_once(nursery):
    near, far = pair()
    async with near, far:
        nursery.start_soon(near.fill)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await near.fill()
        await far.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()


async def test_it_gives_its_descriptor_back():
    before = open_descriptors()
    near, far = pair()
    assert open_descriptors() == before + 2
    await near.aclose()
    far.close()
    assert open_descriptors() == before


async def test_its_socket_is_found():
    near, far = pair()
    async with near, far:
        assert bare_socket(near) is near.socket
        assert socket_below(near) is near.socket
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert len(near.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)) == 8


@given(chunks=CHUNKS, steps=STEPS)
def test_no_byte_is_lost_or_doubled(chunks, steps):
    async def main() -> None:
        near, far = pair()
        async with near, far:
            await check_order(near, far, chunks, steps)

    trio.run(main)
