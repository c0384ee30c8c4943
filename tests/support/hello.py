"""ClientHellos by short names, from the public kit, and ways to cut them up."""

from __future__ import annotations

from collections.abc import Iterator

from sbxproxy.testing.hello import encode_alpn as alpn
from sbxproxy.testing.hello import encode_extension as extension
from sbxproxy.testing.hello import encode_hello as hello_message
from sbxproxy.testing.hello import encode_key_share as key_share
from sbxproxy.testing.hello import encode_record as record
from sbxproxy.testing.hello import encode_records as records
from sbxproxy.testing.hello import encode_server_name as server_name
from sbxproxy.testing.hello import encode_vector as vector
from sbxproxy.testing.hello import hello_message as client_hello

__all__ = [
    "alpn",
    "client_hello",
    "extension",
    "hello_message",
    "key_share",
    "prefixes",
    "record",
    "records",
    "records_at",
    "server_name",
    "vector",
]


def records_at(message: bytes, cuts: list[int]) -> bytes:
    """*message* in records that end at the positions *cuts* and at its end."""
    places = sorted({cut for cut in cuts if 0 < cut < len(message)})
    return b"".join(record(message[start:end]) for start, end in zip([0, *places], [*places, len(message)], strict=True))


def prefixes(data: bytes) -> Iterator[bytes]:
    """Every proper prefix, shortest first, the empty one included."""
    for end in range(len(data)):
        yield data[:end]
