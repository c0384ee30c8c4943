"""A policy set from another terminal holds for what a confined program has open already, and for its next look-up."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time

import pytest

from support.captured import MODES, as_user, environment
from support.certs import Root
from support.outer import RESOLVER, open_outer
from support.resolver import Resolver

# Opens both, says so, and tells of each when it ends; then asks for a name again.
CLIENT = """
import json, socket, ssl, sys, threading, time
def say(**what):
    print(json.dumps(what), flush=True)
def exchange(sock, text):
    sock.sendall(text)
    return sock.recv(100).decode()
context = ssl.create_default_context(cafile=sys.argv[1])
tunnel = context.wrap_socket(socket.create_connection(("tunnel.example", 8443), 20), server_hostname="tunnel.example")
plain = socket.create_connection(("5.6.7.8", 8080), 20)
say(tunnel=exchange(tunnel, b"one"), plain=exchange(plain, b"one"))
def watch(name, sock):
    sock.settimeout(60)
    try:
        ended = "answered" if sock.recv(100) else "end"
    except OSError as error:
        ended = type(error).__name__
    say(name=name, ended=ended, at=time.time())
threads = [threading.Thread(target=watch, args=pair) for pair in (("tunnel", tunnel), ("plain", plain))]
for thread in threads:
    thread.start()
for line in sys.stdin:
    try:
        found = socket.getaddrinfo("tunnel.example", 8443, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror:
        found = "none"
    try:
        with socket.create_connection(("5.6.7.8", 8080), 10) as fresh:
            reached = exchange(fresh, b"two") or "end"
    except OSError as error:
        reached = type(error).__name__
    say(found=found, reached=reached)
"""


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


def echo(listener, wrap=None):
    """Answer whatever comes on each connection, until it ends."""

    def serve(sock):
        with contextlib.suppress(OSError), sock:
            if wrap is not None:
                sock = wrap.wrap_socket(sock, server_side=True)
            with sock:
                while data := sock.recv(100):
                    sock.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


@pytest.fixture
def outer(open_path):
    root = Root()
    leaf = open_path / "leaf.pem"
    leaf.write_bytes(root.leaf("tunnel.example").pem)
    (open_path / "ca.pem").write_bytes(root.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    wanted = (("SOCK_DGRAM", RESOLVER, 53), ("SOCK_STREAM", "1.2.3.4", 8443), ("SOCK_STREAM", "5.6.7.8", 8080))
    with open_outer(*wanted) as found, Resolver(found.sockets[0], {"tunnel.example.": "1.2.3.4"}):
        echo(found.sockets[1], context)
        echo(found.sockets[2])
        yield found
        for listener in found.sockets[1:]:
            listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def runtime(open_path, mode):
    directory = open_path / "runtime"
    directory.mkdir(mode=0o700)
    if mode == "unprivileged" and os.geteuid() == 0:
        os.chown(directory, 65534, 65534)
    return {**environment(), "XDG_RUNTIME_DIR": str(directory)}


class Running:
    """A sandbox with both flows open."""

    def __init__(self, outer, mode, env, ca):
        self._outer, self._mode, self._env = outer, mode, env
        options = ["run", "--name", "live", "--quiet", "--allow", "tunnel.example", "--allow-cidr", "5.6.7.0/24"]
        argv = outer.command(mode, *options, "--", as_user(mode)[-1], "-c", CLIENT, ca)
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd="/"
        )
        assert self.told() == {"tunnel": "one", "plain": "one"}

    def told(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def set_policy(self, policy):
        """From another terminal; returns the moment before and what it printed."""
        argv = [*as_user(self._mode), "-c", "from sbxproxy.cli import main; main()", "policy", "set", "live", "-"]
        before = time.time()
        done = subprocess.run(argv, input=json.dumps(policy), capture_output=True, text=True, env=self._env, cwd="/", timeout=30)
        assert done.returncode == 0, done.stderr
        return before, done.stdout

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.told()

    def close(self):
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture
def running(outer, mode, runtime, open_path):
    found = Running(outer, mode, runtime, str(open_path / "ca.pem"))
    yield found
    found.close()


def test_l1_deny_all_cuts_both_and_ends_look_ups(running, outer):
    _, said = running.set_policy("deny-all")
    assert said == "live: deny-all; 2 flows cut, 0 kept\n"
    ended = {told["name"]: told for told in (running.told(), running.told())}
    assert set(ended) == {"tunnel", "plain"}
    assert {told["ended"] for told in ended.values()} <= {"ConnectionResetError", "SSLEOFError", "SSLError", "end"}
    assert abs(ended["tunnel"]["at"] - ended["plain"]["at"]) < 1
    outer.packets()
    found = running.ask()
    assert found["found"] == "none"
    assert found["reached"] in {"ConnectionResetError", "end"}
    assert outer.packets() == []


def test_l1_only_what_is_no_longer_allowed_is_cut(running):
    _, said = running.set_policy({"allow": ["tunnel.example"]})
    assert said == "live: user-defined; 1 flows cut, 1 kept\n"
    assert running.told()["name"] == "plain"
    found = running.ask()
    assert found["found"] == "1.2.3.4"
    assert found["reached"] in {"ConnectionResetError", "end"}


def test_l1_what_a_policy_allows_again_is_there_at_once(running):
    """Denials are not kept, neither by the sandbox's DNS nor by a resolver in it."""
    running.set_policy("deny-all")
    running.told(), running.told()
    assert running.ask()["found"] == "none"
    running.set_policy({"allow": ["tunnel.example"], "subnets": {"allow": ["5.6.7.0/24"]}})
    assert running.ask() == {"found": "1.2.3.4", "reached": "two"}


def test_l4_a_bad_policy_changes_nothing(running, mode):
    argv = [*as_user(mode), "-c", "from sbxproxy.cli import main; main()", "policy", "set", "live", "-"]
    done = subprocess.run(argv, input='{"allow": ["*"', capture_output=True, text=True, env=running._env, cwd="/", timeout=30)
    assert done.returncode != 0
    assert running.ask() == {"found": "1.2.3.4", "reached": "two"}
