"""What a captured namespace meets when its proxy is gone: refusals, at once."""

import json
import os
import signal
import subprocess

import pytest

from support.captured import MODES, as_user, environment

PROXY = """
import sys, trio, trio.testing, sbxproxy
from functools import partial
async def main():
    proxy = sbxproxy.Proxy()
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("box", policy="deny-all")
        await nursery.start(partial(sandbox.capture, netns=sys.argv[1]))
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        if sys.argv[2] == "closed":
            await sandbox.aclose()
            await trio.testing.wait_all_tasks_blocked(0.2)  # what serves is cancelled, and closes its sockets in its own turn
            print("closed", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()
trio.run(main)
"""

GUEST = """
import errno, json, os, socket, sys, time
from support.leaks import DNS, hello
def tcp(address, port):
    with socket.create_connection((address, port), 10) as sock:
        sock.sendall(hello(b"a.example"))
        return "answered" if sock.recv(100) else "ended"
def udp(address, port):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect((address, port))
        sock.send(DNS)
        return "answered" if sock.recv(4096) else "ended"
def unconnected(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        sock.sendto(DNS, (address, port))
        return "answered" if sock.recv(4096) else "ended"
def tried(what, *where):
    started = time.monotonic()
    try:
        outcome = what(*where)
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, type(error).__name__)
    return outcome if time.monotonic() - started < 8 else "slow: " + outcome
print("up", flush=True)
for line in sys.stdin:
    found = {}
    for address in ("1.2.3.4", "8.8.8.8", "2600::1"):
        for port in (53, 80, 443):
            found["tcp %s %d" % (address, port)] = tried(tcp, address, port)
        found["dns " + address] = tried(udp, address, 53)
        found["udp " + address] = tried(udp, address, 443)
    found["unconnected"] = tried(unconnected, "8.8.8.8", 53)
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


def pipes(argv):
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environment(), bufsize=1)


def ask(guest):
    guest.stdin.write("go\n")
    return json.loads(guest.stdout.readline())


@pytest.mark.parametrize("how", ["closed", "cancelled", "killed"])
def test_l7_without_its_proxy_everything_is_refused_at_once(mode, how):
    """No time-out, and above all no way out."""
    *become, python = as_user(mode)
    user = ["--net"] if mode == "root" else ["--user", "--map-root-user", "--net"]
    processes = [guest := pipes([*become, "unshare", *user, python, "-c", GUEST])]
    try:
        assert guest.stdout.readline() == "up\n"
        processes.append(proxy := pipes([*become, python, "-c", PROXY, f"/proc/{guest.pid}/ns/net", how]))
        assert proxy.stdout.readline() == "ready\n"
        before = ask(guest)
        assert {outcome for name, outcome in before.items() if not name.startswith("udp ")} == {"answered", "ended"}
        if how == "killed":
            os.kill(proxy.pid, signal.SIGKILL)
        else:
            proxy.stdin.write("end\n")
        if how == "closed":
            assert proxy.stdout.readline() == "closed\n"
        else:
            proxy.wait(30)
        after = ask(guest)
        assert {outcome for name, outcome in after.items() if not name.startswith("udp ")} == {"ECONNREFUSED"}
        assert {outcome for name, outcome in after.items() if name.startswith("udp ")} == {"EPERM"}
    finally:
        for process in processes:
            process.kill()
            process.communicate()
