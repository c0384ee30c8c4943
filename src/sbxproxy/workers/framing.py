"""Messages between the supervisor and its workers: a length, then a JSON object that says in ``do`` what it is.

Both ends are this package's own code, and yet all is read strictly: what a worker that has gone wrong sends must end it, not its
supervisor. Errors never quote a message: it may hold a key.
"""

from __future__ import annotations

__all__ = ["ProtocolError", "Unframer", "frame"]

import json
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

from sbxproxy.errors import SbxproxyError

_LENGTH = struct.Struct(">I")

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ProtocolError(SbxproxyError):
    """The other end doesn't keep to the protocol."""


def frame(message: Mapping[str, Any]) -> bytes:
    """Return *message*, ready to be sent.

    Raises:
        ValueError: it is no JSON.
    """
    body = _encode(message).encode()
    return _LENGTH.pack(len(body)) + body


class Unframer:
    """Takes bytes as they come, and gives the messages in them."""

    __slots__ = ("_buffer", "_most")

    def __init__(self, most: int) -> None:
        """Accept messages of *most* bytes."""
        self._buffer = bytearray()
        self._most = most

    @property
    def is_empty(self) -> bool:
        """Whether the bytes so far end with a whole message."""
        return not self._buffer

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data

    def next(self) -> dict[str, Any] | None:
        """Return the next message, or ``None`` if it isn't there yet.

        Raises:
            ProtocolError: it is too long, no JSON object, or doesn't say what it is.
        """
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > self._most:
            raise ProtocolError(f"a message is longer than {self._most} bytes")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        return _read(body)


def _read(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and isinstance(message.get("do"), str):
        return message
    # Out here it has no context: that would hold the whole message.
    raise ProtocolError("a message is no JSON object that says what it is")


def _no_constant(_: str) -> NoReturn:
    raise ValueError
