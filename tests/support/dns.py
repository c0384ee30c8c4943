"""DNS for tests: an answerer with everything round it at hand, and a name server on loopback that counts what it is asked."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import dns.edns
import dns.message
import dns.rdatatype
import dns.rrset
import trio

from sbxproxy.address import IPAddress
from sbxproxy.dns import DnsAnswerer
from sbxproxy.errors import UpstreamNoAddressError, UpstreamResolveError
from sbxproxy.events import DnsAnswered, Event
from sbxproxy.hostname import Hostname
from sbxproxy.policy import Boundary, Policy
from sbxproxy.settings import Limits

PUBLIC, PUBLIC_V6 = "93.184.216.34", "2606:2800:220:1::1"


@dataclass(eq=False)
class Names:
    """A resolver: addresses by name, an exception to raise, or ``...`` for a look-up that never ends."""

    known: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    after: Callable[[], None] | None = None

    async def resolve(self, name: Hostname) -> tuple[IPAddress, ...]:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        answer = self.known.get(name)
        if answer is ...:
            await trio.sleep_forever()
        if self.after is not None:
            self.after()
        if answer is None:
            raise UpstreamResolveError("no such name")
        if isinstance(answer, BaseException):
            raise answer
        if not answer:
            raise UpstreamNoAddressError("no address")
        return tuple(ip_address(text) for text in answer)


@dataclass(eq=False)
class Desk:
    """An answerer, and what it was made of; ``policy`` may be put in place of another at any time."""

    policy: Policy
    names: Names
    events: list[Event]
    answerer: DnsAnswerer = field(init=False)

    async def ask(self, name: Any, rdtype: str = "A", *, udp: bool = False, **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, rdtype, **{"use_edns": 0, **options})
        return await self.put(query, udp=udp)

    async def put(self, query: dns.message.Message, *, udp: bool = False) -> dns.message.Message:
        answer = await self.answerer.answer(query.to_wire(), udp=udp)
        assert answer is not None
        message = dns.message.from_wire(answer)
        assert query.is_response(message)
        return message

    @property
    def told(self) -> list[DnsAnswered]:
        return [event for event in self.events if isinstance(event, DnsAnswered)]


def make_desk(policy: object, known: dict[str, Any] | None = None, **options: Any) -> Desk:
    desk = Desk(Policy.parse(policy), Names(known or {}), [])
    limits = Limits(**{name: options.pop(name) for name in tuple(options) if name in Limits.__slots__})
    desk.answerer = DnsAnswerer(
        "box",
        policy=lambda: desk.policy,
        resolver=desk.names,
        emit=desk.events.append,
        limits=limits,
        **{"boundary": Boundary(), "ipv6": True, **options},
    )
    return desk


def texts(message: dns.message.Message) -> list[str]:
    """The answer section's records, as text, without their lifetimes."""
    return [f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}" for rrset in message.answer for rdata in rrset]


def why(message: dns.message.Message) -> tuple[int, str] | None:
    """The extended error."""
    for option in message.options:
        if isinstance(option, dns.edns.EDEOption):
            return int(option.code), option.text or ""
    return None


def reply(query: dns.message.Message, *records: str, rcode: int = 0) -> dns.message.Message:
    """An answer of *records*, written ``owner ttl type rdata``."""
    message = dns.message.make_response(query)
    message.question = copy.deepcopy(query.question)  # dnspython shares it
    message.set_rcode(rcode)
    for record in records:
        owner, ttl, rdtype, rdata = record.split(" ", 3)
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", rdtype, rdata))
    return message


Behaviour = Callable[[dns.message.Message, bool], Sequence[dns.message.Message | bytes] | dns.message.Message | bytes | None]


@dataclass(eq=False)
class NameServer:
    """Answers over UDP and TCP on one port, as ``behave(query, over_tcp)`` says: several datagrams, one, or none."""

    behave: Behaviour
    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    over_tcp: int = 0
    raw: list[bytes] = field(default_factory=list)
    clients: list[tuple[str, int]] = field(default_factory=list)

    @property
    def address(self) -> tuple[IPAddress, int]:
        return ip_address("127.0.0.1"), self.port

    def _answers(self, data: bytes, over_tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(data)
        self.raw.append(data)
        self.asked.append((query.question[0].name.to_text(), dns.rdatatype.to_text(query.question[0].rdtype)))
        answers = self.behave(query, over_tcp)
        if answers is None:
            return []
        if isinstance(answers, dns.message.Message | bytes):
            answers = [answers]
        return [answer if isinstance(answer, bytes) else answer.to_wire(max_size=65535) for answer in answers]

    async def _udp(self, sock: trio.socket.SocketType) -> None:
        while True:
            data, client = await sock.recvfrom(65535)
            self.clients.append(client)
            for answer in self._answers(data, False):
                await sock.sendto(answer, client)

    async def _tcp(self, stream: trio.SocketStream) -> None:
        self.over_tcp += 1
        head = await stream.receive_some(2)
        while len(head) < 2:
            head += await stream.receive_some(2 - len(head))
        data = b""
        while len(data) < int.from_bytes(head):
            data += await stream.receive_some(int.from_bytes(head) - len(data))
        for answer in self._answers(data, True):
            await stream.send_all(len(answer).to_bytes(2) + answer)
        await stream.aclose()


@asynccontextmanager
async def open_nameserver(behave: Behaviour) -> AsyncIterator[NameServer]:
    server = NameServer(behave)
    for _ in range(20):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await sock.bind(("127.0.0.1", port))
            break
        except OSError:  # somebody has that port for UDP
            sock.close()
            await listener.aclose()
    server.port = port
    async with listener:
        with sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server._udp, sock)
                nursery.start_soon(trio.serve_listeners, server._tcp, [listener])
                yield server
                nursery.cancel_scope.cancel()
