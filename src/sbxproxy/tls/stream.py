"""TLS over any Trio stream, by OpenSSL with memory buffers; either side of a connection.

Where the transport is nothing but a socket, that is so until the handshake is done; see ``descriptor``.

Theory of operation. OpenSSL is a machine between two queues of ciphertext that never waits; see ``buffers``. So every operation here has
the same shape: touch the machine synchronously, take out what it wrote, then await exactly one call of the transport, and look again.
The points that are easy to get wrong:

* Renegotiation is switched off, so after the handshake writing never waits for reading. Reading may still
  write (an alert, an answer to a TLS 1.3 key update). Ciphertext must reach the wire in the order in which it
  was made, so whoever takes bytes out of the queue holds the wire lock until they are sent. A reader never
  waits for that lock, since the holder may be stuck behind a peer that wants its own bytes read first: it
  leaves a note, and the holder looks at the queue once more before letting go.
* A transport's ``send_all`` that failed or was cancelled has sent an unknown part of a record. Nothing can
  follow, not even a close_notify, but what the peer sent may still be read: that is how an early HTTP error
  response survives a reset.
* Plaintext that was decrypted must reach the caller. So a cancellation is looked for before decrypting and
  never after.
* A peer that just closes the connection, without close_notify, is common in HTTPS and also what a truncation
  attack looks like. ``truncated`` tells the two ends apart; who knows the framing of the bytes must look at
  it.
"""

from __future__ import annotations

__all__ = ["TlsStream"]

import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from types import TracebackType
from typing import NoReturn

import trio
from cryptography import x509
from OpenSSL import SSL

from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.tls.buffers import SLICE, Buffers
from sbxproxy.tls.descriptor import Descriptor, Truncated
from sbxproxy.tls.turns import Turns

_READ = 64 * 1024
"""Most ciphertext taken from the transport at once, and most plaintext returned at once."""

_GOODBYE = 1.0
"""Seconds that a last alert or close_notify may take; after that the transport is closed without it."""


class _State(Enum):
    NEW = auto()
    HANDSHAKE = auto()  # also where a failed or cancelled handshake ends
    OPEN = auto()
    CLOSED = auto()


class _OneCaller:
    """Refuses a second task in the same direction, which is the caller's bug and would mix up bytes."""

    __slots__ = ("_message", "busy")

    def __init__(self, message: str) -> None:
        self.busy = False
        self._message = message

    def refuse(self) -> NoReturn:
        raise trio.BusyResourceError(self._message)

    def __enter__(self) -> None:
        if self.busy:
            self.refuse()
        self.busy = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.busy = False


class TlsStream(trio.abc.Stream):
    """A TLS connection over *transport*; call ``do_handshake`` before anything else.

    One task may send while another receives. There is no ``send_eof``: TLS 1.2 can't express it. Time limits
    belong to callers; a cancelled handshake or ``send_all`` leaves a stream that can only be read to its end
    and closed, a cancelled ``receive_some`` leaves it as it was.

    Attributes:
        transport: the stream below; this object owns and closes it.
        truncated: the peer's end of stream came without close_notify. Bytes may be missing.
        on_session: given the session, once, after the first bytes have come: a TLS 1.3 server tells what to resume it with after
            the handshake, mostly before them. Client side; ``None`` for nobody.
    """

    __slots__ = (
        "_buffers",
        "_connection",
        "_direct",
        "_eof",
        "_name",
        "_note",
        "_receiving",
        "_require_close_notify",
        "_send_broken",
        "_sending",
        "_server_side",
        "_sock",
        "_state",
        "_turns",
        "_wire",
        "on_session",
        "transport",
        "truncated",
    )

    def __init__(
        self,
        transport: trio.abc.Stream,
        context: SSL.Context,
        *,
        server_side: bool,
        server_name: Hostname | None = None,
        require_close_notify: bool = False,
        app_data: object = None,
        sock: socket.socket | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Wrap *transport*; no I/O.

        Args:
            transport: what carries the ciphertext; any Trio stream, even another ``TlsStream``.
            context: certificates, roots, versions; the stream only forbids renegotiation.
            server_side: which side this is.
            server_name: client side: the SNI to send. It is *not* compared with the certificate here.
            require_close_notify: raise ``trio.BrokenResourceError`` instead of ``b""`` for an end without
                close_notify.
            app_data: for the context's callbacks, which get it from ``Connection.get_app_data()``.
            sock: the non-blocking socket that *transport* carries bytes of and to as they are, whose closing it closes; what
                *transport* has read ahead is in its ``peeked``. It lets OpenSSL work on the socket itself.
            turns: bounds the time that handshakes take in one turn of the event loop.
        """
        self._turns = turns
        self.on_session: Callable[[SSL.Session], None] | None = None
        connection = SSL.Connection(context, None)
        connection.set_options(SSL.OP_NO_RENEGOTIATION)
        connection.set_app_data(app_data)
        if server_side:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
            if server_name is not None:
                connection.set_tlsext_host_name(server_name.encode("ascii"))
        self.transport = transport
        self.truncated = False
        self._connection = connection
        self._buffers = Buffers(connection)
        self._sock = sock
        self._direct: Descriptor | None = None
        self._server_side = server_side
        self._name = server_name
        self._require_close_notify = require_close_notify
        self._state = _State.NEW
        self._send_broken = False
        self._eof = False
        self._note = False  # a reader left something in the outgoing queue for the holder of the wire
        self._wire = trio.StrictFIFOLock()
        self._sending = _OneCaller("another task is sending on this TLS stream")
        self._receiving = _OneCaller("another task is receiving from this TLS stream")

    def __repr__(self) -> str:
        side = "server" if self._server_side else "client"
        return f"<TlsStream {side} {self._state.name.lower()} over {type(self.transport).__name__}>"

    @property
    def server_name(self) -> Hostname | None:
        """The SNI in canonical form: the one sent, or on the server side the one received, if any."""
        if not self._server_side:
            return self._name
        raw = self._connection.get_servername()
        return None if raw is None else canonical_hostname(raw)

    @property
    def alpn(self) -> bytes:
        """The application protocol agreed on; empty if none was."""
        return self._connection.get_alpn_proto_negotiated()

    @property
    def version(self) -> str:
        """``TLSv1.2`` or ``TLSv1.3``, once the handshake is done."""
        return self._connection.get_protocol_version_name()

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's own certificate, verified as the context demands; ``None`` if it sent none."""
        certificate = self._connection.get_peer_certificate()
        return None if certificate is None else certificate.to_cryptography()

    async def do_handshake(self) -> None:
        """Perform the handshake; once done, only a checkpoint.

        Raises:
            trio.BrokenResourceError: the handshake failed, with an ``OpenSSL.SSL.Error`` as its cause if TLS
                (not the transport) was the reason; our alert was sent if the peer took it within a second.
            trio.BusyResourceError: another task uses the stream.
            trio.ClosedResourceError: the stream was closed.
        """
        with self._sending, self._receiving:
            match self._state:
                case _State.OPEN:
                    await trio.lowlevel.checkpoint()
                    return
                case _State.NEW:
                    self._state = _State.HANDSHAKE
                case _:
                    self._require_open()
            await self._handshake()
            self._require(_State.HANDSHAKE)  # nobody closed it meanwhile
            self._state = _State.OPEN

    async def _handshake(self) -> None:
        while True:
            try:
                if self._turns is None:
                    finished = self._step()
                else:
                    async with self._turns:
                        finished = self._step()
            except SSL.Error as error:
                await self._send_last_words()
                raise trio.BrokenResourceError("the TLS handshake failed") from error
            output = self._buffers.take()
            if finished and self._server_side and self._connection.get_protocol_version() == SSL.TLS1_3_VERSION:
                self._buffers.held = output
                return
            if output:
                await self.transport.send_all(output)
            if finished:
                return
            self._require(_State.HANDSHAKE)
            ciphertext = await self.transport.receive_some(_READ)
            if not ciphertext:
                raise trio.BrokenResourceError("the peer ended the connection during the TLS handshake")
            self._buffers.feed(ciphertext)

    def resume(self, session: SSL.Session) -> None:
        """Offer to resume *session*; before the handshake, client side."""
        self._connection.set_session(session)

    def _tell_session(self) -> None:
        tell, self.on_session = self.on_session, None
        session = self._connection.get_session()
        if tell is not None and session is not None:
            tell(session)

    def _step(self) -> bool:
        """Let OpenSSL go on with the handshake; true if that finished it."""
        self._require(_State.HANDSHAKE)  # it may have been closed while it waited for its turn
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send *data*, at most 64 KiB ahead of the transport.

        Raises:
            trio.BrokenResourceError: the connection is unusable for sending.
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: the stream was closed.
        """
        with self._sending:
            self._require_sendable()
            if not data:
                await trio.lowlevel.checkpoint()
                return
            if self._direct is not None:
                await trio.lowlevel.checkpoint()
                self._require_sendable()
                await self._send_rest(self._direct, data)
                return
            with memoryview(data) as view:
                for start in range(0, len(view), SLICE):
                    await self._take_wire()
                    try:
                        self._require_sendable()
                        try:
                            self._buffers.write(view[start : start + SLICE])
                        except SSL.Error as error:
                            self._send_broken = True
                            raise trio.BrokenResourceError("TLS could not encrypt") from error
                        await self._flush()
                    finally:
                        self._wire.release()

    async def send_at_once(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data* as ``send_all`` does, but give others a turn only where it must be waited for something."""
        direct = self._direct
        if direct is None or not data:
            await self.send_all(data)
            return
        if self._sending.busy:
            self._sending.refuse()
        if self._state is not _State.OPEN or self._send_broken:
            self._require_sendable()
        self._send_broken = True  # until all is sent
        try:
            size = direct.write(data)
        except (SSL.Error, Truncated) as error:
            raise trio.BrokenResourceError("TLS could not send") from error
        if size == len(data):
            self._send_broken = False
            return
        with self._sending, memoryview(data) as view:
            await self._send_rest(direct, view[size:])

    async def _send_rest(self, direct: Descriptor, data: bytes | bytearray | memoryview) -> None:
        self._send_broken = True  # until it has returned
        try:
            await direct.send(data)
        except (SSL.Error, Truncated) as error:
            raise trio.BrokenResourceError("TLS could not send") from error
        self._send_broken = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport may take more; the same errors as ``send_all``."""
        with self._sending:
            self._require_sendable()
            if self._direct is not None:
                await self._direct.wait_writable()
                return
            await self._take_wire()
            try:
                await self.transport.wait_send_all_might_not_block()
                if self._note:
                    await self._flush()
            finally:
                self._wire.release()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the peer sent, at most *max_bytes* or 64 KiB; ``b""`` at its end of stream, for ever.

        Raises:
            trio.BrokenResourceError: the connection broke, or ended without close_notify where that was
                required.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: the stream was closed, also while this waited.
        """
        limit = _READ if max_bytes is None else _positive(max_bytes)
        direct = self._direct
        if direct is None:
            return await self._receive_buffered(limit)
        if self._receiving.busy:
            self._receiving.refuse()
        self._receiving.busy = True
        try:
            if self._state is not _State.OPEN:
                self._require_open()
            if self._eof:
                await trio.lowlevel.checkpoint()
                return b""
            plaintext: bytes | None = None
            if direct.is_drained:  # the short way: no message that is waited for is there already
                await trio.lowlevel.wait_readable(direct.number())
                plaintext = direct.read_now(limit)
            if plaintext is None:
                plaintext = await direct.receive(limit)
            if not plaintext:
                self._eof = True
            elif self.on_session is not None:
                self._tell_session()
            return plaintext
        except SSL.Error as error:
            self._send_broken = True
            raise trio.BrokenResourceError("the TLS connection is damaged") from error
        except Truncated:
            self._send_broken = True
            self._end_without_close_notify()
            return b""
        finally:
            self._receiving.busy = False

    async def _receive_buffered(self, limit: int) -> bytes:
        with self._receiving:
            self._require_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            waited = False
            while True:
                try:
                    plaintext = b"" if self._eof else self._buffers.read(limit)
                except SSL.Error as error:
                    self._send_broken = True
                    await self._send_last_words()
                    raise trio.BrokenResourceError("the TLS connection is damaged") from error
                if plaintext is not None:
                    if not plaintext:
                        self._eof = True
                    elif self.on_session is not None:
                        self._tell_session()
                    if not waited:
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    return plaintext
                await self._flush_answer()
                if self._sock is not None and self._go_direct(self._sock):
                    break
                ciphertext = await self.transport.receive_some(_READ)
                waited = True
                self._require_open()
                if ciphertext:
                    self._buffers.feed(ciphertext)
                else:
                    self._end_without_close_notify()
        return await self.receive_some(limit)

    def _go_direct(self, sock: socket.socket) -> bool:
        """Put OpenSSL on the socket, if nothing is in between: it has just asked for more, and has said all it had to."""
        if self._buffers.held or self._note or self._send_broken or self._sending.busy or getattr(self.transport, "peeked", b""):
            return False
        self._require_open()
        self._direct = Descriptor.put_on(self._connection, sock)
        if self._direct is None:
            self._sock = None
        return self._direct is not None

    def _end_without_close_notify(self) -> None:
        self.truncated = True
        if self._require_close_notify:
            raise trio.BrokenResourceError("the peer ended the connection without close_notify")
        self._eof = True

    async def aclose(self) -> None:
        """Say goodbye (at most a second) and close the transport; again is harmless.

        A close_notify tells the peer that it has everything. So none is sent after a failed or cancelled
        ``send_all``, nor when this call is itself cancelled: then the transport is closed at once.
        """
        polite = self._state is _State.OPEN and not self._send_broken
        self._state = _State.CLOSED
        try:
            if polite and self._direct is None:
                with suppress(SSL.Error):
                    self._connection.shutdown()
                await self._send_last_words()
            elif polite and self._direct is not None and not self._sending.busy:
                with trio.move_on_after(_GOODBYE):
                    await self._direct.say_goodbye()
        finally:
            if self._direct is not None:
                self._direct.wake()
            if not self._server_side:
                # Freeing a connection that had no close_notify makes OpenSSL give up its session, which is for truncated ones of
                # SSL 2. What a failure ended is given up before.
                self._connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
            await self.transport.aclose()

    async def _take_wire(self) -> None:
        """Acquire the wire lock, without a checkpoint where it is free: sending is one."""
        try:
            self._wire.acquire_nowait()
        except trio.WouldBlock:
            await self._wire.acquire()

    async def _flush(self) -> None:
        """Send the outgoing queue; the caller holds the wire. Failure, even Cancelled, ends sending."""
        try:
            while output := self._buffers.take():
                self._note = False
                await self.transport.send_all(output)
                if not self._note:
                    break
        except BaseException:
            self._send_broken = True
            raise

    async def _flush_answer(self) -> None:
        """Send what reading made OpenSSL write, or leave it to the task that holds the wire."""
        if self._send_broken or self._wire.locked():
            self._note = True
            return
        self._wire.acquire_nowait()
        try:
            await self._flush()
        except trio.BrokenResourceError:
            pass  # an answer nobody wants; what the peer sent before may still be read
        finally:
            self._wire.release()

    async def _send_last_words(self) -> None:
        """Send an alert or close_notify if the wire is free and the peer takes it soon.

        Taking the lock is a checkpoint, so that a task which is cancelled already sends nothing.
        """
        if self._wire.locked():
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(_GOODBYE):
            async with self._wire:
                if output := self._buffers.take():
                    await self.transport.send_all(output)

    def _require(self, state: _State) -> None:
        if self._state is _State.CLOSED:
            raise trio.ClosedResourceError("this TLS stream was closed")
        if self._state is not state:
            raise trio.BrokenResourceError("the TLS handshake did not succeed")

    def _require_open(self) -> None:
        if self._state is _State.NEW:
            raise RuntimeError("do_handshake comes first")
        self._require(_State.OPEN)

    def _require_sendable(self) -> None:
        self._require_open()
        if self._send_broken:
            raise trio.BrokenResourceError("sending on this TLS stream failed before")


def _positive(max_bytes: int) -> int:
    """Check *max_bytes* as Trio's own streams do."""
    if not isinstance(max_bytes, int):
        raise TypeError("max_bytes must be an integer")
    if max_bytes < 1:
        raise ValueError("max_bytes must be positive")
    return max_bytes
