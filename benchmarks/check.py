"""Looks once at every subject before it is measured: a proxy that does something else than asked is quick."""

from __future__ import annotations

__all__ = ["Wrong", "check_denied", "check_terminated", "check_tunnel"]

import contextlib
import socket
import ssl
from pathlib import Path

from benchmarks.rig import PIPELINED, Rig, tunnel_name
from benchmarks.subjects.subject import By, Running
from sbxproxy.testing import client_hello

_PATIENCE = 15.0


class Wrong(Exception):  # noqa: N818 - a verdict, shown in the table
    """What a subject does instead."""


def check_tunnel(rig: Rig, running: Running) -> None:
    """See that the origin's certificate, verified, comes through, and a request goes unchanged.

    Raises:
        Wrong: it doesn't.
    """
    name = tunnel_name("tls")
    port = rig.ports["tls"]
    _request(running.port or port, _target(running.tunnels, name, port), f"{name}:{port}", rig.certificates.origin_ca, "0")


def check_terminated(rig: Rig, running: Running, name: str = PIPELINED) -> None:
    """See that a certificate of the proxy's CA comes for *name*, and the header arrives at the origin.

    Raises:
        Wrong: it doesn't.
    """
    port = rig.ports["tls"]
    assert running.terminated is not None
    assert running.authority is not None
    own = running.terminated_port or running.port
    _request(own, _target(running.terminated, name, port), f"{name}:{port}", running.authority, "1")


def check_denied(running: Running) -> None:
    """See that what the subject must refuse doesn't reach the origin.

    Raises:
        Wrong: it does.
    """
    if running.denied is None:
        return
    target, name = running.denied
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), timeout=_PATIENCE) as sock:
        if target:
            sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            if b" 200" not in sock.recv(65536).partition(b"\r\n")[0]:
                return
        sock.sendall(client_hello(name))
        if sock.recv(1) == b"*":
            raise Wrong(f"{name} was let through")


def _target(by: By, name: str, port: int) -> str:
    match by:
        case By.NAME:
            return f"{name}:{port}"
        case By.ADDRESS:
            return f"127.0.0.1:{port}"
        case By.SNI | By.NOTHING:
            return ""


def _request(port: int, target: str, host: str, authority: Path, expected: str) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as sock:
            if target:
                sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                _read_head(sock)
            with context.wrap_socket(sock, server_hostname=host.partition(":")[0]) as tls:
                tls.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n".encode())
                body = _body(tls)
    except ssl.SSLCertVerificationError as error:
        raise Wrong(f"another certificate: {error.verify_message}") from None
    except OSError as error:
        raise Wrong(f"no answer: {error}") from None
    if body != expected:
        raise Wrong("the header did not arrive" if expected == "1" else "the header was added to a tunnel's request")


def _read_head(sock: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(1)
        if not data:
            raise Wrong("closed before it answered CONNECT")
        head += data
    status = head.partition(b"\r\n")[0]
    if b" 200" not in status:
        raise Wrong(f"refused CONNECT: {status.decode(errors='replace')}")


def _body(tls: ssl.SSLSocket) -> str:
    answer = b""
    while len(answer.partition(b"\r\n\r\n")[2]) < 32:
        data = tls.recv(4096)
        if not data:
            raise Wrong("an answer was cut short")
        answer += data
    return answer.partition(b"\r\n\r\n")[2][:1].decode()
