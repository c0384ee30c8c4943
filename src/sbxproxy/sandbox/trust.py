"""The files that make a sandbox's programs trust its authority, and where they belong."""

from __future__ import annotations

__all__ = ["NSS_DATABASE", "TrustFiles"]

from collections.abc import Callable, Sequence
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

    __slots__ = ("_certificate_pem", "_directory", "_extra_roots", "_nss", "_reserved", "_roots")

    def __init__(self, certificate_pem: Callable[[], bytes], *, roots: Path | None, extra_roots: Sequence[Path]) -> None:
        """Write nothing yet.

        Args:
            certificate_pem: returns the authority's certificate.
            roots: whom upstreams are verified with, if not the system's.
            extra_roots: and these.
        """
        self._certificate_pem = certificate_pem
        self._roots = roots
        self._extra_roots = tuple(extra_roots)
        self._directory: OwnedDirectory | None = None
        self._reserved: tuple[Path, ...] = ()
        self._nss = False

    def write(self, directory: Path | None = None) -> tuple[Path, Path]:
        """Write ``ca.pem`` and ``bundle.pem``; return their paths."""
        where = self._where(directory)
        return self._write(where / "ca.pem"), self._write(where / "bundle.pem")

    def environment(self, url: str | None = None, directory: Path | None = None) -> dict[str, str | None]:
        """Write the files, and return the variables that make clients trust the authority, and use the proxy at *url*.

        Without *url* inherited proxy variables are removed: ``None`` stands for what must be.
        """
        where = self._where(directory)
        self.write(directory)
        if self._extra_roots:
            self._write(self._added(where))
        return {**self._variables(where), **proxy_environment(url)}

    def mounts(self, directory: Path | None = None, *, nss_home: Path | None = None) -> dict[Path, Path]:
        """Write what stands in for files of the system; return it by the path that it is to be seen at.

        Only paths that exist here are named, since nothing can be mounted over what isn't there; but for the NSS database, which was
        asked for. That is the directory with all of the files, among which NSS knows its own.
        """
        where = self._where(directory)
        found = _mounted(where)
        for path in dict.fromkeys(found.values()):
            self._write(path)
        if nss_home is not None:
            self._write_nss(where)
            found[nss_home / NSS_DATABASE] = where
        return found

    def reserve(self, *, nss_home: Path | None = None) -> tuple[dict[str, str | None], dict[Path, Path]]:
        """Make the files, empty, so that they can be mounted before there is a certificate; ``fill`` must follow before they are read.

        Returns:
            What ``environment`` and ``mounts`` would.
        """
        where = self._where(None)
        found = _mounted(where)
        self._reserved = tuple(dict.fromkeys((where / "ca.pem", where / "bundle.pem", self._added(where), *found.values())))
        for path in self._reserved:
            path.touch()
            path.chmod(0o644)
        if nss_home is not None:
            self._nss = True
            found[nss_home / NSS_DATABASE] = where
        return {**self._variables(where), **proxy_environment(None)}, found

    def fill(self) -> None:
        """Write what belongs in the files that ``reserve`` has made, and in these very files: others would not be those mounted."""
        for path in self._reserved:
            path.write_bytes(self._content(path.name))
        if self._nss:
            self._write_nss(self._where(None))

    def _variables(self, where: Path) -> dict[str, str | None]:
        return trust_environment(bundle=where / "bundle.pem", added=self._added(where))

    def _added(self, where: Path) -> Path:
        """Return what holds, for programs that keep roots of their own, what these lack: the authority, and the operator's extra roots."""
        return where / ("added.pem" if self._extra_roots else "ca.pem")

    def _where(self, directory: Path | None) -> Path:
        if directory is not None:
            return directory
        if self._directory is None:
            self._directory = OwnedDirectory()
        return self._directory.path

    def _write(self, path: Path) -> Path:
        return _write(path, self._content(path.name))

    def _write_nss(self, where: Path) -> None:
        from sbxproxy.tls.nss import nss_database  # noqa: PLC0415 - few ask for it

        for name, content in nss_database(self._certificate_pem() + b"\n" + self._extra()).items():
            _write(where / name, content)

    def _content(self, name: str) -> bytes:
        match name:
            case "resolv.conf":
                return RESOLV_CONF
            case "ca.pem":
                return self._certificate_pem()
            case "added.pem":
                return self._certificate_pem().rstrip(b"\n") + b"\n" + self._extra()
            case "truststore.jks":
                return java_truststore(self._bundle())
            case _:
                return self._bundle()

    def _bundle(self) -> bytes:
        return bundle_pem(self._certificate_pem(), self._roots) + self._extra()

    def _extra(self) -> bytes:
        return b"".join(path.read_bytes().rstrip(b"\n") + b"\n" for path in self._extra_roots)

    def close(self) -> None:
        """Remove the temporary directory; again is harmless."""
        if self._directory is not None:
            self._directory.close()


def _mounted(where: Path) -> dict[Path, Path]:
    resolver = Path("/etc/resolv.conf")
    return {
        **dict.fromkeys(system_bundles(), where / "bundle.pem"),
        **dict.fromkeys(java_trust_stores(), where / "truststore.jks"),
        **({resolver.resolve(): where / "resolv.conf"} if resolver.exists() else {}),
    }


def _write(path: Path, content: bytes) -> Path:
    """Write a file that all may read, in one step for whoever reads it."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.chmod(0o644)
    temporary.replace(path)
    return path
