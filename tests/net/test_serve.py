"""Serving listeners: a task and a slot for each connection."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio
import trio.testing

from sbxproxy.net.listen import RUN, Slots
from sbxproxy.net.serve import serve_bounded
from support.tcp import Opaque, open_descriptors


async def listen():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return listener


async def connect(listener):
    host, port = listener.socket.getsockname()
    return await trio.open_tcp_stream(host, port)


async def test_connections_of_all_listeners_share_the_slots_and_give_them_back():
    before = open_descriptors()
    slots = Slots(2)
    listeners = [await listen(), await listen()]
    leave = trio.Event()

    async def handler(stream):
        await stream.send_all(b"here")
        await leave.wait()

    async with trio.open_nursery() as flows:
        await flows.start(lambda task_status: serve_bounded(handler, listeners, slots, flows=flows, task_status=task_status))
        clients = [await connect(listener) for listener in (*listeners, listeners[0])]
        for client in clients[:2]:
            assert await client.receive_some() == b"here"
        with trio.move_on_after(0.1) as scope:
            await clients[2].receive_some()
        assert scope.cancelled_caught
        assert slots.free == 0
        leave.set()
        with trio.fail_after(30):
            assert await clients[2].receive_some() == b"here"
            for client in clients:
                assert await client.receive_some() == b""
        assert slots.free == 2
        flows.cancel_scope.cancel()
    for client in clients:
        await client.aclose()
    assert open_descriptors() == before


async def test_connections_go_on_after_the_listeners_are_closed():
    """That is how one drains."""
    slots = Slots(2)
    listener = await listen()

    async def handler(stream):
        async for chunk in stream:
            await stream.send_all(chunk)

    async with trio.open_nursery() as flows:
        with trio.CancelScope() as accepting:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda task_status: serve_bounded(handler, [listener], slots, flows=flows, task_status=task_status)
                )
                client = await connect(listener)
                await client.send_all(b"1")
                assert await client.receive_some() == b"1"
                accepting.cancel()
        assert listener.socket.fileno() == -1
        await client.send_all(b"2")
        assert await client.receive_some() == b"2"
        await client.aclose()
    assert slots.free == 2


@pytest.mark.parametrize("kind", ["socket", "other"])
async def test_a_handler_that_fails_closes_its_stream_gives_its_slot_back_and_is_heard(kind):
    slots = Slots(1)
    listener = await listen()

    class Other(trio.abc.Listener):
        async def accept(self):
            return Opaque(await listener.accept())

        async def aclose(self):
            await listener.aclose()

    async def handler(stream):
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as flows:
            listeners = [listener if kind == "socket" else Other()]
            await flows.start(lambda task_status: serve_bounded(handler, listeners, slots, flows=flows, task_status=task_status))
            with trio.CancelScope(shield=True):  # the failure may come before this knows that it is connected
                client = await connect(listener)
            await trio.sleep_forever()
    assert await client.receive_some() == b""
    await client.aclose()
    assert slots.free == 1


async def test_a_crowd_at_the_door_does_not_keep_others_from_their_turn():
    """Connections that are there already are accepted without waiting, but not without end."""
    slots = Slots(100)
    listener = await listen()
    seen = []
    with ExitStack() as stack:
        for _ in range(50):
            client = stack.enter_context(trio.socket.socket())
            await client.connect(listener.socket.getsockname())

        async def handler(stream):
            seen.append(None)

        async with trio.open_nursery() as flows:
            await flows.start(lambda task_status: serve_bounded(handler, [listener], slots, flows=flows, task_status=task_status))
            most, before = 0, 0
            with trio.fail_after(30):
                while len(seen) < 50:
                    await trio.lowlevel.checkpoint()
                    most, before = max(most, len(seen) - before), len(seen)
            assert most <= 3 * RUN  # who goes first in a turn is chance: runs of the turns around ours may come together
            flows.cancel_scope.cancel()
