"""Server contexts: each serves one name.

The one surprising thing: a server context refuses every handshake but the expected one. It knows the name it
was minted for, and when OpenSSL sees any other (or none, or another one in the second ClientHello after a
HelloRetryRequest) the connection is moved to a context without a certificate, which cannot complete a
handshake by any path. Sessions are never resumed, since in TLS 1.3 a resumed session needs no certificate and
may name another server.
"""

from __future__ import annotations

__all__ = ["HTTP_1_1", "server_context"]

from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from sbxproxy.hostname import Hostname, canonical_hostname

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 only; forward secret and authenticated. All of TLS 1.3's are."""

HTTP_1_1 = b"http/1.1"


class NoCommonProtocol(SSL.Error):
    """The client offers application protocols and none that is spoken here; OpenSSL sends alert 120.

    Attributes:
        http2: whether it offers HTTP/2.
    """

    def __init__(self, offered: list[bytes]) -> None:
        """Keep of what was *offered* no more than is told."""
        super().__init__()
        self.http2 = b"h2" in offered


def server_context(name: Hostname, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> SSL.Context:
    """Make a server-side context that shows *certificate* to those who ask for *name*, and refuses everybody else."""
    context = _bare_context()
    context.use_certificate(certificate)
    context.use_privatekey(key)
    context.set_tlsext_servername_callback(_expect(name))
    context.set_alpn_select_callback(_select_protocol)
    return context


def _bare_context() -> SSL.Context:
    """Make a server context without certificate: by itself it can only refuse."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 32 KiB less on a connection that waits
    return context


_REFUSAL = _bare_context()


def _expect(name: Hostname) -> Callable[[SSL.Connection], None]:
    """Make a callback that lets only *name* pass.

    It must not raise: pyOpenSSL would refuse the handshake too, but print a traceback that the client can
    trigger at will.
    """

    def check(connection: SSL.Connection) -> None:
        raw = connection.get_servername()
        if raw is None or canonical_hostname(raw) != name:
            connection.set_context(_REFUSAL)

    return check


def _select_protocol(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Choose ``http/1.1``. Called only if the client offers anything.

    Raises:
        NoCommonProtocol: it isn't offered. (``NO_OVERLAPPING_PROTOCOLS`` would go on without any.)
    """
    if HTTP_1_1 in offered:
        return HTTP_1_1
    raise NoCommonProtocol(offered)
