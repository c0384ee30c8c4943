"""Heads of the plainest shape, read in one pass; every other head is for ``http1``, which reads the same and more.

Nearly all requests and responses have this shape: no name with an underscore, one ``Host``, a length or no body, nothing
asked of this hop but to keep the connection. Whatever is accepted here ``http1`` accepts with the same result, and whatever
is not, well-formed or not, is simply left to it: this reader never refuses.
"""

from __future__ import annotations

__all__ = ["REMEMBERED", "Memory", "plain_request_head", "plain_response", "plain_response_head"]

import re

from sbxproxy.wire.http1 import Fields, RequestHead, ResponseHead, TargetForm

# Possessive, so that what does not fit fails in one pass. No value ends in white space, so none has to be cut.
_FIELDS = rb"((?:[!#$%&'*+\-.^`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+(?<![ \t])\r\n){1,100})\r\n"
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9-]{0,31}+) (/[!\"$-~]*+) HTTP/1\.1\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n")
_REQUEST = re.compile(_REQUEST_LINE.pattern + _FIELDS)
_RESPONSE = re.compile(_STATUS_LINE.pattern + _FIELDS)
_FIELD = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")  # cuts what _FIELDS has checked
_LENGTH = re.compile(rb"[0-9]{1,18}")

_ASKS_MORE = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"http2-settings"})
_BODILESS = frozenset({204, 304})


REMEMBERED = 4 * 1024
"""Most bytes of lines that are remembered, which each idle connection holds a few times over."""

_Read = tuple[Fields, tuple[bytes, ...], int | None] | None
"""The fields, their names in lower case, and the body's length; ``None`` if they are not plain."""


class Memory:
    """The last lines of fields on one connection, and what they were read as: most clients send the same again and again.

    Heads with the same lines have the very same ``fields`` then, so that what depends on them alone can be remembered as well.

    Attributes:
        last: what the last lines were read as.
        size: their length, the empty line included.
    """

    __slots__ = ("_block", "_ending", "_max_fields", "last", "size")

    def __init__(self, max_fields: int) -> None:
        """Remember nothing; *max_fields* is the most header fields of a head."""
        self._block = b""
        self._ending = b""
        self._max_fields = max_fields
        self.last: _Read = None
        self.size = 0

    def read(self, block: bytes) -> _Read:
        """Read lines of fields, or remember."""
        if block == self._block:
            return self.last
        read = _read(block, self._max_fields)
        if len(block) > REMEMBERED:
            return read
        self.last = read
        self._block = block
        self._ending = block + b"\r\n"
        self.size = len(self._ending)
        return read

    def holds(self, fields: Fields) -> bool:
        """Tell whether these very fields are remembered."""
        return self.last is not None and self.last[0] is fields

    def first_line(self, data: bytes | bytearray, limit: int) -> int:
        """Find the end of the first line if the lines behind it are those of the last time; -1 if they are others."""
        end = data.find(b"\r\n", 0, limit) + 2
        ending = self._ending
        return end if end > 1 and ending and data.startswith(ending, end) and end + len(ending) <= limit else -1


def plain_request_head(
    data: bytes | bytearray, *, limit: int, max_fields: int, max_target: int, memory: Memory | None = None
) -> tuple[RequestHead, int] | None:
    """Read the request head that *data* begins with, and tell where it ends.

    Args:
        data: all bytes of the message so far.
        limit: most bytes that a head may have.
        max_fields: most header fields; no head with more than 100 is plain.
        max_target: most bytes of the request target.
        memory: of the connection, made for the same *max_fields*.

    Returns:
        The head, its ``names`` set, and the position behind its empty line; ``None`` for what is not plain, incomplete,
        beyond a limit or not acceptable at all.
    """
    first = -1 if memory is None else memory.first_line(data, limit)
    if first > 0 and memory is not None:
        match = _REQUEST_LINE.fullmatch(data, 0, first)
        if match is None:
            return None
        method, target = match.groups()
        read, end = memory.last, first + memory.size
    else:
        match = _REQUEST.match(data, 0, limit)
        if match is None:
            return None
        method, target, block = match.groups()
        read, end = _read(block, max_fields) if memory is None else memory.read(block), match.end()
    if read is None or len(target) > max_target or method == b"CONNECT":
        return None
    fields, names, length = read
    if names.count(b"host") != 1:
        return None
    host = fields[names.index(b"host")][1]
    return RequestHead(method.decode("ascii"), target, TargetForm.ORIGIN, (1, 1), fields, host, length, False, names), end  # noqa: FBT003


def plain_response_head(
    data: bytes | bytearray, *, limit: int, max_fields: int, memory: Memory | None = None
) -> tuple[ResponseHead, int] | None:
    """Read the final response head that *data* begins with, if it tells its length; see ``plain_request_head``."""
    read = plain_response(data, limit=limit, memory=memory or Memory(max_fields))
    if read is None:
        return None
    status, reason, fields, names, length, end = read
    head = ResponseHead(
        status=status,
        reason=reason,
        version=(1, 1),
        fields=fields,
        content_length=length,
        chunked=False,
        names=names,
    )
    return head, end


def plain_response(
    data: bytes | bytearray, *, limit: int, memory: Memory
) -> tuple[int, bytes, Fields, tuple[bytes, ...], int | None, int] | None:
    """Read what ``plain_response_head`` does: status, reason, fields, their names in lower case, length, and where it ends."""
    first = memory.first_line(data, limit)
    if first > 0:
        match = _STATUS_LINE.fullmatch(data, 0, first)
        if match is None:
            return None
        status, reason = match.groups()
        read, end = memory.last, first + memory.size
    else:
        match = _RESPONSE.match(data, 0, limit)
        if match is None:
            return None
        status, reason, block = match.groups()
        read, end = memory.read(block), match.end()
    if read is None:
        return None
    fields, names, length = read
    code = int(status)
    if names.count(b"host") > 1 or (length is None and code not in _BODILESS):
        return None
    return code, reason or b"", fields, names, length, end


def _read(block: bytes, max_fields: int) -> _Read:
    """Take the fields apart: all of them, their names in lower case, and the body's length."""
    fields: tuple[tuple[bytes, bytes], ...] = tuple(_FIELD.findall(block))
    if len(fields) > max_fields:
        return None
    names = tuple([name.lower() for name, _ in fields])
    if not _ASKS_MORE.isdisjoint(names):
        return None
    if b"connection" in names and (
        names.count(b"connection") > 1 or fields[names.index(b"connection")][1].lower() != b"keep-alive"
    ):
        return None
    if b"content-length" not in names:
        return fields, names, None
    value = fields[names.index(b"content-length")][1]
    if names.count(b"content-length") > 1 or not _LENGTH.fullmatch(value):
        return None
    return fields, names, int(value)
