"""What OpenSSL, as a server on memory buffers, takes for the server name of a ClientHello."""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

REFUSED = "refused before it looked at the name"


def _credentials() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "oracle.example")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    return key, builder.sign(key, hashes.SHA256())


_KEY, _CERT = _credentials()


def _pyopenssl_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_privatekey(_KEY)
    context.use_certificate(_CERT)
    context.set_tlsext_servername_callback(lambda connection: connection.get_app_data().append(connection.get_servername()))
    return context


def _stdlib_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as pem:
        pem.write(
            _KEY.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + _CERT.public_bytes(serialization.Encoding.PEM)
        )
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


_PYOPENSSL = _pyopenssl_context()
_STDLIB = _stdlib_context()


def _serve(data: bytes) -> tuple[SSL.Connection, list[bytes | None]]:
    seen: list[bytes | None] = []
    connection = SSL.Connection(_PYOPENSSL, None)
    connection.set_app_data(seen)
    connection.set_accept_state()
    connection.bio_write(data)
    try:
        connection.do_handshake()
    except SSL.Error:
        pass
    return connection, seen


def pyopenssl_name(data: bytes) -> bytes | str | None:
    """By the OpenSSL that comes with cryptography: the name, ``None`` for a hello without one, or ``REFUSED``."""
    _, seen = _serve(data)
    return seen[0] if seen else REFUSED


def pyopenssl_answer(data: bytes) -> bytes:
    """What an OpenSSL server answers to the client's bytes."""
    connection, _ = _serve(data)
    return connection.bio_read(65536)


def stdlib_name(data: bytes) -> str | None:
    """By the OpenSSL that Python was built with; the names are text here."""
    seen: list[str | None] = []
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    _STDLIB.sni_callback = lambda _connection, name, _context: seen.append(name)
    server = _STDLIB.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    try:
        server.do_handshake()
    except ssl.SSLError:
        pass
    finally:
        _STDLIB.sni_callback = None
    return seen[0] if seen else REFUSED
