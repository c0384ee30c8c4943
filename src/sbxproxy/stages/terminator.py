"""The built-in terminator: the sandbox's own authority towards the client, verified roots towards the upstream."""

from __future__ import annotations

__all__ = ["TlsTerminator"]

import socket
from dataclasses import dataclass, field

import trio
from trio.abc import Stream

from sbxproxy.errors import ClientProtocolError
from sbxproxy.flow import Flow
from sbxproxy.hostname import Hostname
from sbxproxy.net.bare import BareStream
from sbxproxy.tls.authority import Authority
from sbxproxy.tls.sessions import Sessions
from sbxproxy.tls.upstream import UpstreamTls


@dataclass(frozen=True, slots=True)
class TlsTerminator:
    """Terminates TLS under certificates that *authority* mints, and verifies upstreams with *upstream*; for one sandbox."""

    authority: Authority
    upstream: UpstreamTls
    sessions: Sessions = field(default_factory=Sessions)

    async def accept(self, flow: Flow, client: Stream) -> Stream:
        """Complete the client's handshake.

        Raises:
            ClientProtocolError: it failed, most often because the client doesn't trust the sandbox's certificate authority, or since
                it insists on HTTP/2.
        """
        name = flow.facts.server_name
        if name is None:
            await trio.aclose_forcefully(client)
            raise ClientProtocolError("no-sni", "a connection without server name can't be terminated")
        from sbxproxy.tls.stream import TlsStream  # noqa: PLC0415 - OpenSSL, which a sandbox without inspected connections never needs

        stream = TlsStream(
            client, self.authority.server_context(name), server_side=True, sock=_socket_of(client), turns=self.upstream.turns
        )
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise _told(error.__cause__) from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def connect(self, flow: Flow, upstream: Stream, name: Hostname) -> Stream:  # noqa: ARG002
        """Complete a handshake with *name*, verified; raises ``UpstreamTlsError``, and closes *upstream* then."""
        return await self.upstream.connect(upstream, name, sock=_socket_of(upstream), sessions=self.sessions)


def _told(cause: BaseException | None) -> ClientProtocolError:
    from sbxproxy.tls.serving import NoCommonProtocol  # noqa: PLC0415 - OpenSSL, which is there by now

    match cause:
        case NoCommonProtocol(http2=True):
            detail = "the client speaks only HTTP/2, and rules need HTTP/1.1; a host that is allowed without rules is relayed"
        case NoCommonProtocol():
            detail = "the client offers protocols by ALPN, and HTTP/1.1, which rules need, is not among them"
        case _:
            return ClientProtocolError(
                "client-handshake", "the client broke off the TLS handshake; does it trust the sandbox's CA?"
            )
    return ClientProtocolError("no-common-protocol", detail)


def _socket_of(stream: Stream) -> socket.socket | None:
    """Return the socket of a stream that is nothing else; a subclass might transform."""
    return stream.socket if type(stream) is BareStream else None
