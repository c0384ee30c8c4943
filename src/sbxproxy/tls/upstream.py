"""The client side of TLS: connect to an upstream and believe nothing but its certificate.

OpenSSL is imported by ``load()`` or the first ``connect()``; what is verified, and how, is told in ``verifying``.
"""

from __future__ import annotations

__all__ = ["UpstreamTls"]

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from sbxproxy.hostname import Hostname
from sbxproxy.tls.sessions import Sessions
from sbxproxy.tls.trust import system_roots
from sbxproxy.tls.turns import Turns

if TYPE_CHECKING:
    from OpenSSL import SSL

    from sbxproxy.tls.stream import TlsStream


class UpstreamTls:
    """Makes verified TLS connections to upstreams, all from one context.

    The context is made once, by ``load()`` or the first ``connect()``: reading the system's roots takes 25
    ms.

    Attributes:
        turns: bounds the time that handshakes take in one turn of the event loop; a proxy's sandboxes share it.
    """

    __slots__ = ("_context", "_extra_roots", "_roots", "turns")

    def __init__(self, *, roots: Path | None = None, extra_roots: Sequence[Path] = ()) -> None:
        """Name the files of roots in PEM form; nothing is read yet.

        Args:
            roots: whom to believe; by default those of ``system_roots()``.
            extra_roots: whom to believe as well: a company's own authority.
        """
        self._roots = roots
        self._extra_roots = tuple(extra_roots)
        self._context: SSL.Context | None = None
        self.turns = Turns()

    def load(self) -> None:
        """Read the roots now, so that a fault shows at start and not at the first connection.

        Raises:
            ConfigurationError: a file can't be read or holds no certificate; the message names it.
        """
        if self._context is not None:
            return
        from sbxproxy.tls.verifying import client_context  # noqa: PLC0415 - OpenSSL, see above

        self._context = client_context((self._roots or system_roots(), *self._extra_roots))

    async def connect(
        self,
        transport: trio.abc.Stream,
        name: Hostname,
        *,
        sock: socket.socket | None = None,
        sessions: Sessions | None = None,
    ) -> TlsStream:
        """Perform a handshake over *transport* (on *sock*, if it is just that) and verify that the other end is *name*.

        The stream returned owns *transport*. Its ``truncated`` must be looked at where the end of a message
        is the end of the stream. If this raises anything, or is cancelled, *transport* is closed. A session of *name*
        among *sessions* shortens the handshake, and the next one's is left there.

        Raises:
            UpstreamTlsError: the handshake failed or the certificate is not acceptable, and nothing but the
                handshake was sent. ``reason`` is one of ``upstream-certificate-expired``, ``-not-yet-valid``,
                ``-unknown-ca``, ``-name``, ``-invalid``, ``upstream-tls-version`` and ``upstream-tls``.
            ConfigurationError: as for ``load``.
        """
        try:
            if self._context is None:
                await trio.to_thread.run_sync(self.load)
            assert self._context is not None
            from sbxproxy.tls.verifying import connect  # noqa: PLC0415 - ``load`` has imported it

            return await connect(transport, self._context, name, sock=sock, turns=self.turns, sessions=sessions)
        except BaseException:
            with trio.CancelScope(shield=True):  # closing by force doesn't wait; unshielded it could replace the error
                await trio.aclose_forcefully(transport)
            raise
