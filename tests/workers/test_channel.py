"""The connection between supervisor and worker: order, descriptors, and ends that don't keep to the rules."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from sbxproxy.workers.channel import MAX_DESCRIPTORS, Channel
from sbxproxy.workers.framing import ProtocolError, frame
from support.tcp import open_descriptors


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    after = set(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before)


def pair(*, receives: bool = True, most: int = 1 << 20) -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left, most=most), Channel(right, most=most, receives_descriptors=receives)


async def test_messages_arrive_in_order_with_their_descriptors(nothing_leaks: None) -> None:
    one, other = pair()
    reading, writing = os.pipe()
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.write)
        one.post({"do": "a"})
        one.post({"do": "b"}, [writing])
        one.post({"do": "c"})
        one.post({"do": "d"}, [reading, writing])
        found = [await other.receive() for _ in range(4)]
        nursery.cancel_scope.cancel()
    assert [(message["do"], len(descriptors)) for message, descriptors in filter(None, found)] == [
        ("a", 0),
        ("b", 1),
        ("c", 0),
        ("d", 2),
    ]
    descriptors = [number for _, numbers in filter(None, found) for number in numbers]
    assert not any(map(os.get_inheritable, descriptors))
    os.write(descriptors[0], b"x")
    assert os.read(reading, 1) == b"x"
    assert open_descriptors() == before + 3  # those sent are closed here, the sender's own stay open
    for number in (*descriptors, reading, writing):
        os.close(number)
    one.close()
    other.close()


async def test_posting_does_not_wait_for_who_does_not_read() -> None:
    one, other = pair(most=1 << 25)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.write)
        for number in range(10):
            one.post({"do": "big", "number": number, "text": "x" * 1_000_000})
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.05) as scope:
            await one.written()
        assert scope.cancelled_caught
        for number in range(10):
            received = await other.receive()
            assert received is not None
            assert received[0]["number"] == number
        await one.written()
        nursery.cancel_scope.cancel()
    one.close()
    other.close()


async def test_what_was_posted_and_never_sent_is_closed(nothing_leaks: None) -> None:
    one, other = pair()
    with socket.socket() as sock:
        one.post({"do": "a"}, [sock.fileno()])
        one.close()
        one.close()
        one.post({"do": "b"}, [sock.fileno()])  # to nobody
        await one.written()
    other.close()


async def test_what_was_received_and_never_taken_is_closed(nothing_leaks: None) -> None:
    left, right = socket.socketpair()
    other = Channel(right, most=100, receives_descriptors=True)
    with left, socket.socket() as sock:
        socket.send_fds(left, [frame({"do": "x"})[:-1]], [sock.fileno()])
        with trio.move_on_after(0.05):
            await other.receive()
        other.close()


async def test_the_end_of_the_other_end_is_no_message() -> None:
    for size in range(len(frame({"do": "x"}))):
        left, right = socket.socketpair()
        other = Channel(right, most=100)
        left.sendall(frame({"do": "x"})[:size])
        left.close()
        assert await other.receive() is None
        other.close()


async def test_writing_to_nobody_is_an_error() -> None:
    one, other = pair()
    other.close()
    one.post({"do": "x"})
    with pytest.raises(OSError):
        await one.write()
    one.close()


async def refuses(left: socket.socket, right: socket.socket, *, receives: bool) -> None:
    channel = Channel(right, most=1000, receives_descriptors=receives)
    with left, pytest.raises(ProtocolError):
        await channel.receive()
    channel.close()


async def test_descriptors_from_who_may_send_none_are_refused_and_closed(nothing_leaks: None) -> None:
    left, right = socket.socketpair()
    with socket.socket() as sock:
        socket.send_fds(left, [frame({"do": "x", "descriptors": 1})], [sock.fileno()])
    await refuses(left, right, receives=False)


@pytest.mark.parametrize("count", [1, -1, "1", 1.5, None])
async def test_a_message_that_lacks_its_descriptors_is_refused(count: object) -> None:
    left, right = socket.socketpair()
    left.sendall(frame({"do": "x", "descriptors": count}))
    await refuses(left, right, receives=True)


async def test_too_many_descriptors_are_refused_and_closed(nothing_leaks: None) -> None:
    left, right = socket.socketpair()
    with socket.socket() as sock:
        socket.send_fds(left, [b"\0"], [sock.fileno()] * (MAX_DESCRIPTORS + 10))
    await refuses(left, right, receives=True)
