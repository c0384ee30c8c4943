"""Asks the host's name servers for what isn't an address: our own small stub resolver, over UDP with TCP behind it.

Theory of operation. An answer over UDP can be forged by anybody who guesses where the question came from. So every question
has a socket, and thereby a port, of its own, connected to its server, and an id from the system's random numbers; what
differs in any of these, or in the question, is ignored and waited past (RFC 5452). After too many such the question is put over
TCP, where a guess does not do. One question gets two tries and one deadline.
"""

from __future__ import annotations

__all__ = ["Forward", "Forwarder"]

import errno
import secrets
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from sbxproxy.dns.host import HostNameservers, Nameserver
from sbxproxy.dns.message import HEADER, MAX_UDP, QR, RD, TC, TYPE_OPT, Answer, Rcode
from sbxproxy.errors import UpstreamResolveError
from sbxproxy.loading import Loading
from sbxproxy.settings import Limits

MOST_IGNORED = 64
"""Datagrams that are no answer to the question, before it is put over TCP instead."""

MOST_ANSWER = 16 * 1024
"""Bytes of an answer over TCP that are read; what is longer is no answer to keep the event loop busy with."""

MOST_KEPT = 4 * 1024
"""Bytes of record data of one answer in the cache, which is bounded by a number of answers."""

TRIES = 2
FIRST_TRY = 0.4
"""Share of the time that the first try gets; the second has what is left."""

NEGATIVE_TTL = 3.0
"""Seconds that "no such name" and "no such record" are kept."""


class Forward(Protocol):
    """What answers questions for records other than addresses."""

    async def ask(self, name: bytes, rdtype: int) -> tuple[Answer, float]:
        """Return the answer for *rdtype* at *name*, and when it was made, on Trio's clock.

        Args:
            name: wire format, uncompressed, in lower case.
            rdtype: the record type.

        Raises:
            UpstreamResolveError: nobody answered, or nobody in time.
        """
        ...


class _NoAnswer(Exception):  # noqa: N818 - it ends one try
    """This try is over."""


class Forwarder:
    """Asks name servers, and keeps what they said.

    One is shared by all sandboxes of a proxy: it judges nothing. Nothing runs in the background and nothing needs closing.
    """

    __slots__ = ("_cache", "_nameservers", "_reading", "_size", "_time")

    def __init__(
        self,
        nameservers: Sequence[Nameserver] | Callable[[], Sequence[Nameserver]] | None = None,
        *,
        limits: Limits | None = None,
    ) -> None:
        """Open nothing.

        Args:
            nameservers: address and port of those to ask, or what returns them; the host's own if there is none.
            limits: ``dns_answer`` and ``dns_cache`` count here.
        """
        self._reading = Loading("sbxproxy.dns.reading")
        if callable(nameservers):
            self._nameservers = nameservers
        elif nameservers:
            servers = tuple(nameservers)
            self._nameservers = lambda: servers
        else:
            self._nameservers = HostNameservers()
        limits = limits or Limits()
        self._time = limits.dns_answer
        self._size = limits.dns_cache
        self._cache: OrderedDict[tuple[bytes, int], tuple[float, float, Answer]] = OrderedDict()

    async def load(self) -> None:
        """Import dnspython, in a thread; the first ``ask`` would."""
        await self._reading.finish()

    async def ask(self, name: bytes, rdtype: int) -> tuple[Answer, float]:
        """Answer from the cache, or ask.

        Returns:
            The answer, and when it was made.

        Raises:
            UpstreamResolveError: ``reason`` is ``resolve-timeout`` (status 504) or ``resolver-failed``.
        """
        await trio.lowlevel.checkpoint()
        key = name, rdtype
        if (kept := self._cache.get(key)) is not None:
            expires, made, answer = kept
            if trio.current_time() < expires:
                self._cache.move_to_end(key)
                return answer, made
            del self._cache[key]
        await self.load()
        answer = await self._ask_servers(name, rdtype)
        made = trio.current_time()
        if sum(len(record.rdata) for record in answer.records) <= MOST_KEPT:
            self._cache[key] = made + _lifetime(answer, rdtype), made, answer
            self._cache.move_to_end(key)
            while len(self._cache) > self._size:
                self._cache.popitem(last=False)
        return answer, made

    async def _ask_servers(self, name: bytes, rdtype: int) -> Answer:
        servers = self._nameservers()
        start = trio.current_time()
        timed_out = False
        for attempt in range(TRIES):
            server = servers[attempt % len(servers)]
            share = FIRST_TRY if attempt < TRIES - 1 else 1.0
            with trio.move_on_at(start + self._time * share) as scope:
                try:
                    # An old server may stumble over EDNS; the last try goes without.
                    return await self._try(server, name, rdtype, edns=attempt == 0)
                except (_NoAnswer, OSError):
                    timed_out = False
            if scope.cancelled_caught:
                timed_out = True
        if timed_out:
            raise UpstreamResolveError("the name servers did not answer in time", reason="resolve-timeout", status=504)
        raise UpstreamResolveError("the name servers gave no answer", reason="resolver-failed")

    async def _try(self, server: Nameserver, name: bytes, rdtype: int, *, edns: bool) -> Answer:
        """Ask one server once.

        Raises:
            _NoAnswer: it gave none that is of use.
            OSError: the network gave an error.
        """
        question = name + struct.pack("!HH", rdtype, 1)
        opt = b"\0" + struct.pack("!HHIH", TYPE_OPT, MAX_UDP, 0, 0) if edns else b""
        id_ = secrets.randbits(16)
        message = HEADER.pack(id_, RD, 1, 0, 0, 1 if edns else 0) + question + opt
        reply = await _over_udp(server, message, id_, question)
        if reply is None or HEADER.unpack_from(reply)[1] & TC:
            reply = await _over_tcp(server, message)
            if not _answers(reply, id_, question):
                raise _NoAnswer
        from sbxproxy.dns.reading import read_answer  # noqa: PLC0415 - dnspython; ``ask`` has loaded it

        try:
            return read_answer(reply, name, rdtype)
        except ValueError:
            raise _NoAnswer from None


def _lifetime(answer: Answer, rdtype: int) -> float:
    """Return for how many seconds *answer* may be kept; a chain of aliases that leads to nothing is a negative one."""
    if answer.rcode is not Rcode.NOERROR or not answer.records or answer.records[-1].rdtype != rdtype:
        return NEGATIVE_TTL
    return min(record.ttl for record in answer.records)


def _answers(reply: bytes, id_: int, question: bytes) -> bool:
    """Tell whether *reply* is an answer to the question asked, and not to another; names may come back in another case."""
    if len(reply) < HEADER.size:
        return False
    got, flags, questions, _, _, _ = HEADER.unpack_from(reply)
    repeated = reply[HEADER.size : HEADER.size + len(question)]
    name, kind = repeated[:-4], repeated[-4:]
    return bool(
        got == id_
        and flags & QR
        and not flags & 0x7800
        and questions == 1
        # A name of another length has other length octets or ends elsewhere, so it can't be equal by being cut here.
        and name.lower() == question[:-4]
        and kind == question[-4:]
    )


async def _over_udp(server: Nameserver, message: bytes, id_: int, question: bytes) -> bytes | None:
    """Return the server's answer, or ``None`` if too much else came."""
    address, port = server
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # Not bound: the kernel gives each socket a random port.
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect((str(address), port))  # from now on the kernel drops what others send
        sock.send(message)
        for _ in range(MOST_IGNORED):
            await trio.lowlevel.wait_readable(sock)
            with suppress(BlockingIOError):  # a datagram with a wrong checksum wakes, and is gone
                reply = sock.recv(0xFFFF)
                if _answers(reply, id_, question):
                    return reply
    return None


async def _over_tcp(server: Nameserver, message: bytes) -> bytes:
    """Return what the server answers on a connection of its own, at most ``MOST_ANSWER`` bytes.

    Raises:
        OSError: the connection failed, or ended early, or the answer is too long.
    """
    address, port = server
    family = trio.socket.AF_INET if address.version == 4 else trio.socket.AF_INET6
    with trio.socket.socket(family, trio.socket.SOCK_STREAM) as sock:
        await sock.connect((str(address), port))
        framed = memoryview(len(message).to_bytes(2) + message)
        while framed:
            framed = framed[await sock.send(framed) :]
        length = int.from_bytes(await _exactly(sock, 2))
        if length > MOST_ANSWER:
            raise OSError(errno.EMSGSIZE, "the answer is too long")
        return await _exactly(sock, length)


async def _exactly(sock: trio.socket.SocketType, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await sock.recv(count - len(data))
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the connection ended early")
        data += more
    return data
