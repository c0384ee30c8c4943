"""What ends a connection on the short way, at each stage of it; nothing stays behind: no flow, slot, descriptor or object."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from sbxproxy.connection import passage as module
from sbxproxy.connection import upstream as upstream_module
from sbxproxy.connection.passage import Passage
from sbxproxy.events import FlowOpened, Problem
from sbxproxy.flow import Flow
from sbxproxy.net.bare import BareStream
from sbxproxy.net.dial import begin as really_begin
from sbxproxy.net.dial import dial
from sbxproxy.net.engine import Engine
from sbxproxy.net.tunnel import Lane, Tunnel
from sbxproxy.testing.hello import client_hello
from support.passages import ESTABLISHED, HANGS, HELLO, HOLE, NAME, OTHER, QUIET, Client, Pair, closed_port, head, open_pair
from support.tcp import black_hole, open_descriptors

ALLOWED: Any = {"allow": [NAME, HOLE]}
STAGES = ("head", "hello", "connecting", "standing")


async def until(condition: Any) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.002)


@asynccontextmanager
async def passage(stage: str, **options: Any) -> AsyncIterator[tuple[Pair, Client]]:
    """A connection on the short way that has come as far as *stage*."""
    with ExitStack() as stack:
        async with open_pair(ALLOWED, boxes=("short",), **options) as pair:
            yield pair, await advance(pair, stage, stack)


async def advance(pair: Pair, stage: str, stack: ExitStack) -> Client:
    taken = pair.ways["short"]
    client = await pair.open()
    name, port = NAME, pair.upstream.port
    if stage == "connecting":
        name, port = HOLE, stack.enter_context(closed_port())
        stack.enter_context(black_hole("127.0.0.9", port))
    standing = len(opened(pair))
    await until(lambda: pair.ways["short"] > taken)
    (express,) = pair.expresses
    if stage != "head":
        await client.stream.send_all(head(f"{name}:{port}"))
        assert await client.stream.receive_some(len(ESTABLISHED)) == ESTABLISHED
    if stage in {"connecting", "standing"}:
        await client.stream.send_all(client_hello(name))
        if stage == "connecting":
            await until(lambda: any(one._upstream is not None for one in express._passages))
        else:
            await until(lambda: len(opened(pair)) > standing)
    await trio.testing.wait_all_tasks_blocked(0.005)
    assert pair.ways["left"] == 0
    return client


def opened(pair: Pair) -> list[FlowOpened]:
    return [event for event in pair.events if isinstance(event, FlowOpened)]


async def seen(client: Client) -> str:
    """Read to the end; what kind it was."""
    with trio.fail_after(30):
        try:
            while await client.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            return "reset"
        finally:
            client.stream.socket.close()
    return "eof"


# The policy changes.


async def test_l1_an_update_before_the_request_denies_it() -> None:
    async with passage("head") as (pair, client):
        changed = await pair.short.update_policy("deny-all")
        assert (changed.cut, changed.kept) == ((), 0)
        await client.stream.send_all(head(f"{NAME}:{pair.upstream.port}"))
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 403 ")
        client.stream.socket.close()
        await pair.settle()


async def test_l1_an_update_before_the_first_bytes_denies_them() -> None:
    async with passage("hello") as (pair, client):
        changed = await pair.short.update_policy("deny-all")
        assert (changed.cut, changed.kept) == ((), 1)
        await client.stream.send_all(HELLO)
        assert (await client.stream.receive_some())[:1] == b"\x15", "a TLS client is told so in an alert"
        assert await seen(client) == "eof"
        await pair.settle()
        (event,) = pair.closed()
        assert (event.decision, event.reason, event.wire, event.server_name) == ("deny", "deny-all", "tls", NAME)
        assert event.bytes_up == 0
        assert pair.upstream.got == []


async def test_l1_what_waits_for_first_bytes_is_judged_by_what_holds_then() -> None:
    """A name that only the new policy allows, asked for under the old one."""
    async with open_pair({"allow": [NAME]}, boxes=("short",)) as pair:
        client = await pair.open()
        await client.stream.send_all(head(f"{NAME}:{pair.upstream.port}"))
        assert await client.stream.receive_some(len(ESTABLISHED)) == ESTABLISHED
        rules: Any = [{"transform": [{"headers": {"x": "y"}}]}]
        for policy in ({"allow": [OTHER]}, {"allow": {NAME: rules}}, "allow-all"):
            await pair.short.update_policy(policy)
        await client.stream.send_all(b"anything")
        await client.stream.send_eof()
        assert await seen(client) == "eof"
        await pair.settle()
        assert [event.reason for event in pair.closed()] == ["allow-all"]
        assert pair.upstream.got == [b"anything"]


@pytest.mark.parametrize("stage", ["connecting", "standing"])
async def test_l1_an_update_cuts_at_once_and_the_client_sees_a_reset(stage: str) -> None:
    async with passage(stage) as (pair, client):
        (flow,) = pair.short.flows
        changed = await pair.short.update_policy({"allow": [OTHER]})
        assert (changed.cut, changed.kept) == ((flow.id,), 0)
        assert pair.short.flows == ()
        assert pair.slots().free == pair.total
        assert await seen(client) == "reset"
        (event,) = pair.closed()
        assert (event.flow, event.ended) == (flow.id, "policy-changed")
        assert pair.ways["left"] == 0
        await pair.settle()


@pytest.mark.parametrize("stage", ["connecting", "standing"])
async def test_l1_an_update_that_allows_it_still_leaves_it_alone(stage: str) -> None:
    async with passage(stage) as (pair, client):
        changed = await pair.short.update_policy({"allow": [NAME, HOLE, OTHER]})
        assert (changed.cut, changed.kept) == ((), 1)
        assert len(pair.short.flows) == 1
        assert pair.ways["left"] == 0
        client.stream.socket.close()
        await pair.short.drain(0)
        await pair.settle()


async def test_d4_what_is_no_longer_allowed_once_it_is_connected_gets_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by an update, which would cut it: the address has become one of the proxy's own meanwhile."""
    async with open_pair(ALLOWED, boxes=("short",)) as pair:

        def begin(*args: Any) -> tuple[socket.socket, None]:
            sock, _ = really_begin(*args)
            pair.proxy.note_listeners([args[:2]])
            return sock, None

        monkeypatch.setattr(module, "begin", begin)
        steps = [("send", head(f"{NAME}:{pair.upstream.port}")), ("until", ESTABLISHED), ("send", HELLO)]
        seen = await pair.play(steps)
        assert (seen.data[len(ESTABLISHED) :][:1], seen.end) == (b"\x15", "eof")
        await pair.settle()
        assert [(event.decision, event.reason, event.bytes_up) for event in pair.closed()] == [("deny", "policy-changed", 0)]
        assert pair.upstream.got == [b""]


async def test_x12_a_connecting_that_hangs_is_gone_on_with_beside_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It might still come to something, and the address is not asked twice."""
    taken: list[Any] = []

    async def resume(*args: Any, **options: Any) -> Any:
        taken.append(options["begun"].getsockname())
        return await dial(*args, **options)

    monkeypatch.setattr(upstream_module, "resume", resume)
    async with open_pair({"allow": [HANGS]}, boxes=("short",)) as pair:
        with black_hole("127.0.0.9", pair.upstream.port):
            steps = [
                ("send", head(f"{HANGS}:{pair.upstream.port}")),
                ("until", ESTABLISHED),
                ("send", client_hello(HANGS)),
                ("fin",),
            ]
            assert (await pair.play(steps)).data.endswith(b"bytes>")
            await pair.settle()
        assert len(taken) == 1
        assert [event.address for event in pair.closed()] == [f"127.0.0.1:{pair.upstream.port}"]


# Serving ends.


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["drain", "aclose", "cancel", "proxy"])
async def test_x9_whatever_ends_serving_ends_all_that_came_by_it(stage: str, how: str) -> None:
    async with passage(stage) as (pair, client):
        flows = len(pair.short.flows)
        with trio.fail_after(30):
            match how:
                case "drain":
                    await pair.short.drain(0)
                case "aclose":
                    await pair.short.aclose()
                case "cancel":
                    pair.scopes["short"].cancel()
                case "proxy":
                    await pair.proxy.drain(0)
            await pair.served["short"].wait()
        assert pair.short.flows == ()
        assert pair.slots().free == pair.total
        end = await seen(client)
        assert stage == "head" or end == ("reset" if how in {"aclose", "cancel"} else "eof")
        assert [event.ended for event in pair.closed()][:flows] == [
            {"drain": "drained", "aclose": "sandbox-closed", "cancel": "cancelled", "proxy": "drained"}[how]
        ][:flows]
        assert len(pair.closed()) == flows
        await pair.settle()


@pytest.mark.parametrize("stage", STAGES)
async def test_l4_draining_lets_go_on_what_is_there(stage: str) -> None:
    """Nobody new is let in; who is in is served, wherever it was, within the grace."""
    with ExitStack() as stack:
        async with open_pair(ALLOWED, boxes=("short",)) as pair:
            client = await advance(pair, stage, stack)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.short.drain, 0.3 if stage in {"connecting", "head"} else 60)
                await trio.testing.wait_all_tasks_blocked(0.02)
                with pytest.raises(OSError):
                    await pair.open()
                assert pair.ways["left"] == (stage in {"hello", "connecting"}), "what does not stand yet goes on in a task"
                if stage == "hello":
                    await client.stream.send_all(HELLO)
                if stage in {"hello", "standing"}:
                    await client.stream.send_eof()
                    assert (await client.stream.receive_some()).startswith(b"<")
                await seen(client)
            with trio.fail_after(30):
                await pair.served["short"].wait()
            await pair.settle()
            ended = {"head": [], "connecting": ["drained"]}.get(stage, ["eof"])
            assert [event.ended for event in pair.closed()] == ended


# What can't go on the short way goes the other.


@pytest.mark.parametrize("stage", ["head", "hello"])
async def test_a_wait_that_the_engine_gives_up_goes_on_in_a_task(stage: str) -> None:
    async with passage(stage) as (pair, client):
        ((one,),) = (express._passages for express in pair.expresses)
        pair.proxy._engine.forget(one.client.socket)
        assert pair.ways["left"] == 1
        if stage == "head":
            await client.stream.send_all(head(f"{NAME}:{pair.upstream.port}"))
            assert await client.stream.receive_some(len(ESTABLISHED)) == ESTABLISHED
        await client.stream.send_all(HELLO)
        await client.stream.send_eof()
        assert await client.stream.receive_some() == b"<%d bytes>" % len(HELLO)
        await pair.settle()
        assert [event.ended for event in pair.closed()] == ["eof"]
        client.stream.socket.close()


async def test_a_connecting_that_the_engine_gives_up_has_failed() -> None:
    async with passage("connecting") as (pair, client):
        ((one,),) = (express._passages for express in pair.expresses)
        assert one._upstream is not None
        pair.proxy._engine.forget(one._upstream)
        assert await seen(client) == "eof"
        await pair.settle()
        assert [(event.ended, event.reason, event.address) for event in pair.closed()] == [("failed", "connect-failed", None)]


@pytest.mark.parametrize("room", [False, True])
async def test_a_socket_that_can_not_be_waited_for_is_waited_for_in_a_task_or_has_failed(
    room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel bounds what one user may have in epoll instances."""
    before = Engine.watch

    def watch(self: Engine, *args: Any, **options: Any) -> None:
        if options.get("room", False) is room:
            raise OSError(errno.ENOSPC, "no more watches")
        before(self, *args, **options)

    with ExitStack() as stack:
        async with open_pair(ALLOWED, boxes=("short",)) as pair:
            port = stack.enter_context(closed_port())
            stack.enter_context(black_hole("127.0.0.9", port))
            monkeypatch.setattr(Engine, "watch", watch)
            name, port = (HOLE, port) if room else (NAME, pair.upstream.port)
            seen = await pair.play(
                [("send", head(f"{name}:{port}")), ("until", ESTABLISHED), ("send", client_hello(name)), ("fin",)]
            )
            await pair.settle()
            (event,) = pair.closed()
            if room:
                assert (event.ended, event.reason) == ("failed", "connect-failed")
            else:
                assert (event.ended, seen.data) == ("eof", ESTABLISHED + b"<%d bytes>" % len(HELLO))
            assert pair.ways["left"] == 1


@pytest.mark.parametrize("cut", [False, True])
async def test_a_pair_that_the_engine_can_not_take_is_relayed_in_a_task(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        async with open_pair(ALLOWED, boxes=("short",)) as pair:
            monkeypatch.setattr(Engine, "_register", lambda *_args, **_options: False)
            client = await pair.open()
            await client.stream.send_all(head(f"{NAME}:{pair.upstream.port}"))
            assert await client.stream.receive_some(len(ESTABLISHED)) == ESTABLISHED
            await client.stream.send_all(HELLO)
            await until(lambda: pair.ways["left"] == 1)
            await until(lambda: pair.upstream.got == [HELLO])
            if cut:
                assert len((await pair.short.update_policy("deny-all")).cut) == 1
                assert pair.short.flows == ()
                assert await seen(client) == "reset"
            else:
                await client.stream.send_eof()
                assert await client.stream.receive_some() == b"<%d bytes>" % len(HELLO)
                assert await seen(client) == "eof"
            await pair.settle()
            (event,) = pair.closed()
            assert (event.ended, event.bytes_up) == ("policy-changed" if cut else "eof", len(HELLO))
            assert not [event for event in pair.events if isinstance(event, Problem)]
            stack.close()


# Defects.


@pytest.mark.parametrize("place", ["sniff", "begin", "check"])
async def test_x9_a_defect_ends_one_connection_and_is_told_without_a_word_of_its_text(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with passage("standing") as (pair, other):

        def fail(*_args: Any) -> None:
            raise KeyError("what the client said")

        with monkeypatch.context() as patch:
            patch.setattr(module, place, fail)
            hello = client_hello(NAME, alpn=(place.encode(),))
            steps = [("send", head(f"{NAME}:{pair.upstream.port}")), ("until", ESTABLISHED), ("send", hello)]
            assert await pair.play(steps) == type(await pair.play(steps))(ESTABLISHED, "reset")
        await until(lambda: len(pair.short.flows) == 1)
        assert pair.slots().free == pair.total - 1
        problems = [event for event in pair.events if isinstance(event, Problem)]
        assert [(event.reason, event.detail) for event in problems] == [
            ("internal-error", "a connection failed with KeyError")
        ] * 2
        assert [event.ended for event in pair.closed()] == ["cancelled"] * 2
        await other.stream.send_eof()
        assert await other.stream.receive_some() == b"<%d bytes>" % len(HELLO)
        await pair.settle()
        other.stream.socket.close()


async def test_x9_an_observer_that_cuts_what_it_is_told_of_ends_that_alone() -> None:
    """It may not, but the engine carries all sandboxes, and has to outlive it."""
    boxes: list[Any] = []

    def observe(event: Any) -> None:
        if isinstance(event, FlowOpened) and boxes:
            for flow in boxes[0].flows:
                flow.cut("an observer's whim")

    async with open_pair(ALLOWED, boxes=("short",), observers=[observe]) as pair:
        boxes.append(pair.short)
        steps = [("send", head(f"{NAME}:{pair.upstream.port}")), ("until", ESTABLISHED), ("send", HELLO)]
        assert (await pair.play(steps)).end == "reset"
        await pair.settle()
        assert [event.ended for event in pair.closed()] == ["an observer's whim"]
        assert not [event for event in pair.events if isinstance(event, Problem)]
        boxes.clear()
        assert (await pair.play([*steps, ("fin",)])).data.endswith(b"bytes>")


# Bounds, and what is left.


async def test_x1_slots_bound_the_short_way_too() -> None:
    async with open_pair(ALLOWED, boxes=("short",), limits={"flows_per_sandbox": 2}) as pair:
        with ExitStack() as stack:
            first = await advance(pair, "standing", stack)
            second = await advance(pair, "hello", stack)
            assert pair.slots().free == 0
            third = await pair.open()
            await third.stream.send_all(head(f"{NAME}:{pair.upstream.port}"))
            await trio.sleep(0.03)
            assert pair.ways["short"] == 2
            first.stream.socket.close()
            with trio.fail_after(30):
                assert await third.stream.receive_some(len(ESTABLISHED)) == ESTABLISHED
            assert (pair.ways["short"], pair.slots().free) == (3, 0)
            second.stream.socket.close()
            third.stream.socket.close()
            await pair.settle()


async def test_x9_nothing_keeps_what_is_over_alive() -> None:
    """Without the garbage collector: a cycle would keep memory, and sockets with it, until that runs."""
    kinds = (Passage, Flow, BareStream, Tunnel, Lane, socket.socket)

    def alive() -> list[object]:
        return [one for one in gc.get_objects() if type(one) in kinds]

    async with open_pair(ALLOWED, boxes=("short",)) as pair:
        port = pair.upstream.port
        started = [("send", head(f"{NAME}:{port}")), ("until", ESTABLISHED)]
        scripts: list[Any] = [
            [*started, ("send", HELLO), ("fin",)],
            [*started, ("send", HELLO), QUIET, ("reset",)],
            [*started, ("reset",)],
            [QUIET, ("reset",)],
            [*started, ("send", client_hello(OTHER))],
            [*started, ("send", HELLO[:50]), QUIET, ("send", HELLO[50:]), ("fin",)],
        ]
        for _ in range(2):
            gc.collect()
            gc.disable()
            try:
                of_others = {id(one) for one in alive()}  # of tests before this one
                before, descriptors = len(of_others), open_descriptors()
                for steps in scripts:
                    await pair.play(steps)
                    await pair.settle()
                await trio.testing.wait_all_tasks_blocked(0.01)
                after = len(alive())
                left = [
                    type(one).__name__
                    for one in alive()
                    if isinstance(one, (Passage, Flow, Tunnel, Lane)) and id(one) not in of_others
                ]
            finally:
                gc.enable()
        assert left == []
        assert after <= before
        assert open_descriptors() <= descriptors


async def test_a_cut_is_seen_by_nobody_twice() -> None:
    """Each ends once: one event, one slot, whoever ends it again."""
    async with passage("standing") as (pair, client):
        (flow,) = pair.short.flows
        flow.cut("first")
        flow.cut("second")
        assert flow.finished.is_set()
        assert await seen(client) == "reset"
        await pair.settle()
        assert [event.ended for event in pair.closed()] == ["first"]
