"""HTTP/1.x message heads, read strictly and before anything else reads them (RFC 9112).

This stands in front of an HTTP library, which is fed the very same bytes and stays the authority on framing.
The head is refused here wherever two readers are known to differ on where a message ends or what it says:
that difference is request smuggling. So it is narrower than the RFC, which often says "may accept": line ends
are CRLF, a header is one line, a length is one number, the only transfer coding is ``chunked``, and nothing
stands before the first line, not even the empty line that RFC 9112 section 2.2 would forgive.

Errors carry fixed texts only.
"""

from __future__ import annotations

__all__ = [
    "RequestHead",
    "ResponseHead",
    "TargetForm",
    "cut_request_head",
    "cut_response_head",
    "parse_request_head",
    "parse_response_head",
]

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NoReturn

from sbxproxy.errors import ClientProtocolError, UpstreamProtocolError
from sbxproxy.wire.result import Hint

Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields in order: the name as sent, the value without the white space around it."""

Version = tuple[Literal[1], Literal[0, 1]]

_REQUEST_LINE = re.compile(rb"([^ \t]+) ([\x21-\x7e]+)(?: HTTP/([0-9])\.([0-9]))?")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
# Possessive, so that a long line of token characters without a colon fails in one pass.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([\t\x20-\x7e\x80-\xff]*+)")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}")
_ABSOLUTE_FORM = re.compile(rb"[A-Za-z]{1,16}://[^/?]")
_AUTHORITY_FORM = re.compile(rb"[A-Za-z0-9._\-\[\]:]+:[0-9]{1,5}")
_LENGTH = re.compile(rb"[0-9]{1,18}")  # fits 64 bits whoever reads it
_SINGLE = frozenset((b"content-length", b"transfer-encoding", b"host"))


class TargetForm(Enum):
    """The four forms of a request target (RFC 9112 section 3.2)."""

    ORIGIN = "/path?query"
    ABSOLUTE = "http://host/path"
    AUTHORITY = "host:port"
    ASTERISK = "*"


@dataclass(slots=True)  # neither frozen nor by keyword alone, which takes five times as long to make
class RequestHead:
    """A request line and its fields.

    Attributes:
        method: an upper-case token, not necessarily a registered one.
        target: as sent: visible ASCII without ``#``.
        form: what ``target`` is; authority-form exactly for CONNECT, asterisk-form only for OPTIONS.
        version: (1, 0) or (1, 1).
        fields: all header fields.
        host: the value of the only Host field; ``None`` without one, which HTTP/1.0 permits. Not validated.
        content_length: bytes of the body, if the head says so.
        chunked: the body is in chunks; then there is no ``content_length``.
        names: the fields' names in lower case, of a head that ``plain_head`` has read: it asks nothing of this hop but to
            keep the connection. ``None`` for all others.
    """

    method: str
    target: bytes = field(repr=False)
    form: TargetForm
    version: Version
    fields: Fields = field(repr=False)
    host: bytes | None
    content_length: int | None
    chunked: bool
    names: tuple[bytes, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)  # neither frozen nor by keyword alone, which takes five times as long to make
class ResponseHead:
    """A status line and its fields.

    Attributes:
        status: 100 to 599.
        reason: the reason phrase, often empty.
        version: (1, 0) or (1, 1).
        fields: all header fields.
        content_length: bytes of the body, if the head says so; what the request's method makes of it is the
            caller's business.
        chunked: the body is in chunks; then there is no ``content_length``.
        names: the fields' names in lower case, of a head that ``plain_head`` has read: the body's length is told and the
            connection goes on. ``None`` for all others.
    """

    status: int
    reason: bytes = field(repr=False)
    version: Version
    fields: Fields = field(repr=False)
    content_length: int | None
    chunked: bool
    names: tuple[bytes, ...] | None = field(default=None, compare=False, repr=False)


class _FaultError(Exception):
    """What is wrong with a head, before it is known whose fault that is."""

    def __init__(self, text: str, status: int = 400, reason: str = "bad-request") -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.reason = reason

    def blame_client(self) -> NoReturn:
        raise ClientProtocolError(self.reason, self.text, status=self.status) from None

    def blame_upstream(self) -> NoReturn:
        raise UpstreamProtocolError(f"the upstream's response head: {self.text}") from None


def cut_request_head(data: bytes | bytearray, *, limit: int) -> int | Literal[Hint.NEED_MORE]:
    """Find the end of the request head that *data* begins with: the position behind its empty line.

    Args:
        data: all bytes of the message so far.
        limit: most bytes that a head may have.

    Raises:
        ClientProtocolError: what is there can't become a head: it doesn't begin with a method, has a bare CR
            or LF, or is longer than *limit* (status 431, or 414 if the request line alone is).
    """
    try:
        _check_first_byte(data)
        return _cut(data, limit, 414)
    except _FaultError as fault:
        fault.blame_client()


def cut_response_head(data: bytes | bytearray, *, limit: int) -> int | Literal[Hint.NEED_MORE]:
    """Find the end of the response head that *data* begins with; see ``cut_request_head``.

    Raises:
        UpstreamProtocolError: what is there can't become a head.
    """
    try:
        _check_protocol(data)
        return _cut(data, limit, 431)
    except _FaultError as fault:
        fault.blame_upstream()


def _check_first_byte(data: bytes | bytearray) -> None:
    # Not even the one empty line that the RFC forgives: h11, which is fed the same bytes, refuses it too.
    if data and not 0x41 <= data[0] <= 0x5A:
        status = 501 if _TOKEN.match(data) else 400
        raise _FaultError("the request does not begin with an upper-case method", status)


def _check_protocol(data: bytes | bytearray) -> None:
    if data[:7] != b"HTTP/1."[: len(data)]:
        raise _FaultError("not HTTP/1")


def _cut(data: bytes | bytearray, limit: int, first_line_status: int) -> int | Literal[Hint.NEED_MORE]:
    found = data.find(b"\r\n\r\n", 0, limit)
    end = found + 4 if found >= 0 else min(len(data), limit)
    line_ends = data.count(b"\r\n", 0, end)
    returns = data.count(b"\r", 0, end)
    if end and data[end - 1] == 0x0D:
        returns -= 1  # its LF may be the next byte
    if returns != line_ends or data.count(b"\n", 0, end) != line_ends:
        raise _FaultError("a line does not end with CRLF")
    if found >= 0:
        return end
    if len(data) >= limit:
        raise _FaultError("the head is too long", 431 if line_ends else first_line_status, "limit")
    return Hint.NEED_MORE


def parse_request_head(head: bytes | bytearray, *, max_fields: int, max_target: int) -> RequestHead:
    """Read a request head, from the first byte of its request line to the end of its empty line.

    Args:
        head: what ``cut_request_head`` delimits.
        max_fields: most header fields.
        max_target: most bytes of the request target.

    Raises:
        ClientProtocolError: with status 400, 414 (target), 431 (fields), 501 (method, transfer coding) or 505
            (version).
    """
    try:
        return _parse_request(bytes(head), max_fields, max_target)
    except _FaultError as fault:
        fault.blame_client()


def parse_response_head(head: bytes | bytearray, *, max_fields: int) -> ResponseHead:
    """Read a response head, interim ones included, from its status line to the end of its empty line.

    Raises:
        UpstreamProtocolError: it is not strictly well-formed, or its framing is ambiguous.
    """
    try:
        return _parse_response(bytes(head), max_fields)
    except _FaultError as fault:
        fault.blame_upstream()


def _parse_request(head: bytes, max_fields: int, max_target: int) -> RequestHead:
    lines = _lines(head)
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise _FaultError("malformed request line")
    method, target, major, minor = match.groups()
    if not _METHOD.fullmatch(method):
        if _TOKEN.fullmatch(method):
            raise _FaultError("the method is not an upper-case token", 501)
        raise _FaultError("malformed method")
    if major is None:
        raise _FaultError("HTTP/0.9 is not supported", 505)
    if major != b"1" or minor not in (b"0", b"1"):
        raise _FaultError("the HTTP version is neither 1.0 nor 1.1", 505)
    if len(target) > max_target:
        raise _FaultError("the request target is too long", 414, "limit")
    version: Version = (1, 1) if minor == b"1" else (1, 0)
    form = _target_form(method, target)
    fields, host, length, chunked = _fields(lines, version, max_fields)
    if host is None and version == (1, 1):
        raise _FaultError("no Host field")
    return RequestHead(
        method=method.decode("ascii"),
        target=target,
        form=form,
        version=version,
        fields=fields,
        host=host,
        content_length=length,
        chunked=chunked,
    )


def _parse_response(head: bytes, max_fields: int) -> ResponseHead:
    lines = _lines(head)
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise _FaultError("malformed status line")
    minor, status, reason = match.groups()
    version: Version = (1, 1) if minor == b"1" else (1, 0)
    fields, _, length, chunked = _fields(lines, version, max_fields)
    return ResponseHead(
        status=int(status),
        reason=reason or b"",
        version=version,
        fields=fields,
        content_length=length,
        chunked=chunked,
    )


def _lines(head: bytes) -> list[bytes]:
    """Split at CRLF, without the empty line; a CR or LF that is left over matches none of the patterns."""
    if not head.endswith(b"\r\n\r\n"):
        raise _FaultError("the head is incomplete")
    return head[:-4].split(b"\r\n")


def _target_form(method: bytes, target: bytes) -> TargetForm:
    if b"#" in target:  # a fragment is never sent, and what precedes it is what some servers take for the path
        raise _FaultError("the request target has a fragment")
    if method == b"CONNECT":
        if _AUTHORITY_FORM.fullmatch(target):
            return TargetForm.AUTHORITY
    elif target.startswith(b"/"):
        return TargetForm.ORIGIN
    elif target == b"*":
        if method == b"OPTIONS":
            return TargetForm.ASTERISK
    elif _ABSOLUTE_FORM.match(target):
        return TargetForm.ABSOLUTE
    raise _FaultError("the request target does not suit the method")


def _fields(lines: list[bytes], version: Version, max_fields: int) -> tuple[Fields, bytes | None, int | None, bool]:
    """Read the fields behind the first line, and from them the host and the framing."""
    if len(lines) > max_fields + 1:
        raise _FaultError("too many header fields", 431, "limit")
    fields = []
    single: dict[bytes, bytes] = {}
    for line in lines[1:]:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _FaultError("malformed header field")
        name, value = match.groups()
        value = value.strip(b" \t")
        fields.append((name, value))
        folded = name.lower()
        if b"_" in folded and folded.replace(b"_", b"-") in _SINGLE:
            # CGI and WSGI can't tell Content_Length from Content-Length.
            raise _FaultError("a header field passes for another with an underscore")
        if folded in _SINGLE:
            if folded in single:
                raise _FaultError("a header field that must be single occurs twice")
            single[folded] = value

    length = single.get(b"content-length")
    coding = single.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:  # RFC 9112 section 6.3 calls it a likely attack
            raise _FaultError("both Content-Length and Transfer-Encoding")
        if version == (1, 0):  # RFC 9112 section 6.1: treat as faulty framing
            raise _FaultError("Transfer-Encoding in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise _FaultError("the transfer coding is not exactly chunked", 501)
    if length is not None and not _LENGTH.fullmatch(length):
        raise _FaultError("malformed Content-Length")
    return tuple(fields), single.get(b"host"), None if length is None else int(length), coding is not None
