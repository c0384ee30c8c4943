"""Listeners and their bounds."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.errors import ConfigurationError, LimitError
from sbxproxy.net import descriptors
from sbxproxy.net.descriptors import fd_budget
from sbxproxy.net.listen import (
    BoundedListener,
    Slots,
    describe,
    local_endpoints,
    open_unix_listener,
)
from support.processor import cpu_seconds, until_idle
from support.tcp import open_descriptors

# Slots.


async def test_slots_within_wider_ones_take_both_or_none():
    wide = Slots(2)
    narrow = Slots(5, limit="flows_per_sandbox", within=wide)
    other = Slots(1, limit="flows_per_sandbox", within=wide)
    narrow.acquire_nowait()
    await narrow.acquire()
    assert (narrow.free, wide.free) == (3, 0)
    with pytest.raises(LimitError) as caught:
        other.acquire_nowait()
    assert caught.value.limit == "flows"
    assert other.free == 1
    with trio.move_on_after(0.01) as scope:
        await other.acquire()
    assert scope.cancelled_caught
    assert (other.free, wide.free) == (1, 0)
    narrow.release()
    other.acquire_nowait()
    with pytest.raises(LimitError) as caught:
        other.acquire_nowait()
    assert caught.value.limit == "flows_per_sandbox"
    assert (narrow.free, other.free, wide.free) == (4, 0, 0)


async def test_more_given_back_than_taken_is_a_bug():
    with pytest.raises(ValueError):
        Slots(1).release()


async def test_who_waits_first_gets_the_slot_first_and_nobody_overtakes(nursery):
    slots, order = Slots(1), []
    slots.acquire_nowait()

    async def take(name):
        await slots.acquire()
        order.append(name)

    for name in "abc":
        nursery.start_soon(take, name)
        await trio.testing.wait_all_tasks_blocked()
    for count in range(3):
        slots.release()
        assert slots.free == 0, "it is handed over at once"
        with pytest.raises(LimitError):
            slots.acquire_nowait()
        await trio.testing.wait_all_tasks_blocked()
        assert order == list("abc")[: count + 1]
    slots.release()
    assert slots.free == 1
    slots.acquire_nowait()
    slots.release()
    with pytest.raises(ValueError):
        slots.release()
    assert slots.free == 1


async def test_a_cancelled_waiter_leaves_the_line(nursery):
    slots, got = Slots(1), []
    slots.acquire_nowait()
    scopes = [trio.CancelScope() for _ in range(3)]

    async def take(index):
        with scopes[index]:
            await slots.acquire()
            got.append(index)

    for index in range(3):
        nursery.start_soon(take, index)
        await trio.testing.wait_all_tasks_blocked()
    scopes[0].cancel()
    await trio.testing.wait_all_tasks_blocked()
    slots.release()
    scopes[1].cancel()  # it was handed the slot in this very step, and keeps it
    await trio.testing.wait_all_tasks_blocked()
    assert (got, slots.free) == ([1], 0)
    scopes[2].cancel()
    await trio.testing.wait_all_tasks_blocked()
    slots.release()
    assert (got, slots.free) == ([1], 1)


async def test_a_cancelled_acquire_takes_nothing():
    slots = Slots(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await slots.acquire()
    assert scope.cancelled_caught
    assert slots.free == 1


async def test_waiting_for_the_wider_bound_holds_the_narrower_slot_and_loses_neither(nursery):
    wide = Slots(1)
    narrow, other = Slots(2, within=wide), Slots(2, within=wide)
    other.acquire_nowait()
    got, scopes = [], [trio.CancelScope() for _ in range(3)]

    async def take(index):
        with scopes[index]:
            await narrow.acquire()
            got.append(index)

    for index in range(3):
        nursery.start_soon(take, index)
        await trio.testing.wait_all_tasks_blocked()
    assert (narrow.free, wide.free, got) == (0, 0, [])
    scopes[0].cancel()  # of those that wait for the wider bound: the third goes up to there
    await trio.testing.wait_all_tasks_blocked()
    assert (narrow.free, wide.free, got) == (0, 0, [])
    other.release()
    await trio.testing.wait_all_tasks_blocked()
    assert (got, narrow.free, wide.free, other.free) == ([1], 0, 0, 2)
    narrow.release()
    await trio.testing.wait_all_tasks_blocked()
    assert (got, narrow.free, wide.free) == ([1, 2], 1, 0)
    narrow.release()
    assert (narrow.free, wide.free, other.free) == (2, 1, 2)


def test_a_wider_bound_that_is_reached_takes_nothing_of_the_narrower():
    wide = Slots(1, limit="flows")
    narrow = Slots(2, limit="flows_per_sandbox", within=wide)
    narrow.acquire_nowait()
    for _ in range(3):
        with pytest.raises(LimitError):
            narrow.acquire_nowait()
        assert (narrow.free, wide.free) == (1, 0)
    narrow.release()
    assert (narrow.free, wide.free) == (2, 1)
    with pytest.raises(ValueError):
        narrow.release()
    assert (narrow.free, wide.free) == (2, 1)


@given(moves=st.lists(st.tuples(st.sampled_from("take nowait give cancel".split()), st.integers(0, 1)), max_size=40))
def test_slots_are_neither_lost_nor_made(moves):
    """Whatever is taken, waited for, cancelled and given back, in two bounds within a third."""

    async def act():
        wide = Slots(2)
        narrow = [Slots(2, within=wide), Slots(1, within=wide)]
        held, waiting = [0, 0], [[], []]

        async def take(which, scope):
            with scope:
                await narrow[which].acquire()
                held[which] += 1
            waiting[which].remove(scope)

        async with trio.open_nursery() as nursery:
            for what, which in moves:
                match what:
                    case "take":
                        waiting[which].append(trio.CancelScope())
                        nursery.start_soon(take, which, waiting[which][-1])
                    case "nowait":
                        try:
                            narrow[which].acquire_nowait()
                            held[which] += 1
                        except LimitError:
                            pass
                    case "give" if held[which]:
                        held[which] -= 1
                        narrow[which].release()
                    case "cancel" if waiting[which]:
                        waiting[which][0].cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert held[0] + held[1] == 2 - wide.free
                assert wide.free == 0 or not (waiting[0] and narrow[0].free)
                assert all(0 <= slots.free for slots in (wide, *narrow))
            for scope in [*waiting[0], *waiting[1]]:
                scope.cancel()
        for which in (0, 1):
            for _ in range(held[which]):
                narrow[which].release()
        assert (wide.free, narrow[0].free, narrow[1].free) == (2, 2, 1)

    trio.run(act)


# BoundedListener.


@pytest.fixture
async def listener():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    yield listener
    await listener.aclose()


def connect(listener) -> socket.socket:
    return socket.create_connection(listener.socket.getsockname())


async def test_x1_no_more_are_accepted_than_there_are_slots(listener, nursery):
    """Those beyond wait in the backlog and get in when another leaves."""
    slots = Slots(2)
    open_now = most = 0
    leave = trio.Semaphore(0)

    async def handler(stream):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await leave.acquire()
        open_now -= 1

    nursery.start_soon(trio.serve_listeners, slots.bound(handler), [BoundedListener(listener, slots)])
    clients = [connect(listener) for _ in range(5)]
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert (open_now, slots.free) == (2, 0)
    for _ in clients:
        leave.release()
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert (open_now, most, slots.free) == (0, 2, 2)
    for client in clients:
        client.settimeout(30)
        assert client.recv(1) == b""
        client.close()
    nursery.cancel_scope.cancel()


async def test_an_idle_listener_holds_no_slot(listener, nursery):
    """Else a thousand sandboxes that wait for a first connection use up a thousand slots."""
    slots = Slots(1)
    bounded = BoundedListener(listener, slots)
    accepted = []

    async def accept():
        accepted.append(await bounded.accept())

    nursery.start_soon(accept)
    await trio.testing.wait_all_tasks_blocked()
    assert slots.free == 1
    with connect(listener):
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert slots.free == 0
        await accepted[0].aclose()


async def test_other_listeners_take_a_slot_before_they_accept(nursery):
    class Listener(trio.abc.Listener):
        asked = 0

        async def accept(self):
            Listener.asked += 1
            await trio.sleep_forever()

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    slots = Slots(1)
    slots.acquire_nowait()
    bounded = BoundedListener(Listener(), slots)
    nursery.start_soon(bounded.accept)
    await trio.testing.wait_all_tasks_blocked()
    assert Listener.asked == 0
    slots.release()
    await trio.testing.wait_all_tasks_blocked()
    assert (Listener.asked, slots.free) == (1, 0)
    nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert describe(bounded) == "BoundedListener"
    assert local_endpoints(bounded) == []


async def test_a_cancelled_accept_gives_its_slot_back(nursery):
    class Listener(trio.abc.Listener):
        async def accept(self):
            await trio.sleep_forever()

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    slots = Slots(1)
    with trio.move_on_after(0.01):
        await BoundedListener(Listener(), slots).accept()
    assert slots.free == 1


async def test_a_slot_is_given_back_after_the_stream_is_closed_whatever_the_handler_does(listener, caplog):
    slots = Slots(1)
    streams = []

    async def handler(stream):
        streams.append(stream)
        raise RuntimeError("a bug")

    slots.acquire_nowait()
    with connect(listener):
        stream = await listener.accept()
        with pytest.raises(RuntimeError, match="a bug"):
            await slots.bound(handler)(stream)
        assert stream.socket.fileno() == -1
        assert slots.free == 1
        slots.acquire_nowait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await slots.bound(lambda stream: trio.sleep_forever())(stream)
        assert slots.free == 1


class Exhausted(trio.abc.Listener):
    """Fails with *codes*, one after the other, and then accepts."""

    def __init__(self, codes):
        self.codes = list(codes)
        self.closed = False

    async def accept(self):
        await trio.lowlevel.checkpoint()
        if self.codes:
            raise OSError(self.codes.pop(0), "x")
        return trio.testing.memory_stream_pair()[0]

    async def aclose(self):
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_x1_running_out_of_descriptors_neither_spins_nor_floods_the_log(autojump_clock, caplog):
    """Ten tracebacks a second help nobody."""
    slots = Slots(1)
    inner = Exhausted([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM] * 300)
    bounded = BoundedListener(inner, slots)
    await bounded.accept()
    assert trio.current_time() == pytest.approx(120)
    assert slots.free == 0
    assert 2 <= len(caplog.records) <= 3
    assert all(record.exc_info is None for record in caplog.records)
    await bounded.aclose()
    assert inner.closed


async def test_other_failures_of_accept_are_raised_and_the_slot_is_free():
    slots = Slots(1)
    with pytest.raises(OSError):
        await BoundedListener(Exhausted([errno.EINVAL]), slots).accept()
    assert slots.free == 1


async def test_x2_accepted_sockets_are_probed_for_dead_peers(listener):
    slots = Slots(1)
    bounded = BoundedListener(listener, slots)
    with connect(listener):
        stream = await bounded.accept()
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        await stream.aclose()


async def test_a_closed_listener_ends_those_who_wait(listener, nursery):
    bounded = BoundedListener(listener, Slots(1))
    raised = trio.Event()

    async def accept():
        with pytest.raises(trio.ClosedResourceError):
            await bounded.accept()
        raised.set()

    nursery.start_soon(accept)
    await trio.testing.wait_all_tasks_blocked()
    await bounded.aclose()
    await raised.wait()
    await accept()


SERVER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import trio
from sbxproxy.net import BoundedListener, Slots, fd_budget

slots = Slots(int(sys.argv[1]) or fd_budget())

async def handler(stream):
    data = await stream.receive_some()
    if data == b"?":
        await stream.send_all(b"%d" % slots.free)

async def main():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
    print(listener.socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, slots.bound(handler), [BoundedListener(listener, slots)])
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.parametrize("slots", [0, 1000], ids=["budget", "too many slots"])
async def test_x1_a_flood_of_connections_is_survived(slots):
    """With the budget EMFILE is never met; without it is met, waited out and told of once."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(slots)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        address = ("127.0.0.1", int(server.stdout.readline()))

        def ask():
            with socket.create_connection(address, timeout=30) as client:
                client.sendall(b"?")
                return client.makefile("rb").read()

        free = await trio.to_thread.run_sync(ask)
        flood = [socket.create_connection(address) for _ in range(300)]
        await until_idle(server.pid)
        spent = cpu_seconds(server.pid)
        await trio.sleep(1.5)
        assert cpu_seconds(server.pid) - spent < 0.3, "it span"
        for client in flood:
            client.close()
        with trio.fail_after(30):
            while await trio.to_thread.run_sync(ask) != free:
                pass
        _, errors = server.communicate("")
    assert server.returncode == 0
    assert errors.count("Too many open files") == (1 if slots else 0)
    assert "Traceback" not in errors


# The budget.


@pytest.mark.parametrize(
    ("soft", "flows"),
    [
        (1, 1),
        (16, 6),
        (128, 48),
        (1024, 384),
        (20_000, 9872),
        (resource.RLIM_INFINITY, 524_160),
        (1 << 40, 524_160),
    ],
)
def test_x1_the_budget_leaves_a_reserve(monkeypatch, soft, flows):
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda which: (soft, soft))
    assert fd_budget() == flows


# Unix sockets.


async def test_a_unix_socket_has_its_mode_and_goes_away_with_its_listener(tmp_path):
    path = tmp_path / "proxy.sock"
    before = open_descriptors()
    listener = open_unix_listener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert describe(listener) == f"unix:{path}"
    assert local_endpoints(listener) == []
    client = await trio.open_unix_socket(str(path))
    stream = await listener.accept()
    await client.send_all(b"hello")
    assert await stream.receive_some() == b"hello"
    await client.aclose()
    await stream.aclose()
    await listener.aclose()
    await listener.aclose()
    assert not path.exists()
    assert open_descriptors() == before


async def test_the_mode_can_be_chosen(tmp_path):
    listener = open_unix_listener(tmp_path / "s", mode=0o660)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    await listener.aclose()


async def test_nobody_connects_before_the_mode_is_right(tmp_path, monkeypatch):
    """A moment with the wrong mode would be enough for a program that waits for it."""
    from pathlib import Path

    path = tmp_path / "s"
    tried = []
    chmod = Path.chmod

    def slow_chmod(self, mode):
        with socket.socket(socket.AF_UNIX) as early:
            tried.append(early.connect_ex(str(path)))
        chmod(self, mode)

    monkeypatch.setattr(Path, "chmod", slow_chmod)
    await open_unix_listener(path).aclose()
    assert tried == [errno.ECONNREFUSED]


async def test_a_socket_left_over_is_replaced(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    listener = open_unix_listener(path)
    await (await trio.open_unix_socket(str(path))).aclose()
    await listener.aclose()


async def test_a_socket_in_use_is_not(tmp_path):
    path = tmp_path / "s"
    listener = open_unix_listener(path)
    with pytest.raises(ConfigurationError, match="another process"):
        open_unix_listener(path)
    await (await trio.open_unix_socket(str(path))).aclose()
    await listener.aclose()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
async def test_nothing_but_a_socket_is_ever_replaced(tmp_path, kind):
    path = tmp_path / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(tmp_path / "other"))
            path.symlink_to(tmp_path / "other")
        case "dangling link":
            path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="no socket"):
        open_unix_listener(path)
    assert os.path.lexists(path)


@pytest.mark.parametrize("path", ["/nonexistent/dir/s", "/tmp/" + "x" * 200, "/tmp/a\0b", "/dev/null/s"])
async def test_an_impossible_place_is_a_configuration_error(path):
    before = open_descriptors()
    with pytest.raises(ConfigurationError, match="can't listen"):
        open_unix_listener(path)
    assert open_descriptors() == before


async def test_a_failure_after_binding_leaves_nothing(tmp_path, monkeypatch):
    def chmod(self, mode):
        raise PermissionError(errno.EPERM, "no")

    from pathlib import Path

    monkeypatch.setattr(Path, "chmod", chmod)
    with pytest.raises(ConfigurationError):
        open_unix_listener(tmp_path / "s")
    assert not (tmp_path / "s").exists()


async def test_a_failure_that_is_no_system_s_is_not_hidden(tmp_path, monkeypatch):
    from pathlib import Path

    def chmod(self, mode):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Path, "chmod", chmod)
    with pytest.raises(RuntimeError):
        open_unix_listener(tmp_path / "s")
    assert not (tmp_path / "s").exists()


async def test_another_s_socket_in_its_place_is_left_alone(tmp_path):
    path = tmp_path / "s"
    first = open_unix_listener(path)
    path.unlink()
    second = open_unix_listener(path)
    await first.aclose()
    await (await trio.open_unix_socket(str(path))).aclose()
    await second.aclose()
    assert not path.exists()


async def test_a_socket_removed_by_somebody_else_does_not_trouble_the_close(tmp_path):
    listener = open_unix_listener(tmp_path / "s")
    (tmp_path / "s").unlink()
    await listener.aclose()


async def test_a_bounded_unix_listener_waits_for_connections_too(tmp_path):
    slots = Slots(1)
    listener = BoundedListener(open_unix_listener(tmp_path / "s"), slots)
    assert describe(listener) == f"unix:{tmp_path / 's'}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        assert slots.free == 1
        nursery.cancel_scope.cancel()
    await listener.aclose()


# Names.


@pytest.mark.parametrize(
    ("host", "text", "address"),
    [
        ("127.0.0.1", "127.0.0.1:{}", IPv4Address("127.0.0.1")),
        ("::1", "[::1]:{}", IPv6Address("::1")),
        ("0.0.0.0", "0.0.0.0:{}", IPv4Address("0.0.0.0")),
    ],
)
async def test_d4_a_listener_tells_where_it_is(host, text, address):
    (listener,) = await trio.open_tcp_listeners(0, host=host)
    port = listener.socket.getsockname()[1]
    bounded = BoundedListener(listener, Slots(1))
    assert describe(bounded) == describe(listener) == text.format(port)
    assert local_endpoints(bounded) == [(address, port)]
    await bounded.aclose()
    assert describe(listener) == "SocketListener"
    assert local_endpoints(bounded) == []
