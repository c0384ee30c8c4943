"""The certificates of a run: a CA for origins, and one that proxies sign with where they can't make their own."""

from __future__ import annotations

__all__ = ["Certificates"]

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in one directory.

    Attributes:
        origin_ca: what the origin's certificate is verified with.
        origin_chain: the origin's certificate; for all names of the benchmarks.
        origin_key: its key (P-256).
        proxy_ca: the CA that proxies are given to sign with (RSA of 2,048 bits, which all of them take).
        proxy_ca_key: its key.
        proxy_ca_both: key and certificate in one file.
        proxy_leaf: for servers that don't mint: key and a certificate by the proxy CA for the terminated names.
    """

    origin_ca: Path
    origin_chain: Path
    origin_key: Path
    proxy_ca: Path
    proxy_ca_key: Path
    proxy_ca_both: Path
    proxy_leaf: Path

    @classmethod
    def make(cls, directory: Path, names: list[str], terminated: list[str]) -> Certificates:
        """Make all of them, good for a day."""
        origin_ca, origin_ca_key = _authority("Benchmark origin CA", ec.generate_private_key(ec.SECP256R1()))
        chain, key = _leaf(names, origin_ca, origin_ca_key)
        proxy_ca, proxy_ca_key = _authority("Benchmark proxy CA", rsa.generate_private_key(65537, 2048))
        leaf, leaf_key = _leaf(terminated, proxy_ca, proxy_ca_key)
        made = cls(*(directory / f"{name}.pem" for name in cls.__slots__))
        made.origin_ca.write_bytes(origin_ca.public_bytes(_PEM))
        made.origin_chain.write_bytes(chain.public_bytes(_PEM))
        made.origin_key.write_bytes(_text(key))
        made.proxy_ca.write_bytes(proxy_ca.public_bytes(_PEM))
        made.proxy_ca_key.write_bytes(_text(proxy_ca_key))
        made.proxy_ca_both.write_bytes(_text(proxy_ca_key) + proxy_ca.public_bytes(_PEM))
        made.proxy_leaf.write_bytes(_text(leaf_key) + leaf.public_bytes(_PEM))
        return made


def _text(key: _Key) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _builder(subject: str, issuer: str, key: _Key) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _authority(name: str, key: _Key) -> tuple[x509.Certificate, _Key]:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256()), key


def _leaf(names: list[str], authority: x509.Certificate, authority_key: _Key) -> tuple[x509.Certificate, _Key]:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.subject.rfc4514_string().removeprefix("CN=")
    builder = _builder(names[0], issuer, key)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
    )
    return builder.sign(authority_key, hashes.SHA256()), key
