"""A sandbox's own certificate authority: made in memory, dies with the process, or with those that serve the sandbox together.

OpenSSL is imported when the first certificate is minted: a program waits for its sandbox's trust files, and until it connects to a host
with rules they are all that it needs. How such a certificate is served is told in ``serving``.
"""

from __future__ import annotations

__all__ = ["Authority", "Founding"]

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn, Self, SupportsIndex

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sbxproxy.hostname import Hostname

if TYPE_CHECKING:
    from OpenSSL import SSL

_LIFETIME = timedelta(days=30)
"""A sandbox's trust files are read once by each program in it, so this is how long a program may run; the key
is nowhere but in memory, so a shorter life would protect nothing more."""

_LEAF_LIFETIME = timedelta(hours=24)
_BACKDATED = timedelta(hours=1)  # for sandboxes whose clock lags behind: a virtual machine resumed from a snapshot
_RENEW_LEAF = timedelta(hours=2)  # before its end, so that no handshake meets an expired leaf
_RENEW_AUTHORITY = timedelta(days=2)  # before its end, so that leaves are always given their full life

_COMMON_NAME_MAX = 64  # RFC 5280, appendix A.1: ub-common-name
_TAG_BYTES = 4  # tells the authorities of equally named sandboxes apart in one trust store


@dataclass(frozen=True, slots=True)
class _Leaf:
    context: SSL.Context
    not_before: datetime
    renew: datetime


@dataclass(frozen=True, slots=True)
class Founding:
    """What an authority is made of, made before it: for processes that are to serve one sandbox together.

    Attributes:
        key: the private key (RFC 5958, DER); whoever holds it can pass for any host towards the sandbox's programs.
        certificate: the authority's certificate (DER).
    """

    key: bytes = field(repr=False)
    certificate: bytes

    @classmethod
    def make(cls, name: str) -> Self:
        """Make the key and the certificate of the sandbox *name*."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(
            key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            _issue(key, _subject(name), _now()).public_bytes(Encoding.DER),
        )

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError("what an authority is made of can't be pickled: it holds a key")


class Authority:
    """Mints server certificates for one sandbox, for names that policy has already admitted.

    The certificate is re-issued two days before its end with the same key and subject: leaves verify under
    either, so a sandbox that lives longer only needs its trust files written again from ``certificate_pem``.

    The key can't be had from this object: no accessor, nothing in ``repr``, no pickling and no copying.
    """

    __slots__ = (
        "_certificate",
        "_clock",
        "_key",
        "_leaf_extensions",
        "_leaf_key",
        "_leaves",
        "_leaves_max",
        "_subject",
    )

    def __init__(
        self,
        *,
        name: str = "sandbox",
        leaves: int = 1024,
        clock: Callable[[], datetime] | None = None,
        founding: Founding | None = None,
    ) -> None:
        """Make the keys and the certificate, about a millisecond.

        Args:
            name: shown in the certificate's subject, cut and cleaned as needed; any text will do.
            leaves: most certificates kept, about 20 KiB each; the one unused for longest goes first.
            clock: tells the time of day, with a time zone; for tests.
            founding: the key and the certificate, if they were made already; *name* stands in it.

        Raises:
            ValueError: *founding* holds something else.
        """
        if leaves < 1:
            raise ValueError("leaves must be positive")
        self._clock = clock or _now
        if founding is None:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._subject = _subject(name)
            self._certificate = self._issue_own()
        else:
            self._key, self._certificate = _read(founding)
            self._subject = self._certificate.subject
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_extensions = _leaf_extensions(self._leaf_key.public_key(), self._key.public_key())
        self._leaves: dict[Hostname, _Leaf] = {}  # in the order of last use
        self._leaves_max = leaves

    def __repr__(self) -> str:
        return f"<Authority {self._subject.rfc4514_string()!r}, {len(self._leaves)} leaves>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("an Authority can't be copied or pickled: its key stays in this process")

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate, the newest one; the only part that leaves this object."""
        self._renew(self._clock())
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def expires(self) -> datetime:
        """When the newest certificate ends; programs that trust an older one stop at its own end."""
        return self._certificate.not_valid_after_utc

    def server_context(self, name: Hostname) -> SSL.Context:
        """Return a server-side context that serves *name* and nothing else, minted or from the cache.

        TLS 1.2 and 1.3; ``http/1.1`` if the client offers application protocols, alert 120 if it offers only
        others.
        """
        now = self._clock()
        leaf = self._leaves.pop(name, None)
        if leaf is None or not leaf.not_before <= now < leaf.renew:
            leaf = self._mint(name, now)
        self._leaves[name] = leaf
        if len(self._leaves) > self._leaves_max:
            del self._leaves[next(iter(self._leaves))]
        return leaf.context

    def _mint(self, name: Hostname, now: datetime) -> _Leaf:
        self._renew(now)
        not_before, not_after = now - _BACKDATED, min(now + _LEAF_LIFETIME, self.expires)
        # RFC 5280, 4.2.1.6: a certificate without a subject must mark its alternative name critical.
        short = len(name) <= _COMMON_NAME_MAX
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if short else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(attributes))
            .issuer_name(self._subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=not short)
        )
        for extension, critical in self._leaf_extensions:
            builder = builder.add_extension(extension, critical=critical)
        from sbxproxy.tls.serving import server_context  # noqa: PLC0415 - OpenSSL, see above

        context = server_context(name, builder.sign(self._key, hashes.SHA256()), self._leaf_key)
        return _Leaf(context, not_before, not_after - _RENEW_LEAF)

    def _renew(self, now: datetime) -> None:
        if now >= self.expires - _RENEW_AUTHORITY:
            self._certificate = self._issue_own()

    def _issue_own(self) -> x509.Certificate:
        return _issue(self._key, self._subject, self._clock())


def _read(founding: Founding) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = load_der_private_key(founding.key, None)
    certificate = x509.load_der_x509_certificate(founding.certificate)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("an authority's certificate must be of its own key, on an elliptic curve")
    return key, certificate


def _issue(key: ec.EllipticCurvePrivateKey, subject: x509.Name, now: datetime) -> x509.Certificate:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _subject(name: str) -> x509.Name:
    """Name the sandbox in letters that no tool can stumble over, and tell it from its namesakes."""
    tag = secrets.token_hex(_TAG_BYTES)
    room = _COMMON_NAME_MAX - len("sbxproxy  ") - len(tag)
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:room].strip("-") or "sandbox"
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sbxproxy"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"sbxproxy {clean} {tag}"),
        ]
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _leaf_extensions(leaf: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePublicKey) -> list[tuple[x509.ExtensionType, bool]]:
    """List what all leaves have in common, and whether it is critical (RFC 5280, 4.2)."""
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(leaf), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), False),
    ]
