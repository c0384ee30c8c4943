"""Capturing namespaces that others made; as root, and as the user who made one."""

import os
import subprocess
import sys
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
import trio
import trio.testing

from sbxproxy.capture import CaptureUnavailable, attach, gateway, original_destination
from sbxproxy.errors import ClientProtocolError
from support.captured import as_user, environment
from support.programs import require, unavailable

TALK = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10); s.sendall(b'x'); print(s.recv(9).decode())"


@contextmanager
def made(*flags):
    """A namespace that lives as long as a process in it."""
    process = subprocess.Popen([require("unshare"), *flags, "sh", "-c", "echo; exec sleep 300"], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def enter(pid, *argv):
    done = await trio.run_process(
        ["nsenter", f"--net=/proc/{pid}/ns/net", *argv], capture_stdout=True, capture_stderr=True, check=False
    )
    return done.stdout.decode() + done.stderr.decode()


async def talk(captured, pid, *target):
    met = []

    async def serve(stream):
        met.append(original_destination(stream.socket))
        await stream.receive_some(1)
        await stream.send_all(b"hello")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, captured.listeners)
        with trio.fail_after(60):
            said = await enter(pid, sys.executable, "-c", TALK, *map(str, target))
        nursery.cancel_scope.cancel()
    return said, met


async def test_a_namespace_of_another_runtime_is_captured(root):
    with made("-n") as pid:
        async with await attach(f"/proc/{pid}/ns/net") as captured:
            assert await talk(captured, pid, "203.0.113.9", 8443) == ("hello\n", [(IPv4Address("203.0.113.9"), 8443)])
            assert len(captured.dns) == len(captured.listeners)
        assert "ConnectionRefusedError" in await enter(pid, sys.executable, "-c", TALK, "203.0.113.9", "8443")


async def test_by_a_descriptor_too(root):
    with made("-n") as pid:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        async with await attach(descriptor) as captured:
            assert (await talk(captured, pid, "203.0.113.9", 1))[0] == "hello\n"
        os.close(descriptor)


async def test_twice_is_refused(root):
    """Whose rules would hold is a question best not asked."""
    with made("-n") as pid:
        async with await attach(f"/proc/{pid}/ns/net"):
            with pytest.raises(CaptureUnavailable, match="captured already"):
                await attach(f"/proc/{pid}/ns/net")


async def test_one_s_own_namespace_is_refused(root):
    """It would cut the proxy off, and the host with it."""
    with pytest.raises(CaptureUnavailable, match="own"):
        await attach("/proc/self/ns/net")


@pytest.mark.parametrize("path", ["/proc/self/ns/mnt", "/etc/passwd", "/dev/null", "/nonexistent"])
async def test_what_is_no_network_namespace_is_refused(path):
    with pytest.raises(CaptureUnavailable, match="network namespace"):
        await attach(path)


async def test_a_namespace_with_a_way_out_is_refused(root):
    """Rules can be flushed by who is root in there; an absent interface can't be made up."""
    with made("-n") as pid:
        await enter(pid, require("ip"), "link", "add", "out0", "type", "veth", "peer", "name", "out1")
        if "out0" not in await enter(pid, "ip", "link"):
            unavailable("this kernel has no veth")
        await enter(pid, "ip", "link", "set", "out0", "up")
        with pytest.raises(CaptureUnavailable, match="interface out0"):
            await attach(f"/proc/{pid}/ns/net")


async def test_a_guest_behind_a_gateway_is_captured(root):
    with made("-n") as guest, made("-n") as between:
        await enter(between, require("ip"), "link", "add", "guest0", "type", "veth", "peer", "name", "eth0", "netns", str(guest))
        if "guest0" not in await enter(between, "ip", "link"):
            unavailable("this kernel has no veth")
        for line in ("addr add 10.9.8.1/24 dev guest0", "link set guest0 up"):
            assert await enter(between, "ip", *line.split()) == ""
        for line in ("link set lo up", "addr add 10.9.8.2/24 dev eth0", "link set eth0 up", "route add default via 10.9.8.1"):
            assert await enter(guest, "ip", *line.split()) == ""
        async with await gateway(f"/proc/{between}/ns/net", "guest0") as captured:
            assert await talk(captured, guest, "203.0.113.9", 8443) == ("hello\n", [(IPv4Address("203.0.113.9"), 8443)])
            code = "import socket; s = socket.socket(2, 2); s.connect(('203.0.113.9', 443)); s.send(b'x'); s.settimeout(20); s.recv(1)"
            said = await enter(guest, sys.executable, "-c", code)
            assert "Error" in said
            assert "timed out" not in said


async def test_a_gateway_needs_its_interface(root):
    with made("-n") as pid, pytest.raises(CaptureUnavailable, match="network: "):
        await gateway(f"/proc/{pid}/ns/net", "absent0")


UNPRIVILEGED = """
import subprocess, sys, trio
from sbxproxy.capture import CaptureUnavailable, attach
mine = subprocess.Popen(["unshare", "-Un", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
mine.stdout.readline()
async def main():
    async with await attach(f"/proc/{mine.pid}/ns/net") as captured:
        print(len(captured.listeners) > 0)
    try:
        await attach(sys.argv[1])
    except CaptureUnavailable as error:
        print(error)
trio.run(main)
mine.kill()
mine.wait()
mine.stdout.close()
"""


async def test_who_made_it_can_capture_it_and_nobody_else(root):
    with made("-n") as pid:
        path = f"/proc/{pid}/root/../proc/{pid}/ns/net"
        done = await trio.run_process(
            [*as_user("unprivileged"), "-c", UNPRIVILEGED, path],
            env=environment(),
            cwd="/",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    first, _, rest = done.stdout.decode().partition("\n")
    assert first == "True", done.stderr
    assert "ermission denied" in rest or "another user" in rest or "not permitted" in rest


async def test_a_connection_that_was_not_redirected_has_no_destination():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        listeners[0],
        await trio.testing.open_stream_to_socket_listener(listeners[0]),
        await listeners[0].accept() as served,
    ):
        with pytest.raises(ClientProtocolError):
            original_destination(served.socket)
