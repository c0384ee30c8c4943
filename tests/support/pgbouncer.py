"""pgbouncer, a pooler, with TLS in front of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from support.daemons import PortTakenError, accepts, daemon, find_program, free_port, give
from support.postgres import DATABASE, PASSWORD, USER, Server

_INI = """\
[databases]
{database} = host=127.0.0.1 port={server} dbname={database} user={user} password='{password}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users.txt
pool_mode = session
client_tls_sslmode = require
client_tls_key_file = {key}
client_tls_cert_file = {certificate}
server_tls_sslmode = {server_tls}
"""


@contextlib.contextmanager
def running_pgbouncer(directory: Path, server: Server) -> Iterator[int]:
    """Run a pooler for *server*, which must have a certificate's files beside its root; yields the port.

    Args:
        directory: empty, and the server user's own.
        server: where it connects to.
    """
    program = find_program("pgbouncer")
    users = directory / "users.txt"
    users.write_text(f'"{USER}" "{PASSWORD}"\n')
    give(users, mode=0o600)
    for _ in range(10):
        port = free_port()
        ini = directory / "pgbouncer.ini"
        ini.write_text(
            _INI.format(
                database=DATABASE, user=USER, password=PASSWORD, server=server.port, port=port, directory=directory,
                key=server.root.with_name("server.key"), certificate=server.root.with_name("server.pem"),
                server_tls="require" if server.tls else "disable",
            )
        )  # fmt: skip
        give(ini, mode=0o600)
        log = directory / "pgbouncer.log"
        log.unlink(missing_ok=True)
        try:
            # Newer ones wait for their clients on SIGTERM, but SIGQUIT is ignored where a shell's background job was.
            with daemon([program, str(ini)], {}, log=log, ready=lambda: accepts(port)):  # noqa: B023
                yield port
                return
        except PortTakenError:
            continue
    raise AssertionError("no free port was found")
