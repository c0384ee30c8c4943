"""The files that make a sandbox's programs trust its authority, and where they belong."""

from __future__ import annotations

__all__ = ["NSS_DATABASE", "TrustFiles"]

from collections.abc import Sequence
from pathlib import Path

from sbxproxy.sandbox.tempdir import OwnedDirectory
from sbxproxy.tls.trust import (
    bundle_pem,
    java_trust_stores,
    java_truststore,
    proxy_environment,
    system_bundles,
    trust_environment,
)

RESOLV_CONF = b"# Any address will do: every query is answered by the sandbox's own DNS.\nnameserver 192.0.2.53\n"

NSS_DATABASE = Path(".pki", "nssdb")
"""Below a user's home directory: where Chromium and others have theirs."""


class TrustFiles:
    """Writes them, into a directory of the caller's or a temporary one that lives until ``close``."""

    __slots__ = ("_certificate_pem", "_directory", "_extra_roots", "_roots")

    def __init__(self, certificate_pem: bytes, *, roots: Path | None, extra_roots: Sequence[Path]) -> None:
        """Write nothing yet.

        Args:
            certificate_pem: the authority's certificate.
            roots: whom upstreams are verified with, if not the system's.
            extra_roots: and these.
        """
        self._certificate_pem = certificate_pem
        self._roots = roots
        self._extra_roots = tuple(extra_roots)
        self._directory: OwnedDirectory | None = None

    def write(self, directory: Path | None = None) -> tuple[Path, Path]:
        """Write ``ca.pem`` and ``bundle.pem``; return their paths."""
        where = self._where(directory)
        return _write(where / "ca.pem", self._certificate_pem), _write(where / "bundle.pem", self._bundle())

    def added(self, directory: Path | None = None) -> Path:
        """Return what holds, for programs that keep roots of their own, what these lack: after ``write``.

        That is the authority alone, as ``write`` wrote it, or a file that is written now with the operator's extra roots as well.
        """
        where = self._where(directory)
        if not self._extra_roots:
            return where / "ca.pem"
        return _write(where / "added.pem", self._certificate_pem.rstrip(b"\n") + b"\n" + self._extra())

    def environment(self, url: str | None = None, directory: Path | None = None) -> dict[str, str | None]:
        """Write the files, and return the variables that make clients trust the authority, and use the proxy at *url*.

        Without *url* inherited proxy variables are removed: ``None`` stands for what must be.
        """
        _, bundle = self.write(directory)
        return {**trust_environment(bundle=bundle, added=self.added(directory)), **proxy_environment(url)}

    def mounts(self, directory: Path | None = None, *, nss_home: Path | None = None) -> dict[Path, Path]:
        """Write what stands in for files of the system; return it by the path that it is to be seen at.

        Only paths that exist here are named, since nothing can be mounted over what isn't there; but for the NSS database, which was
        asked for. That is the directory with all of the files, among which NSS knows its own.
        """
        where = self._where(directory)
        found: dict[Path, Path] = {}
        bundles, stores = system_bundles(), java_trust_stores()
        pem = self._bundle() if bundles or stores else b""
        if bundles:
            found.update(dict.fromkeys(bundles, _write(where / "bundle.pem", pem)))
        if stores:
            found.update(dict.fromkeys(stores, _write(where / "truststore.jks", java_truststore(pem))))
        resolver = Path("/etc/resolv.conf")
        if resolver.exists():
            found[resolver.resolve()] = _write(where / "resolv.conf", RESOLV_CONF)
        if nss_home is not None:
            from sbxproxy.tls.nss import nss_database  # noqa: PLC0415 - few ask for it

            for name, content in nss_database(self._certificate_pem + b"\n" + self._extra()).items():
                _write(where / name, content)
            found[nss_home / NSS_DATABASE] = where
        return found

    def _where(self, directory: Path | None) -> Path:
        if directory is not None:
            return directory
        if self._directory is None:
            self._directory = OwnedDirectory()
        return self._directory.path

    def _bundle(self) -> bytes:
        return bundle_pem(self._certificate_pem, self._roots) + self._extra()

    def _extra(self) -> bytes:
        return b"".join(path.read_bytes().rstrip(b"\n") + b"\n" for path in self._extra_roots)

    def close(self) -> None:
        """Remove the temporary directory; again is harmless."""
        if self._directory is not None:
            self._directory.close()


def _write(path: Path, content: bytes) -> Path:
    """Write a file that all may read, in one step for whoever reads it."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.chmod(0o644)
    temporary.replace(path)
    return path
