"""A network namespace with one address that isn't loopback: where ``sbxproxy run`` and the servers that it leads to both are.

A captured program keeps its own loopback, so a server that it is to reach must have another address, and tests should depend on none
of the machine's. The namespace is held by a process; its listening sockets are handed to the test, which serves them in its own
event loop. Root needs no user namespace for this; others get one in which they are who they were, and only the holder has rights.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from support.programs import require, unavailable

ADDRESS = "198.51.100.7"

# Addresses and flags are set by the ioctls of netdevice(7), so that no program is needed for it.
_HOLDER = f"""
import array, fcntl, socket, struct, sys
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton({ADDRESS!r}))
fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running
fcntl.ioctl(control, 0x8916, struct.pack("16s", b"lo:1") + address)  # SIOCSIFADDR
listeners = [socket.create_server(({ADDRESS!r}, 0), backlog=64) for _ in range(int(sys.argv[2]))]
with socket.socket(socket.AF_UNIX) as out:
    out.connect(sys.argv[1])
    socket.send_fds(out, [b"!"], [listener.fileno() for listener in listeners])
for listener in listeners:
    listener.close()
sys.stdin.read()
"""


@dataclass(frozen=True)
class Island:
    """The namespace and its listening sockets, which the test closes."""

    pid: int
    sockets: Sequence[socket.socket]

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return *argv* as it is to be run to be inside."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [require("nsenter"), f"--target={self.pid}", *user, "--net", "--", *argv]

    def listener(self, number: int) -> trio.SocketListener:
        """Return a listener for the event loop on one of the sockets."""
        return trio.SocketListener(trio.socket.from_stdlib_socket(self.sockets[number].dup()))

    def port(self, number: int) -> int:
        port: int = self.sockets[number].getsockname()[1]
        return port


@contextmanager
def open_island(sockets: int) -> Iterator[Island]:
    """Make one with *sockets* listening sockets on ``ADDRESS``."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as meeting:
        path = str(Path(directory, "island"))
        meeting.bind(path)
        meeting.listen()
        meeting.settimeout(30)
        holder = subprocess.Popen(
            [require("unshare"), *user, "--net", "--", sys.executable, "-I", "-c", _HOLDER, path, str(sockets)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        found: list[socket.socket] = []
        try:
            try:
                with _accept(meeting, holder) as connection:
                    connection.settimeout(30)
                    _, descriptors, _, _ = socket.recv_fds(connection, 1, sockets)
            except TimeoutError:
                unavailable("no network namespace can be made here")
            found = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            yield Island(holder.pid, found)
        finally:
            for each in found:
                each.close()
            holder.kill()
            holder.communicate()


def _accept(meeting: socket.socket, holder: subprocess.Popen[str]) -> socket.socket:
    """Wait for the holder, but not if it has ended."""
    meeting.settimeout(0.2)
    for _ in range(150):
        try:
            return meeting.accept()[0]
        except TimeoutError:
            if holder.poll() is not None:
                break
    raise TimeoutError
