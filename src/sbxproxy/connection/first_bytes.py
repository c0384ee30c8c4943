"""The first bytes of a connection: read as far as it takes to tell what they are, and no longer than allowed."""

from __future__ import annotations

__all__ = ["FirstBytes", "with_wire"]

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import trio

from sbxproxy.connection.context import Context
from sbxproxy.connection.postgres import offer_tls
from sbxproxy.errors import LimitError, StageError
from sbxproxy.hostname import canonical_hostname
from sbxproxy.net.bare import Until
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.decision import Facts, Wire
from sbxproxy.wire.result import Hint, Sniffed, Sniffer
from sbxproxy.wire.sniff import BUILTIN, bytes_wanted, sniff
from sbxproxy.wire.tls import sniff_tls


class FirstBytes:
    """The reading of one client's first bytes, which stay in ``client.peeked``.

    Attributes:
        deadline: by Trio's clock, when they must be there; ``None`` before they have been waited for.
        promised_tls: a PostgreSQL client was told to begin its handshake, so its server must be asked for TLS before it gets that.
    """

    __slots__ = ("_client", "_context", "_held", "deadline", "promised_tls")

    def __init__(self, context: Context, client: PeekedStream) -> None:
        self._context = context
        self._client = client
        self.deadline: float | None = None
        self._held = 0
        self.promised_tls = False

    async def look(self) -> Sniffed | None:
        """Tell what they are; ``None`` if they don't come within ``limits.first_bytes``, which all looks at one connection share.

        Raises:
            LimitError: the sandbox's connections hold too many first bytes.
            StageError: a third party's sniffer failed.
            trio.BrokenResourceError: the client is gone.
        """
        with suppress(trio.TooSlowError), Until(self._client, self._until()):
            return await self._sniff((*BUILTIN, *self._context.sniffers))
        return None

    async def look_into_postgres(self) -> Sniffed | None:
        """Answer a PostgreSQL client's requests for encryption, and tell what it begins with then; ``None`` as for ``look``.

        Raises:
            ClientProtocolError: it asked in a way that no PostgreSQL client does.
            LimitError, StageError, trio.BrokenResourceError: as for ``look``.
        """
        with suppress(trio.TooSlowError), Until(self._client, self._until()):
            if not await offer_tls(self._client):
                return Sniffed(Wire.POSTGRES)
            self.promised_tls = True
            found = await self._sniff((sniff_tls,))
            problem = found.problem if found.wire == Wire.TLS else "no ClientHello came where one was to come"
            return replace(found, wire=Wire.POSTGRES_TLS, problem=problem)
        return None

    def _until(self) -> float:
        if self.deadline is None:
            self.deadline = trio.current_time() + self._context.limits.first_bytes
        return self.deadline

    async def _sniff(self, sniffers: Sequence[Sniffer]) -> Sniffed:
        client, most = self._client, self._context.limits.client_hello
        self._hold(len(client.peeked))  # what came with the request, too
        while True:
            try:
                # What stands beyond the bound counts as not there, however much of it came with one read.
                answer = sniff(client.peeked[:most], sniffers)
            except Exception as error:  # noqa: BLE001 - its text may quote the bytes
                raise StageError(f"a sniffer failed with {type(error).__name__}") from None
            if answer is not Hint.NEED_MORE:
                return answer
            if len(client.peeked) >= most:
                return self._last_word(sniffers)
            wanted = bytes_wanted(client.peeked)
            while len(client.peeked) < wanted:
                if not await client.fill():
                    return self._last_word(sniffers)
                self._hold(len(client.peeked))

    def _last_word(self, sniffers: Sequence[Sniffer]) -> Sniffed:
        answer = sniff(self._client.peeked[: self._context.limits.client_hello], sniffers, eof=True)
        return answer if isinstance(answer, Sniffed) else Sniffed(Wire.UNKNOWN)

    def _hold(self, size: int) -> None:
        """Count the bytes of a first message against the sandbox's bound."""
        context = self._context
        if context.buffered + size - self._held > context.limits.buffered_bytes_per_sandbox:
            raise LimitError("buffered_bytes_per_sandbox")
        context.buffered += size - self._held
        self._held = size

    def release(self) -> None:
        """No longer count them: they are passed on, or dropped. Again is harmless."""
        self._context.buffered -= self._held
        self._held = 0


def with_wire(facts: Facts, sniffed: Sniffed) -> Facts:
    """Add what the first bytes told to *facts*."""
    name = None if sniffed.server_name is None else canonical_hostname(sniffed.server_name)
    problem = sniffed.problem
    if sniffed.server_name is not None and name is None:
        problem = problem or "the server name is not a host name"
    return Facts(
        host=facts.host,
        port=facts.port,
        wire=str(sniffed.wire),
        server_name=name,
        alpn=sniffed.alpn,
        addresses=facts.addresses,
        problem=problem,
    )
