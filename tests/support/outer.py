"""Two network namespaces, one for the host and one for the whole Internet, a cable between, and a capture of all packets on the host.

Every address but the host's is local to the Internet, so that a server may have any. Root needs no user namespace for this, others
get one. The servers' sockets, and the capture's, are made by the process that holds the namespaces and handed to the test.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from support.captured import as_user, environment
from support.programs import require, unavailable

RESOLVER = "9.9.9.9"
"""The name server that the host's resolv.conf names."""

HOST, HOST6 = "192.88.97.7", "2600:7::7"
"""Addresses of the host itself."""

_HOLDER = """
import ctypes, json, os, socket, subprocess, sys
ip, meeting, resolver, wanted = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
def do(text):
    subprocess.run([ip, *text.split()], check=True)
def checked(result):
    if result:
        raise OSError(ctypes.get_errno(), "namespace")
def sysctl(name, value):
    try:
        with open("/proc/sys/net/" + name, "w") as file:
            file.write(value)
    except OSError:
        pass

# The Internet: all addresses are its own, but for the host's.
do("link set lo up")
do("route add local 0.0.0.0/0 dev lo")
do("-6 route add local ::/0 dev lo")
made = []
for kind, address, port in wanted["sockets"]:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, getattr(socket, kind))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind == "SOCK_STREAM":
        sock.listen(64)
    made.append(sock)
internet = os.open("/proc/self/ns/net", os.O_RDONLY)
keeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # until we are gone

# The host, with one cable to it. Nothing is sent on it but what programs send: neighbours are known, and no routers are looked for.
checked(libc.unshare(0x40000000))
host = os.open("/proc/self/ns/net", os.O_RDONLY)
do("link set lo up")
do("link add eth0 address 02:00:00:00:00:01 type veth peer name out0 address 02:00:00:00:00:02 netns %d" % keeper.pid)
def cable(name, lines):
    sysctl("ipv6/conf/%s/accept_ra" % name, "0")
    do("link set %s addrgenmode none multicast off" % name)
    do("link set %s up" % name)
    for line in lines:
        do(line)
four, six = wanted["addresses"]
cable("eth0", [
    "addr add %s/32 dev eth0" % four, "-6 addr add %s/128 dev eth0 nodad" % six,
    "neigh add 192.88.97.1 lladdr 02:00:00:00:00:02 dev eth0", "-6 neigh add 2600:7::1 lladdr 02:00:00:00:00:02 dev eth0",
    "route add default via 192.88.97.1 dev eth0 onlink", "-6 route add default via 2600:7::1 dev eth0 onlink",
])
sysctl("ipv4/ping_group_range", "0 65535")
checked(libc.setns(internet, 0))
cable("out0", [
    "neigh add %s lladdr 02:00:00:00:00:01 dev out0" % four, "-6 neigh add %s lladdr 02:00:00:00:00:01 dev out0" % six,
    "route add %s/32 dev out0 table local" % four, "-6 route add %s/128 dev out0 table local" % six,
])
checked(libc.setns(host, 0))
subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
capture = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL, on every interface
try:
    capture.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
except PermissionError:  # for root of the machine alone
    capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
made.insert(0, capture)
with socket.socket(socket.AF_UNIX) as out:
    out.connect(meeting)
    socket.send_fds(out, [b"%d" % keeper.pid], [sock.fileno() for sock in made])
for sock in made:
    sock.close()
sys.stdin.read()
"""


@dataclass(frozen=True, order=True)
class Packet:
    """One that was on the wire; ports of 0 where the protocol has none."""

    protocol: int
    source: str
    destination: str
    source_port: int = 0
    port: int = 0
    payload: bytes = field(default=b"", repr=False, compare=False)


@dataclass
class Outer:
    pid: int
    internet_pid: int
    capture: socket.socket
    sockets: list[socket.socket]

    def internet(self, argv: Sequence[str]) -> list[str]:
        """Return *argv* as it is to be run to be on the Internet; with privileges there only as root."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [require("nsenter"), f"--target={self.internet_pid}", *user, "--net", "--", *argv]

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return *argv* as it is to be run to be on the host."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [require("nsenter"), f"--target={self.pid}", *user, "--net", "--mount", f"--wd={os.getcwd()}", "--", *argv]

    def plain(self, mode: str, *argv: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a Python program on the host as *mode*'s user, held by nothing."""
        return _run(self.inside([*as_user(mode), *argv]), **options)

    def command(self, mode: str, *arguments: str) -> list[str]:
        """Return the command line of ``sbxproxy`` on the host as *mode*'s user."""
        return self.inside([*as_user(mode), "-c", "from sbxproxy.cli import main; main()", *arguments])

    def run(self, mode: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return _run(self.command(mode, "run", *arguments), **options)

    def packets(self, *, wait: float = 0.3) -> list[Packet]:
        """Take what was captured since the last time, and in *wait* seconds more."""
        found = []
        deadline = time.monotonic() + wait
        while select.select([self.capture], [], [], max(0, deadline - time.monotonic()))[0]:
            data, (name, protocol, kind, *_) = self.capture.recvfrom(65535)
            packet = _parse(protocol, data)
            if packet.protocol == 0 and packet.destination == "ff02::16":
                continue  # the host's kernel says which multicast groups it is in (RFC 3810), now and then
            if kind != socket.PACKET_OUTGOING or name != "lo":  # on loopback each is seen twice
                found.append(packet)
        _, lost = struct.unpack("II", self.capture.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
        assert lost == 0, "the capture has lost packets"
        return found


def _run(argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    defaults = {
        "capture_output": True,
        "text": True,
        "timeout": 90,
        "env": environment(),
        "stdin": subprocess.DEVNULL,
        "cwd": "/",
    }
    return subprocess.run(argv, **{**defaults, **options})


def _parse(protocol: int, data: bytes) -> Packet:
    if protocol == 0x0800 and len(data) >= 20:
        head = (data[0] & 15) * 4
        number, source, destination = data[9], data[12:16], data[16:20]
    elif protocol == 0x86DD and len(data) >= 40:
        head, number, source, destination = 40, data[6], data[8:24], data[24:40]
    else:
        return Packet(-protocol, "", "")
    ports = struct.unpack_from("!HH", data, head) if number in {6, 17, 132, 136} and len(data) >= head + 4 else (0, 0)
    return Packet(number, str(ip_address(source)), str(ip_address(destination)), *ports, data[head:])


@contextmanager
def open_outer(*sockets: tuple[str, str, int]) -> Iterator[Outer]:
    """Make one with *sockets*: ``("SOCK_DGRAM", "9.9.9.9", 53)`` and the like on the Internet, in ``Outer.sockets``; the test serves them."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as meeting:
        path, resolver = str(Path(directory, "outer")), Path(directory, "resolv.conf")
        resolver.write_text(f"nameserver {RESOLVER}\noptions timeout:10 attempts:2\n")
        resolver.chmod(0o644)
        os.chmod(directory, 0o755)
        meeting.bind(path)
        meeting.listen()
        orders = json.dumps({"addresses": [HOST, HOST6], "sockets": sockets})
        holder = subprocess.Popen(
            [
                require("unshare"), *user, "--net", "--mount", "--",
                sys.executable, "-I", "-c", _HOLDER, require("ip"), path, str(resolver), orders,
            ],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        found: list[socket.socket] = []
        try:
            meeting.settimeout(0.2)
            for _ in range(150):
                try:
                    connection, _ = meeting.accept()
                    break
                except TimeoutError:
                    if holder.poll() is not None:
                        unavailable(f"no network namespace can be made here: {holder.stderr.read()[-300:]}")
            else:
                unavailable("no network namespace can be made here")
            with connection:
                connection.settimeout(30)
                pid, descriptors, _, _ = socket.recv_fds(connection, 20, len(sockets) + 1)
            found = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            yield Outer(holder.pid, int(pid), found[0], found[1:])
        finally:
            for each in found:
                each.close()
            holder.kill()
            holder.communicate()
