"""A certificate database for NSS, the TLS library of Chromium, Firefox and kin, which obey no variable and read no PEM file.

It is SQLite inside, but the layout is NSS's own, so NSS's ``certutil`` writes it: the one trust file that takes a program which may
be absent.
"""

from __future__ import annotations

__all__ = ["nss_database"]

import subprocess
import tempfile
from pathlib import Path

from sbxproxy.errors import ConfigurationError
from sbxproxy.tls.trust import der_certificates

_PATIENCE = 60.0


def nss_database(pem: bytes) -> dict[str, bytes]:
    """Make a database, without password, that trusts the certificates in *pem* as authorities of TLS servers.

    Roots that NSS programs bring along or find elsewhere go on being trusted. Takes a tenth of a second.

    Returns:
        The files of the database's directory, by name.

    Raises:
        ConfigurationError: *pem* holds something that is no certificate; there is no ``certutil``, or it failed.
    """
    certificates = der_certificates(pem, "NSS database: a file of roots")
    with tempfile.TemporaryDirectory(prefix="sbxproxy-nss-") as name:
        place = Path(name)
        database = place / "db"
        database.mkdir()
        batch = []
        for number, certificate in enumerate(certificates):
            path = place / f"{number}.der"
            path.write_bytes(certificate)
            batch.append(f'-A -n "sbxproxy root {number}" -t C,, -i "{path}"\n')
        commands = place / "batch"
        commands.write_text("".join(batch))
        _certutil("-N", "--empty-password", "-d", f"sql:{database}")
        _certutil("-B", "-i", str(commands), "-d", f"sql:{database}")
        return {path.name: path.read_bytes() for path in database.iterdir()}


def _certutil(*arguments: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - of our own making, but for the directory
            ["certutil", *arguments],  # noqa: S607 - where it is depends on the system
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigurationError(
            "NSS database: certutil is not installed (Debian and Ubuntu: libnss3-tools, Fedora: nss-tools)"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"NSS database: certutil can't be run: {type(error).__name__}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigurationError(f"NSS database: certutil failed: {said[-1] if said else f'exit code {done.returncode}'}")
