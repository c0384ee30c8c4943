"""A TLS connection with OpenSSL between two memory buffers: what the peer sent goes in, what it is to get comes out.

Theory of operation. An ``OpenSSL.SSL.Connection`` without a socket is a machine with two byte queues: ciphertext from the peer is put
into one (``bio_write``), ciphertext for the peer is taken out of the other (``bio_read``), and ``do_handshake``, ``recv``, ``send`` and
``shutdown`` work between them without ever blocking. ``WantReadError`` means "give me more from the peer first"; the outgoing queue
never fills. So nothing here waits, and nothing here knows of a transport.

A TLS 1.3 server makes session tickets at the end of its handshake. Sending them there can deadlock with a peer that does not read
before it has written. They are kept and go out in front of whatever is taken next; never dropped, because record numbers are part of
the encryption.
"""

from __future__ import annotations

__all__ = ["SLICE", "Buffers"]

from contextlib import suppress

from OpenSSL import SSL

_RECORD = 16 * 1024
"""Most plaintext in one TLS record (RFC 8446, 5.1); OpenSSL never returns more from one read."""

_OVERHEAD = 22
"""Least ciphertext that a record adds: header 5, content type 1, tag 16. Used to guess whether another record is buffered."""

SLICE = 4 * _RECORD
"""Most plaintext to write before what that made is taken: bounds what one slow reader can make us hold."""

_DRAIN = SLICE + 8 * 1024
"""One read of the outgoing queue: a slice in records, and the odd alert or ticket."""


class Buffers:
    """OpenSSL's *connection*, which has no socket, between its two queues of ciphertext.

    Attributes:
        held: ciphertext that goes out in front of what is taken next: a TLS 1.3 server's tickets.
    """

    __slots__ = ("_connection", "_error", "_unread", "held")

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection
        self._error: SSL.Error | None = None
        self._unread = 0  # ciphertext given to OpenSSL and, by our estimate, not decrypted yet
        self.held = b""

    def feed(self, ciphertext: bytes | bytearray) -> None:
        """Put in what the peer sent."""
        self._connection.bio_write(ciphertext)
        self._unread += len(ciphertext)

    def take(self) -> bytes:
        """Take the whole outgoing queue, what is held in front; empty if OpenSSL wrote nothing."""
        output = b""
        with suppress(SSL.WantReadError):
            while True:
                output += (chunk := self._connection.bio_read(_DRAIN))
                if len(chunk) < _DRAIN:
                    break
        if output and self.held:
            output, self.held = self.held + output, b""
        return output

    def read(self, limit: int) -> bytes | None:
        """Decrypt up to *limit* bytes of what is buffered; ``b""`` at close_notify, for ever, ``None`` for "need more".

        Each read that finds nothing costs an exception, so more than one record is read only while the
        ciphertext given to OpenSSL leaves room for another. A wrong guess costs a little time and no data.

        Raises:
            OpenSSL.SSL.Error: what was buffered is damaged; again and again.
        """
        if self._error is not None:
            raise self._error
        parts: list[bytes] = []
        try:
            while limit > 0:
                plaintext = self._connection.recv(min(limit, _RECORD))
                parts.append(plaintext)
                limit -= len(plaintext)
                self._unread -= len(plaintext) + _OVERHEAD
                if self._unread <= _OVERHEAD:
                    break
        except SSL.WantReadError:
            self._unread = 0
            if not parts:
                return None
        except SSL.ZeroReturnError:
            pass  # OpenSSL will say so again
        except SSL.Error as error:
            self._error = error
            if not parts:
                raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, view: memoryview) -> None:
        """Encrypt *view*, of at most ``SLICE`` bytes; OpenSSL takes one record's worth at a time.

        Raises:
            OpenSSL.SSL.Error: TLS failed. ``WantReadError`` too: without renegotiation, writing has nothing to wait for.
        """
        while view:
            view = view[self._connection.send(view) :]
