"""Servers for the tests of this directory, each started by the first test that asks for it and ended with the last one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import give, world_directory
from support.krb5 import Realm, running_realm
from support.pgbouncer import running_pgbouncer
from support.postgres import NAME, USER, Build, Server, Servers, debian_build, npm_build


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with world_directory("postgres") as directory, contextlib.ExitStack() as stack:
        yield Servers(stack, directory)


@pytest.fixture(scope="session")
def old() -> Build:
    """Debian's PostgreSQL."""
    return debian_build()


@pytest.fixture(scope="session")
def new(npm_packages: Path) -> Build:
    """npm's PostgreSQL, which takes TLS without asking first."""
    return npm_build(npm_packages)


@pytest.fixture(scope="session")
def realm() -> Iterator[Realm]:
    with world_directory("krb5") as directory, running_realm(directory, user=USER, service=f"postgres/{NAME}") as realm:
        yield realm


@pytest.fixture(scope="session")
def kerberos_server(servers: Servers, old: Build, realm: Realm) -> Server:
    """A server that encrypts with Kerberos for whoever has a ticket, and has no TLS."""
    return servers.get(old, tls=False, realm=realm)


@pytest.fixture(scope="session")
def pgbouncer(servers: Servers, old: Build) -> Iterator[int]:
    """The port of a pooler with TLS."""
    server = servers.get(old)
    with world_directory("pgbouncer") as directory, running_pgbouncer(give(directory), server) as port:
        yield port
