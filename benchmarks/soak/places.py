"""What the visitors go to: an HTTPS server, a name server, and PostgreSQL where it is installed."""

from __future__ import annotations

__all__ = ["serve_names", "start_database"]

import struct
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import dns.exception
import dns.message
import dns.rrset
import trio

from sbxproxy.cli.cluster import find_binaries, lay_out

USER = "soak"


async def serve_names(*, task_status: trio.TaskStatus[int]) -> None:
    """Answer each query over UDP on loopback with one text; started with the port."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        task_status.started(sock.getsockname()[1])
        while True:
            wire, peer = await sock.recvfrom(4096)
            try:
                query = dns.message.from_wire(wire)
            except (dns.exception.DNSException, struct.error):
                continue
            response = dns.message.make_response(query)
            for question in query.question:
                response.answer.append(dns.rrset.from_text(question.name, 30, "IN", "TXT", '"soak"'))
            await sock.sendto(response.to_wire(), peer)


def start_database(stack: ExitStack, directory: Path, chain: bytes) -> int | None:
    """Make and start PostgreSQL; returns its port, or ``None`` where it isn't installed."""
    binaries = find_binaries()
    if binaries is None:
        return None
    directory.mkdir()
    for parent in (directory, *directory.parents[:2]):
        if parent.stat().st_mode & 0o005 != 0o005:  # what others can reach stays as it is, /tmp before all
            parent.chmod(0o755)  # its server is another user
    cluster = lay_out(binaries, directory, chain, user=USER)
    subprocess.run(cluster.initdb, check=True, capture_output=True, **cluster.process)
    process = subprocess.Popen(
        cluster.serve, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **cluster.process
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    time.sleep(1)
    return cluster.port
