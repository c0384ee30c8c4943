"""TLS: the sandbox's authority, the stream for both sides, verified upstreams, and the trust kit."""

from __future__ import annotations

__all__ = [
    "LOOPBACK",
    "Authority",
    "TlsStream",
    "UpstreamTls",
    "bundle_pem",
    "proxy_environment",
    "system_roots",
    "trust_environment",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.tls.authority import Authority
    from sbxproxy.tls.stream import TlsStream
    from sbxproxy.tls.trust import LOOPBACK, bundle_pem, proxy_environment, system_roots, trust_environment
    from sbxproxy.tls.upstream import UpstreamTls

face(
    __name__,
    {
        "authority": "Authority",
        "stream": "TlsStream",
        "trust": "LOOPBACK bundle_pem proxy_environment system_roots trust_environment",
        "upstream": "UpstreamTls",
    },
)
