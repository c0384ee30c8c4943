"""A proxy as a whole: settings that can't be, floods, junk, shutdown, and lines that an attacker would like to write."""

from __future__ import annotations

import gc
import io
import json
import random
import resource
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sbxproxy
from sbxproxy import ConfigurationError, JsonLines, Limits, Settings
from sbxproxy.http import Origin as Upstream
from sbxproxy.testing.hello import client_hello
from support.firewall import open_firewall
from support.origin import HELLO, Origin
from support.processor import cpu_seconds, until_idle
from support.talk import connect, exactly, handshake, request, socks_request, until_end
from support.tcp import open_descriptors, reset
from support.wire_box import open_box

NAME = "origin.test.example"


# -- configuration


@pytest.mark.parametrize("name", ["", "x" * 201, "line\nbreak", "tab\t", "nul\0"])
async def test_a_sandbox_needs_a_name_that_a_log_line_can_hold(name: str) -> None:
    with pytest.raises(ConfigurationError):
        sbxproxy.Proxy().create_sandbox(name, policy="deny-all")


async def test_two_sandboxes_cannot_have_one_name() -> None:
    async with open_box("deny-all") as box:
        with pytest.raises(ConfigurationError, match="open already"):
            box.proxy.create_sandbox("box", policy="deny-all")
        await box.sandbox.aclose()
        again = box.proxy.create_sandbox("box", policy="deny-all")
        assert box.proxy.sandboxes == (again,)


async def test_roots_that_cannot_be_loaded_stop_the_proxy_before_it_serves(tmp_path: Path) -> None:
    """Without roots nothing could be verified; that must not show only with the first request."""
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for settings in (Settings(upstream_roots=bad), Settings(extra_upstream_roots=[tmp_path / "absent.pem"])):
        proxy = sbxproxy.Proxy(settings)
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(proxy.run)
        assert caught.group_contains(ConfigurationError)


async def test_an_observer_must_be_callable() -> None:
    with pytest.raises((ConfigurationError, TypeError)):
        sbxproxy.Proxy(observers=["not callable"])  # type: ignore[list-item]


async def test_a_proxy_runs_once_and_says_whether_it_does() -> None:
    async with open_box("deny-all") as box:
        with pytest.raises(RuntimeError):
            await box.proxy.run()
        assert "not running" not in repr(box.proxy)
    assert "not running" in repr(box.proxy)


async def test_l7_nothing_passes_while_the_proxy_does_not_run() -> None:
    proxy = sbxproxy.Proxy()
    sandbox = proxy.create_sandbox("box", policy="allow-all")
    near, far = trio.testing.memory_stream_pair()
    await sandbox.handle(far, ("1.1.1.1", 443))
    assert (await until_end(near))[0] == b""


# -- junk and floods


def _junk(random_source: random.Random) -> bytes:
    """Bytes that begin like something and go on like nothing."""
    starts = [
        b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x00" + socks_request(NAME, 443)[:-3], b"\x05\xff" + bytes(range(255)),
        b"CONNECT ", f"CONNECT {NAME}:443 HTTP/1.1\r\n".encode(), b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"GET http://", b"\x16\x03\x01",
        b"\x0d\x0a\x0d\x0a\x00\x0d\x0aQUIT\x0a", f"CONNECT {NAME}:443 HTTP/1.1\r\n\r\n".encode() + client_hello(NAME)[:60],
        f"GET http://{NAME}/ HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode(),
    ]  # fmt: skip
    return random_source.choice(starts) + random_source.randbytes(random_source.choice([0, 1, 5, 60, 3000]))


async def test_x10_junk_ends_its_own_connection_and_no_other(tmp_path: Path) -> None:
    """Hundreds of broken clients, closed in every way, while a good one goes on."""
    source = random.Random(20261124)
    origin = Origin((NAME,))
    policy = {"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}, "subnets": {"deny": ["10.0.0.0/8"]}}
    limits = Limits(first_bytes=2)
    async with open_firewall(policy, origin, directory=tmp_path, limits=limits) as firewall:
        stream = await firewall.open()
        await connect(stream, f"{NAME}:{origin.port}")
        good = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)

        assert (await request(good, f"{NAME}:{origin.port}"))[2] == HELLO

        async def bad(data: bytes, way: str) -> None:
            client = await firewall.open()
            try:
                await client.send_all(data)
                if way == "eof":
                    await client.send_eof()
                if way == "wait":
                    with trio.move_on_after(10):
                        await until_end(client)
                if way == "reset":
                    reset(client)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            await trio.aclose_forcefully(client)

        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(bad, _junk(source), source.choice(["eof", "wait", "reset", "close"]))
            assert (await request(good, f"{NAME}:{origin.port}"))[2] == HELLO
        await good.aclose()
        with trio.fail_after(30):
            while firewall.sandbox.flows:
                await trio.sleep(0.02)
        assert [event for event in firewall.events if getattr(event, "reason", "") == "internal-error"] == []
    assert len(origin.requests) == 5


async def test_x9_ending_closes_every_descriptor(tmp_path: Path) -> None:
    """Relays, inspections and half-made requests, all open when the proxy is cancelled."""
    origin = Origin((NAME,))
    inspected = Origin(("inspected.test.example",))
    policy = {"allow": {NAME: [], "inspected.test.example": [{"transform": [{"headers": {"x": "y"}}]}]}}
    before = 0
    for turn in range(2):  # the first one pays for what stays, such as threads and imports
        gc.collect()
        before = open_descriptors()
        async with open_firewall(policy, origin, inspected, directory=tmp_path) as firewall:
            root = origin.write_root(tmp_path)
            for index in range(60):
                stream = await firewall.open()
                if index % 3 == 0:
                    await stream.send_all(b"CONNECT ")
                    continue
                server, trust = ((origin, b""), (inspected, firewall.sandbox.certificate_pem))[index % 3 - 1]
                assert (await connect(stream, f"{server.names[0]}:{server.port}"))[0] == 200
                await handshake(stream, server.names[0], *([] if trust else [root]), trust=trust)
            assert open_descriptors() - before > 150
        gc.collect()
        if turn:
            assert open_descriptors() == before
    assert firewall.sandbox.flows == ()


_FLOODED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
sys.path[:0] = sys.argv[1].split(":")
import tempfile, trio
from pathlib import Path
from support.firewall import open_firewall
from support.origin import Origin
async def main():
    async with open_firewall({"allow": ["origin.test.example"]}, directory=Path(tempfile.mkdtemp())) as firewall:
        print(firewall.port, flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        firewall.nursery.cancel_scope.cancel()
trio.run(main)
"""


async def test_x1_a_flood_beyond_the_descriptor_limit_leaves_the_proxy_alive() -> None:
    """Under a limit of 128 descriptors: 300 connections at once, no busy loop, and room again once they are gone."""
    here = Path(__file__).parent
    path = ":".join([str(here), str(Path(sbxproxy.__file__).parents[1])])
    child = await trio.lowlevel.open_process(
        [sys.executable, "-c", _FLOODED, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        port = int(await child.stdout.receive_some())
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > 400
        clients = []
        for _ in range(300):
            sock = trio.socket.socket()
            clients.append(sock)
            with trio.move_on_after(1):
                await sock.connect(("127.0.0.1", port))
        await until_idle(child.pid)
        spent = cpu_seconds(child.pid)
        await trio.sleep(1)
        assert cpu_seconds(child.pid) - spent < 0.3
        for sock in clients:
            sock.close()
        async with trio.SocketStream(trio.socket.socket()) as stream:
            with trio.fail_after(30):
                await stream.socket.connect(("127.0.0.1", port))
                assert (await connect(stream, "denied.test.example:443"))[0] == 403
        await child.stdin.send_all(b"\n")
        with trio.fail_after(30):
            assert await child.wait() == 0
        assert b"Traceback" not in (await until_end(child.stderr))[0]
    finally:
        if child.returncode is None:
            child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                await pipe.aclose()


async def test_x7_handshakes_under_way_are_bounded(tmp_path: Path) -> None:
    """Clients that stop in the middle of a handshake hold slots only until the deadline."""
    origin = Origin((NAME,))
    rules = {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}
    limits = Limits(handshakes_per_sandbox=2, handshake=2)  # the last one's real handshake has to be within it
    async with open_firewall({"allow": rules}, origin, directory=tmp_path, limits=limits) as firewall:
        for _ in range(4):
            stream = await firewall.open()
            assert (await connect(stream, f"{NAME}:{origin.port}", more=client_hello(NAME)))[0] == 200
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert origin.connections <= 2
        stream = await firewall.open()
        await connect(stream, f"{NAME}:{origin.port}")
        with trio.fail_after(30):
            tls = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200


async def test_x5_one_side_that_never_reads_holds_the_other_back(tmp_path: Path) -> None:
    sent = 0

    async def pour(stream: trio.abc.Stream) -> None:
        nonlocal sent
        while True:
            await stream.send_all(bytes(65536))
            sent += 65536

    origin = Origin((NAME,), tls=False, handler=pour)
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        assert (await connect(stream, f"127.0.0.1:{origin.port}"))[0] == 200
        stopped = -1
        with trio.fail_after(60):
            while sent != stopped:  # kernels find room a little later still, by their own timers
                stopped = sent
                await trio.testing.wait_all_tasks_blocked(0.5)
                await trio.sleep(0.5)
        await trio.sleep(0.3)
        assert sent == stopped < 32 * 1024 * 1024  # what kernels buffer, at both hops
        assert await exactly(stream, 1_000_000) == bytes(1_000_000)


async def test_x4_a_reset_on_one_side_reaches_the_other(tmp_path: Path) -> None:
    async def reset_soon(stream: Any) -> None:
        await stream.send_all(b"half of")
        await trio.sleep(0.05)
        reset(stream)

    origin = Origin((NAME,), tls=False, handler=reset_soon)
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await connect(stream, f"127.0.0.1:{origin.port}")
        assert await until_end(stream) in {(b"half of", "reset"), (b"", "reset")}
        assert (await firewall.next_closed()).ended == "upstream-reset"


async def test_x3_half_close_is_passed_on_each_way_by_itself(tmp_path: Path) -> None:
    async def answer_at_the_end(stream: Any) -> None:
        question, _ = await until_end(stream)
        await stream.send_all(b"answer to " + question + bytes(1_000_000))

    origin = Origin((NAME,), tls=False, handler=answer_at_the_end)
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await connect(stream, f"127.0.0.1:{origin.port}")
        await stream.send_all(b"question")
        await stream.send_eof()
        answer, end = await until_end(stream)
        assert (len(answer), answer[:18], end) == (1_000_018, b"answer to question", "eof")


async def test_x2_an_idle_relay_is_closed_and_a_busy_one_is_not(autojump_clock: trio.testing.MockClock) -> None:
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, limits=Limits(idle=100)) as box:
        began = trio.current_time()
        stream = box.open(NAME)
        await stream.send_all(client_hello(NAME))
        for _ in range(5):
            await trio.sleep(80)
            await stream.send_all(b"x")
        assert await until_end(stream) == (b"", "eof")
        assert trio.current_time() - began == pytest.approx(500, abs=10)
        await box.settle()
        assert box.closed[0].ended == "idle"


# -- what is written down


@pytest.mark.parametrize(
    "name",
    [b"a\nb.example.com", b'a\r\n{"event":"x"}', b"\x1b[31mred.example.com", "\u2028.example.com".encode(), b"nul\0.example.com"],
)
async def test_x14_a_hostile_name_never_begins_a_second_line(name: bytes, tmp_path: Path) -> None:
    lines = io.StringIO()
    log = JsonLines(lines)
    async with open_firewall({"allow": ["*"]}, directory=tmp_path, observers=[log]) as firewall:
        for data in (
            b"CONNECT " + name + b":443 HTTP/1.1\r\n\r\n",
            b"\x05\x01\x00" + socks_request(name, 443),
            b"CONNECT 192.0.2.1:443 HTTP/1.1\r\n\r\n" + client_hello(name),
            b"GET http://" + name + b"/ HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            stream = await firewall.open()
            await stream.send_all(data)
            await until_end(stream)
            await stream.aclose()
        await firewall.next_closed(4)
    assert log.close()
    written = lines.getvalue()
    assert len(written.splitlines()) == len(firewall.events) == 4
    assert all(json.loads(line)["decision"] == "deny" for line in written.splitlines())
    assert written.replace("\n", "").isprintable()
    assert written.isascii()


async def test_x14_thousands_of_denials_cost_one_short_line_each() -> None:
    lines = io.StringIO()
    log = JsonLines(lines)
    async with open_box("deny-all", observers=[log]) as box:
        began = time.process_time()
        for _ in range(1000):
            near, far = trio.testing.memory_stream_pair()
            await near.aclose()
            await box.sandbox.handle(far, ("x" * 60 + ".example.com", 443))
        assert time.process_time() - began < 20
    assert log.close()
    written = lines.getvalue().splitlines()
    assert len(written) == 1000
    assert max(map(len, written)) < 1000


async def test_every_flow_has_one_record_that_tells_its_whole_story(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    rules = {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}
    lines = io.StringIO()
    log = JsonLines(lines)
    async with open_firewall({"allow": rules}, origin, directory=tmp_path, observers=[log]) as firewall:
        stream = await firewall.open()
        await connect(stream, f"{NAME}:{origin.port}")
        tls = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)
        for _ in range(2):
            await request(tls, f"{NAME}:{origin.port}", "/path?token=hidden", method="POST", body=b"12345")
        await tls.aclose()
        await firewall.next_closed()
    assert log.close()
    opened, first, second, closed = (json.loads(line) for line in lines.getvalue().splitlines())
    assert [event["event"] for event in (opened, first, second, closed)] == ["flow-opened", "request", "request", "flow-closed"]
    assert opened["address"] == closed["address"] == f"127.0.0.1:{origin.port}"
    assert (first["method"], first["path"], first["status"], first["bytes_up"]) == ("POST", "/path", 200, 5)
    assert (closed["front"], closed["wire"], closed["decision"], closed["rule"]) == ("connect", "tls", "inspect", NAME)
    assert (closed["requests"], closed["bytes_up"], closed["bytes_down"]) == (2, 10, 2 * len(HELLO))
    assert "hidden" not in lines.getvalue()


async def test_a_running_proxy_closes_what_a_burst_left_idle(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody may come again to make the pool look: the connections would stay for as long as any is kept."""
    proxy = sbxproxy.Proxy(Settings(limits=Limits(pooled_per_sandbox=2, keep_alive=60.0)))
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        pool = proxy.create_sandbox("s", policy="allow-all")._context.pool
        for _ in range(8):
            pool.give(Upstream("api.example.com", 443), trio.testing.memory_stream_pair()[0])
        assert len(pool) == 8
        await trio.sleep(20)
        assert len(pool) == 2
        await trio.sleep(60)
        assert len(pool) == 0
        nursery.cancel_scope.cancel()


def test_a_listener_everywhere_is_at_every_address_of_the_host() -> None:
    """Until it is gone, and at no other port."""
    proxy = sbxproxy.Proxy()
    own, other = IPv4Address("127.0.0.1"), IPv4Address("198.51.100.1")
    is_listener = proxy._boundary.listeners
    for everywhere in (IPv4Address(0), IPv6Address(0)):
        forget = [proxy.note_listeners([(everywhere, 8080), (other, 8081)]) for _ in range(2)]
        for undo in forget:
            assert [is_listener(own, 8080), is_listener(own, 8081), is_listener(own, 80)] == [True, False, False]
            assert [is_listener(other, 8080), is_listener(other, 8081)] == [False, True]
            undo()
        assert not any(is_listener(address, port) for address in (own, other) for port in (8080, 8081))
