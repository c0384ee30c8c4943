"""The demo's server: HTTPS on loopback under a certificate authority of its own, remembering what it was sent."""

from __future__ import annotations

__all__ = ["API", "DATABASE", "FILES", "OTHER", "Origin"]

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sbxproxy.address import IPAddress, IPNetwork
from sbxproxy.hostname import Hostname

API = Hostname("api.demo.example")
FILES = Hostname("files.demo.example")
OTHER = Hostname("other.demo.example")
DATABASE = Hostname("db.demo.example")
_NAMES = (API, FILES, OTHER, DATABASE)


class Origin:
    """Answers any request; ``/slow`` never ends.

    Attributes:
        port: where it listens, once it does.
        certificate: a PEM file with its CA's certificate.
        chain: a PEM file with the key and certificate of all its names.
        seen: the headers of the last request, names in lower case.
        connections: how many were accepted.
    """

    def __init__(self, directory: Path) -> None:
        """Write certificates into *directory*."""
        self.port = 0
        self.seen: dict[str, str] = {}
        self.connections = 0
        self.certificate = directory / "origin-ca.pem"
        self.chain = directory / "origin.pem"
        _write_certificates(self.certificate, self.chain)

    @property
    def networks(self) -> list[IPNetwork]:
        """What the operator must open for it."""
        return [ipaddress.IPv4Network("127.0.0.0/8")]

    @property
    def addresses(self) -> dict[Hostname, list[IPAddress]]:
        """Its names' addresses."""
        return {name: [ipaddress.IPv4Address("127.0.0.1")] for name in _NAMES}

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain)
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
        transport = listeners[0].transport_listener
        assert isinstance(transport, trio.SocketListener)
        self.port = transport.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._answer, listeners)

    async def _answer(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.connections += 1
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                head += chunk
            line, *fields = head.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            self.seen = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in fields)}
            if " /slow " in line:
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
                while True:
                    await stream.send_all(bytes(1000))
                    await trio.sleep(0.02)
            body = f"hello from {self.seen.get('host', '?')}\n".encode()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body))
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)


def _write_certificates(authority: Path, chain: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "demo origin CA")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    root = (
        builder(issuer, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, API)]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in _NAMES]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    authority.write_bytes(root.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain.touch(mode=0o600)
    chain.write_bytes(private + leaf.public_bytes(pem))
