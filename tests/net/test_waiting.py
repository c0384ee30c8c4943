"""Waiting for a socket through the engine, and the bounds on it."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing

from sbxproxy.net.bare import BareStream, Until
from sbxproxy.net.engine import Engine
from sbxproxy.net.peek import PeekedStream
from support.tcp import Counts


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


@pytest.mark.parametrize("what", ["bytes", "end", "reset"])
async def test_a_waiting_task_wakes_for_bytes_an_end_and_an_error(engine, ends, nursery, what):
    near, far = ends
    woken = []

    async def wait() -> None:
        woken.append(await engine.readable(near))

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert not woken
    match what:
        case "bytes":
            far.send(b"x")
        case "end":
            far.shutdown(socket.SHUT_WR)
        case _:
            near.send(b"unread")
            far.close()
    with trio.fail_after(30):
        while not woken:
            await trio.sleep(0.005)
    assert woken == [True]


async def test_what_is_there_already_wakes_too_and_again(engine, ends):
    near, far = ends
    for _ in range(3):
        far.send(b"x")
        with trio.fail_after(30):
            assert await engine.readable(near)
        assert near.recv(10) == b"x"


async def test_it_ends_at_its_time(autojump_clock, ends):
    near, _ = ends
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        started = trio.current_time()
        assert not await engine.readable(near, started + 10)
        assert 10 <= trio.current_time() - started <= 10.2
        nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_leaves_nothing_behind(engine, ends):
    near, far = ends
    with trio.move_on_after(0.02) as scope:
        await engine.readable(near)
    assert scope.cancelled_caught
    far.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.02)
    with trio.fail_after(30):
        assert await engine.readable(near)


async def test_a_wait_cancelled_after_its_socket_was_closed_leaves_nothing_behind(engine, ends, autojump_clock):
    """The socket no longer knows its number, and who was forgotten by it would be woken from a later sleep."""
    near, _ = ends
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.readable, near)
            await trio.testing.wait_all_tasks_blocked()
            near.close()
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    await trio.sleep(10)
    assert trio.current_time() == 10
    assert engine.running


async def test_two_tasks_may_not_wait_for_one_socket(engine, ends, nursery):
    near, far = ends
    nursery.start_soon(engine.readable, near)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await engine.readable(near)
    far.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.02)


@pytest.mark.parametrize("how", ["told", "found", "number reused", "engine stopped"])
async def test_a_closed_socket_wakes_whoever_waits_for_it(how, nursery):
    """It leaves epoll silently, and the number comes back with the next connection."""
    engine = Engine()
    scope = trio.CancelScope()

    async def run(task_status) -> None:
        with scope:
            await engine.run(task_status=task_status)

    await nursery.start(run)
    near, far = socket.socketpair()
    raised = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await engine.readable(near)
        raised.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    number = near.fileno()
    match how:
        case "told":
            engine.forget(near)
            near.close()
        case "found":
            near.close()
        case "number reused":
            near.close()
            again, other = socket.socketpair()
            if again.fileno() != number:
                os.dup2(again.fileno(), number)
                again.detach()
                again = socket.socket(fileno=number)
            other.send(b"x")
            with trio.fail_after(30):
                assert await engine.readable(again)
            again.close()
            other.close()
        case _:
            scope.cancel()
    with trio.fail_after(30):
        await raised.wait()
    near.close()
    far.close()
    with pytest.raises((trio.ClosedResourceError, RuntimeError)):
        await engine.readable(near)


async def test_a_socket_waited_for_becomes_the_end_of_a_tunnel(engine, nursery):
    """The registration stays; the tunnel takes it over, and what came in between is not missed."""
    client, near = socket.socketpair()
    upstream, far = socket.socketpair()
    for sock in (client, near, upstream, far):
        sock.setblocking(False)
    with client, near, upstream, far:
        client.send(b"hello")
        assert await engine.readable(near)
        count = Counts()
        nursery.start_soon(engine.carry, engine.take(near, far, idle=None, count=count))
        assert await engine.readable(upstream)
        assert upstream.recv(10) == b"hello"
        client.send(b"more")
        assert await engine.readable(upstream)
        assert upstream.recv(10) == b"more"
        client.close()
        upstream.close()


def bare_pair() -> tuple[BareStream, BareStream]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return BareStream(near), BareStream(far)


@pytest.mark.parametrize("kind", ["engine", "trio", "other stream"])
async def test_x1_waiting_for_a_stream_has_a_bound(kind, autojump_clock):
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        if kind == "other stream":
            near, far = trio.testing.memory_stream_pair()
            near, far = PeekedStream(near), PeekedStream(far)
        else:
            near, far = bare_pair()
            near.engine = engine if kind == "engine" else None
        started = trio.current_time()
        with pytest.raises(trio.TooSlowError), Until(near, started + 5):
            await near.fill()
        assert 5 <= trio.current_time() - started <= 5.2
        await far.send_all(b"x")
        with Until(near, trio.current_time() + 5):
            assert await near.fill()
        await near.aclose()
        await far.aclose()
        nursery.cancel_scope.cancel()


async def test_of_two_bounds_the_earlier_holds_and_afterwards_none(autojump_clock):
    near, far = bare_pair()
    async with near, far:
        with Until(near, 5), Until(near, 50):
            assert near.until == 5
        assert near.until == float("inf")
        with pytest.raises(trio.TooSlowError), Until(near, trio.current_time() + 3):
            await near.fill()
        with trio.move_on_after(100) as scope:
            await near.fill()
        assert scope.cancelled_caught


async def test_sending_has_the_bound_too(autojump_clock):
    near, far = bare_pair()
    async with near, far:
        with pytest.raises(trio.TooSlowError), Until(near, trio.current_time() + 5):
            await near.send_all(bytes(50_000_000))


async def test_closing_a_stream_wakes_whoever_waits_by_the_engine(engine, nursery):
    near, far = bare_pair()
    near.engine = engine
    raised = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await near.fill()
        raised.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    near.close()
    with trio.fail_after(30):
        await raised.wait()
    far.close()
