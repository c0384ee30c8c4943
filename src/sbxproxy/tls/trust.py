"""What makes programs in a sandbox trust its authority and use its proxy: a bundle and variables.

There is no common variable. Each family of programs has its own, and they differ in one thing that matters:
most *replace* the roots a program would use, so they must name a file that holds the system's roots and the
authority (the bundle); a few *add* to them, so the authority alone is enough. Naming only the authority in a
replacing variable cuts the program off from every server whose TLS passes through untouched.

Left out on purpose:

* ``PGSSLROOTCERT``: Postgres is never terminated, so nothing needs it, and with any root file present libpq
  treats ``sslmode=require`` as ``verify-ca``: databases with a private authority would be refused.
* ``npm_config_cafile`` is removed, not set: npm is Node and obeys ``NODE_EXTRA_CA_CERTS`` as long as no
  ``cafile`` replaces it.
* ``UV_*``: uv obeys ``SSL_CERT_FILE``.
* Java (its own key store, no variable), GnuTLS programs such as wget, and Firefox: they need the file put
where they look, as ``system_bundles`` and ``java_trust_stores`` tell.
"""

from __future__ import annotations

__all__ = [
    "LOOPBACK",
    "bundle_pem",
    "der_certificates",
    "java_trust_stores",
    "java_truststore",
    "proxy_environment",
    "system_bundles",
    "system_roots",
    "trust_environment",
]

import hashlib
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from sbxproxy.errors import ConfigurationError

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Gentoo, Arch, NixOS; Alpine with ca-certificates
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL and kin
    "/etc/pki/tls/certs/ca-bundle.crt",  # the same, older; Amazon Linux
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine without the package; BSD, macOS
)

_JAVA_STORES = (
    "/etc/ssl/certs/java/cacerts",  # Debian, Ubuntu
    "/etc/pki/java/cacerts",  # Fedora and kin
    "/etc/pki/ca-trust/extracted/java/cacerts",
)
_JAVA_HOMES = ("usr/lib/jvm/*/lib/security/cacerts", "usr/lib/jvm/*/jre/lib/security/cacerts", "opt/java/*/lib/security/cacerts")

_REPLACING = (
    "SSL_CERT_FILE",  # OpenSSL, so Python, Ruby, PHP; also Go, .NET, uv, rustls-native-certs
    "REQUESTS_CA_BUNDLE",  # requests, and what is made of it: Azure CLI, conda
    "CURL_CA_BUNDLE",  # curl; requests looks here second
    "GIT_SSL_CAINFO",  # git
    "PIP_CERT",  # pip
    "AWS_CA_BUNDLE",  # AWS CLI and SDKs
    "CARGO_HTTP_CAINFO",  # cargo
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",  # gRPC's C core: Python, Ruby, C++
    "NIX_SSL_CERT_FILE",  # nix, and programs that nixpkgs patched
    "HTTPLIB2_CA_CERTS",  # httplib2: older Google clients
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",  # gcloud
    "BUNDLE_SSL_CA_CERT",  # Ruby's bundler
    "HEX_CACERTS_PATH",  # Elixir's hex
    "PERL_LWP_SSL_CA_FILE",  # Perl's LWP
    "DENO_CERT",  # adds, by Deno's manual; the bundle serves under either reading
)

_ADDING = (
    "NODE_EXTRA_CA_CERTS",  # Node, npm, yarn, Electron
)

_REMOVED = (
    "SSL_CERT_DIR",  # a directory that knows nothing of the authority; some read it first
    "npm_config_cafile",
)

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""What is reached without the proxy: the sandbox's own servers."""

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def system_roots() -> Path:
    """Find the PEM file of roots that this system maintains, else the one that comes with ``certifi``.

    Environment variables are not asked: the proxy may have been started from inside somebody's sandbox.
    """
    for bundle in map(Path, _BUNDLES):
        try:
            if bundle.stat().st_size > 0:
                return bundle
        except OSError:  # absent or out of reach: the next one
            continue
    import certifi  # noqa: PLC0415 - few systems need it

    return Path(certifi.where())


def system_bundles() -> list[Path]:
    """Return the bundles of roots that this system has, each once, as real paths: what programs read that obey no variable."""
    return _real(map(Path, _BUNDLES))


def java_trust_stores() -> list[Path]:
    """Return the trust stores of this system's Java installations, each once, as real paths."""
    homes = (path for pattern in _JAVA_HOMES for path in Path("/").glob(pattern))
    return _real([*map(Path, _JAVA_STORES), *homes])


def _real(paths: Iterable[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        try:
            if path.is_file():
                found[path.resolve()] = None
        except OSError:
            continue  # out of reach
    return list(found)


def der_certificates(pem: bytes, what: str) -> list[bytes]:
    """Return the certificates in *pem*, in DER.

    Raises:
        ConfigurationError: *what*, which *pem* is of, holds something that is no certificate.
    """
    from cryptography import x509  # noqa: PLC0415 - few sandboxes need it
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.utils import CryptographyDeprecationWarning  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # a system's roots are as they are
            certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigurationError(f"{what} holds something that is no certificate") from None
    return [certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates]


def java_truststore(pem: bytes) -> bytes:
    """Put the certificates of a bundle into a Java key store (JKS), which every Java reads, whatever it calls its default type.

    Java opens its own trust store without a password, and then leaves out of a PKCS #12 file whatever is encrypted, without a word; a
    tool may open the same file with the customary password. A JKS file holds certificates in the clear and serves both: the
    password is only in the digest at its end, which is checked by those who have one.

    Raises:
        ConfigurationError: *pem* holds something that is no certificate.
    """
    certificates = der_certificates(pem, "the bundle of roots")
    store = struct.pack(">III", 0xFEEDFEED, 2, len(certificates))  # magic number, version
    for number, encoded in enumerate(certificates):
        store += struct.pack(">I", 2) + _text(f"root {number}") + bytes(8)  # a trusted certificate, since 1970
        store += _text("X.509") + struct.pack(">I", len(encoded)) + encoded
    password = "changeit".encode("utf-16-be")
    return store + hashlib.sha1(password + b"Mighty Aphrodite" + store).digest()  # noqa: S324 - the format's


def _text(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode("ascii")


def bundle_pem(certificate_pem: bytes, roots: Path | None = None) -> bytes:
    """Join *roots* (the system's by default) and the authority's certificate to one PEM file.

    Raises:
        ConfigurationError: *roots* can't be read, or holds no certificate.
    """
    path = system_roots() if roots is None else roots
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"roots file {path}: {error.strerror or 'unreadable'}") from error
    if _BEGIN not in pem:
        raise ConfigurationError(f"roots file {path}: no PEM certificate in it")
    return pem.rstrip() + b"\n" + certificate_pem.strip() + b"\n"


def trust_environment(*, bundle: Path, added: Path) -> dict[str, str | None]:
    """Tell which variables make programs trust the authority.

    Args:
        bundle: the file that holds ``bundle_pem()``, as the sandbox sees it.
        added: the file that holds only what the system's roots lack, as the sandbox sees it: the authority's certificate, and roots
            that the operator verifies upstreams with besides.

    Returns:
        A value to set for each variable, or ``None`` where an inherited one must be removed.
    """
    return {
        **dict.fromkeys(_REPLACING, str(bundle)),
        **dict.fromkeys(_ADDING, str(added)),
        **dict.fromkeys(_REMOVED),
    }


def proxy_environment(url: str | None, *, no_proxy: Sequence[str] = LOOPBACK) -> dict[str, str | None]:
    """Tell which variables make programs use the proxy at *url* (``http://127.0.0.1:8080``), or none at all.

    Both spellings are set, since some programs read only one. curl ignores ``HTTP_PROXY`` in capitals, which
    in a CGI script is a request's ``Proxy`` header (CVE-2016-5385); here that matters little, as the sandbox
    has no other way out whatever such a header says. These variables ask for cooperation; they enforce
    nothing.
    """
    if url is None:
        names = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")
        return dict.fromkeys((*names, *(name.upper() for name in names)))
    exempt = ",".join(no_proxy)
    values = {"http_proxy": url, "https_proxy": url, "all_proxy": url, "no_proxy": exempt}
    return {
        **values,
        **{name.upper(): value for name, value in values.items()},
        "NODE_USE_ENV_PROXY": "1",  # Node from 22.21 and 24.0: fetch and http obey the others only with this
    }
