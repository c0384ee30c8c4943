"""How an upstream is verified: the chain by OpenSSL, against the roots given, and the name by service-identity (RFC 9525).

The name asked for by SNI and the name verified are one value; subject
alternative names only, a wildcard is a whole left-most label. The surprising thing is what isn't heeded:
``SSL_CERT_FILE``, ``SSL_CERT_DIR`` and ``SSLKEYLOGFILE``.
"""

from __future__ import annotations

__all__ = ["client_context", "connect"]

import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, DNSPattern, verify_service_identity

from sbxproxy.errors import ConfigurationError, UpstreamTlsError
from sbxproxy.hostname import Hostname
from sbxproxy.tls.sessions import Sessions
from sbxproxy.tls.stream import TlsStream
from sbxproxy.tls.turns import Turns

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:ECDHE+AES:!SHA1:!aNULL:!eNULL:!PSK:!SRP"
"""TLS 1.2 only: forward secret, no SHA-1; CBC with SHA-2 last, for servers that never learned better."""

_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21, 24, 27})
"""X509_V_ERR_…: UNABLE_TO_GET_ISSUER_CERT, DEPTH_ZERO_SELF_SIGNED_CERT, SELF_SIGNED_CERT_IN_CHAIN,
UNABLE_TO_GET_ISSUER_CERT_LOCALLY, UNABLE_TO_VERIFY_LEAF_SIGNATURE, INVALID_CA (before OpenSSL 3),
CERT_UNTRUSTED."""
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID

_VERSION_ERRORS = frozenset({"unsupported protocol", "tlsv1 alert protocol version", "wrong ssl version"})
"""How OpenSSL words a peer with which no version is shared, found by either side."""

_HTTP_1_1 = b"http/1.1"


def client_context(roots: Iterable[Path]) -> SSL.Context:
    """Make a context that believes whom these files of roots in PEM form name.

    Raises:
        ConfigurationError: a file can't be read or holds no certificate; the message names it.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_alpn_protos([_HTTP_1_1])
    context.set_verify(SSL.VERIFY_PEER, _verified)  # a client's default purpose is "TLS server": checks the EKU
    for path in roots:
        _load_roots(context, path)
    return context


async def connect(
    transport: trio.abc.Stream,
    context: SSL.Context,
    name: Hostname,
    *,
    sock: socket.socket | None = None,
    turns: Turns | None = None,
    sessions: Sessions | None = None,
) -> TlsStream:
    """Perform a handshake over *transport* and verify that the other end is *name*; who calls closes *transport* if this raises.

    With *sessions* it begins with the last one of *name*, and the stream leaves its own there.

    Raises:
        UpstreamTlsError: the handshake failed or the certificate is not acceptable.
    """
    problems: list[int] = []
    stream = TlsStream(transport, context, server_side=False, server_name=name, app_data=problems, sock=sock, turns=turns)
    session = None if sessions is None else sessions.take(name)
    if session is not None:
        stream.resume(session)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        raise _explain(error, problems) from error
    # A resumed session comes with the certificate that it was made under, whose chain was verified then.
    certificate = stream.peer_certificate
    _verify_name(certificate, name)
    if session is not None and certificate is not None and certificate.not_valid_after_utc < datetime.now(UTC):
        raise UpstreamTlsError("the upstream's certificate has expired", reason="upstream-certificate-expired")
    if sessions is not None:
        stream.on_session = partial(sessions.keep, name)
    return stream


def _verified(connection: SSL.Connection, _certificate: object, code: int, _depth: int, ok: int) -> bool:
    """Note what OpenSSL found wrong with a certificate, and agree with it."""
    if ok == 1:
        return True
    connection.get_app_data().append(code)
    return False


def _load_roots(context: SSL.Context, path: Path) -> None:
    try:
        with path.open("rb"):
            pass  # for the operating system's own words; OpenSSL only has "system library"
        context.load_verify_locations(str(path))
    except OSError as error:
        raise ConfigurationError(f"upstream roots file {path}: {error.strerror or 'unreadable'}") from error
    except SSL.Error as error:
        raise ConfigurationError(f"upstream roots file {path}: no usable PEM certificate in it") from error


def _explain(error: trio.BrokenResourceError, problems: list[int]) -> UpstreamTlsError:
    """Find the reason of a failed handshake; texts are fixed, as certificates hold what an attacker likes."""
    if problems:
        code = problems[0]
        if code in _UNKNOWN_CA:
            return UpstreamTlsError(
                "the upstream's certificate is not from a known authority",
                reason="upstream-certificate-unknown-ca",
            )
        if code == _EXPIRED:
            return UpstreamTlsError("the upstream's certificate has expired", reason="upstream-certificate-expired")
        if code == _NOT_YET_VALID:
            return UpstreamTlsError("the upstream's certificate is not valid yet", reason="upstream-certificate-not-yet-valid")
        return _invalid()
    cause: Any = error.__cause__
    if isinstance(cause, SSL.Error) and cause.args and isinstance(cause.args[0], list):
        if any(entry[-1] in _VERSION_ERRORS for entry in cause.args[0]):
            return UpstreamTlsError("the upstream has no TLS 1.2 or later", reason="upstream-tls-version")
        return UpstreamTlsError("TLS with the upstream failed")
    return UpstreamTlsError("the upstream ended the connection during the TLS handshake")


def _invalid() -> UpstreamTlsError:
    return UpstreamTlsError("the upstream's certificate is not acceptable", reason="upstream-certificate-invalid")


def _verify_name(certificate: x509.Certificate | None, name: Hostname) -> None:
    """Check that *certificate* is for *name*.

    Names in it that are no DNS names or bad patterns (``*``, ``*.com``, an address) are passed over; they
    match nothing, and a certificate may carry them beside good ones. A wildcard doesn't stand for an ``xn--``
    label.

    Raises:
        UpstreamTlsError: none of its names matches, or they can't be read.
    """
    if certificate is None:
        raise _invalid()
    patterns = []
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        for value in extension.value.get_values_for_type(x509.DNSName):
            try:
                patterns.append(DNSPattern.from_bytes(value.encode("ascii")))
            except (CertificateError, UnicodeEncodeError):
                continue
    except x509.ExtensionNotFound:
        pass  # the common name is not a substitute (RFC 9525, 6.3)
    except ValueError:
        raise _invalid() from None
    try:
        verify_service_identity(cert_patterns=patterns, obligatory_ids=[DNS_ID(name)], optional_ids=[])
    except (VerificationError, CertificateError):
        raise UpstreamTlsError("the upstream's certificate is for another name", reason="upstream-certificate-name") from None
