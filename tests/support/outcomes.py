"""What comes of each client in each way of capture: the table that tests hold the clients, and the documents, to."""

from __future__ import annotations

from enum import Enum

MODES = ("namespaces", "env")
CASES = ("allowed", "injected", "denied", "stranger")


class Outcome(Enum):
    RELAYED = "got its answer from the server whose own certificate it verified"
    INJECTED = "got its answer, verified the sandbox's authority, and the server read the header"
    DISTRUSTED = "met a certificate that it doesn't trust, and asked nothing"
    UNREACHED = "got nowhere"
    BROKEN = "anything else"


_FINE = {
    "allowed": Outcome.RELAYED, "injected": Outcome.INJECTED, "denied": Outcome.UNREACHED, "stranger": Outcome.DISTRUSTED,
}  # fmt: skip


class _Table(dict):
    def __missing__(self, key):
        return _FINE


OUTCOMES = _Table()
