"""A resolver on a socket that a test has, answered by a thread: addresses by name, no such name else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from typing import Self

import dns.exception
import dns.message
import dns.rrset


class Resolver:
    """Answers while its block runs; ``asked`` are the names and types that it was asked for."""

    def __init__(self, sock: socket.socket, addresses: Mapping[str, str]) -> None:
        self.asked: list[tuple[str, str]] = []
        self._socket, self._addresses = sock, addresses
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._socket.settimeout(0.1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                data, peer = self._socket.recvfrom(4096)
                query = dns.message.from_wire(data)
            except (TimeoutError, dns.exception.DNSException):
                continue
            self._socket.sendto(self._answer(query).to_wire(), peer)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        name = question.name.to_text()
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype)))
        reply = dns.message.make_response(query)
        address = self._addresses.get(name.lower())
        if address is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == (dns.rdatatype.AAAA if ":" in address else dns.rdatatype.A):
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, address))
        return reply
