"""A throw-away PostgreSQL server on loopback: where its programs are, and how to make and start it."""

from __future__ import annotations

__all__ = ["Cluster", "find_binaries", "lay_out"]

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Cluster:
    """How to run one; whoever runs it ends it.

    Attributes:
        port: where it will listen.
        initdb: the command that makes it.
        serve: the command that serves it.
        process: what both need as options of ``subprocess``: a server refuses to be root.
    """

    port: int
    initdb: list[str]
    serve: list[str]
    process: Mapping[str, Any]


def find_binaries() -> Path | None:
    """Find the directory of an installed server's programs, the newest of Debian's first; ``None`` if there is none."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[4].zfill(4))
    found = str(servers[-1]) if servers else shutil.which("postgres")
    directory = None if found is None else Path(found).resolve().parent
    return directory if directory is not None and (directory / "initdb").exists() else None


def lay_out(binaries: Path, directory: Path, chain: bytes, *, user: str, settings: Mapping[str, object] | None = None) -> Cluster:
    """Prepare *directory* for a cluster with TLS, in which *user* may do everything without a password.

    Args:
        binaries: see ``find_binaries``.
        directory: empty, for the server alone; the caller removes it.
        chain: key and certificate, PEM.
        user: the database's user.
        settings: further ones of the server.
    """
    data, private = directory / "data", directory / "server.pem"
    data.mkdir()
    private.touch(mode=0o600)  # others must not be able to read a key
    private.write_bytes(chain)
    process: dict[str, Any] = {"cwd": directory}
    if os.geteuid() == 0:
        process.update(user=NOBODY, group=NOBODY, extra_groups=[])
        for path in (directory, data, private):
            os.chown(path, NOBODY, NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    values = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "ssl": "on",
        "ssl_cert_file": private, "ssl_key_file": private, **(settings or {}),
    }  # fmt: skip
    options = [text for name, value in values.items() for text in ("-c", f"{name}={value}")]
    initdb = ["-U", user, "--auth=trust", "--no-sync", "--locale=C", "--no-instructions"]
    return Cluster(
        port=port,
        initdb=[str(binaries / "initdb"), "-D", str(data), *initdb],
        serve=[str(binaries / "postgres"), "-D", str(data), *options],
        process=process,
    )
