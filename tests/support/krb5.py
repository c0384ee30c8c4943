"""A Kerberos realm of one server on loopback, so that clients have a ticket to be encrypted with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.daemons import PortTakenError, accepts, daemon, find_program, free_port, give, run_tool

REALM = "TEST.EXAMPLE"

_KRB5 = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    .example.com = {realm}
[logging]
    kdc = STDERR
    default = STDERR
"""

_KDC = """\
[realms]
    {realm} = {{
        database_name = {directory}/principal
        key_stash_file = {directory}/stash
        acl_file = {directory}/acl
        kdc_listen = ""
        kdc_tcp_listen = 127.0.0.1:{port}
    }}
"""


@dataclass(frozen=True)
class Realm:
    """A running realm.

    Attributes:
        directory: its files.
        service_keytab: the key of the server that users get tickets for.
        tickets: a cache with the user's ticket.
    """

    directory: Path
    service_keytab: Path
    tickets: Path

    def environment(self, *, ticket: bool) -> dict[str, str]:
        """What a program needs to know of the realm, with or without a ticket for it."""
        return {
            "KRB5_CONFIG": str(self.directory / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
            "KRB5CCNAME": f"FILE:{self.tickets if ticket else self.directory / 'none'}",
        }


@contextlib.contextmanager
def running_realm(directory: Path, *, user: str, service: str) -> Iterator[Realm]:
    """Run a realm with *user*, who has a ticket, and *service* (``postgres/db.example.com``), which has a key.

    Args:
        directory: empty, and the server user's own.
        user: a principal of the realm.
        service: another one.
    """
    tools = {name: find_program(name) for name in ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")}
    realm = Realm(directory, directory / "service.keytab", directory / "tickets")
    environment = realm.environment(ticket=True)
    made = False
    for _ in range(10):
        port = free_port()
        for name, text in (("krb5.conf", _KRB5), ("kdc.conf", _KDC)):
            path = directory / name
            path.write_text(text.format(realm=REALM, port=port, directory=directory))
            give(path, mode=0o644)
        if not made:
            made = True
            run_tool([tools["kdb5_util"], "create", "-s", "-r", REALM, "-P", "throw away"], environment, cwd=directory)
            keys = directory / "user.keytab"
            for principal, keytab in ((user, keys), (service, realm.service_keytab)):
                for query in (f"addprinc -randkey {principal}", f"ktadd -k {keytab} {principal}"):
                    run_tool([tools["kadmin.local"], "-r", REALM, "-q", query], environment, cwd=directory)
        log = directory / "kdc.log"
        log.unlink(missing_ok=True)
        command = [tools["krb5kdc"], "-n", "-r", REALM, "-P", str(directory / "kdc.pid")]
        try:
            with daemon(command, environment, log=log, ready=lambda: accepts(port)):  # noqa: B023
                run_tool([tools["kinit"], "-k", "-t", str(keys), user], environment, cwd=directory)
                realm.tickets.chmod(0o644)
                yield realm
                return
        except PortTakenError:
            continue
    raise AssertionError("no free port was found")
