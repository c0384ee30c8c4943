"""Ask the sniffers what a stream is. Their order matters, the way TCP cut the stream does not."""

from __future__ import annotations

__all__ = ["BUILTIN", "bytes_wanted", "sniff", "sniff_http"]

import re
from collections.abc import Sequence
from typing import Literal

from sbxproxy.wire.postgres import sniff_postgres
from sbxproxy.wire.result import Hint, Sniffed, Sniffer
from sbxproxy.wire.tls import missing_hello_bytes, sniff_tls

_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]*")
_LONGEST_METHOD = 20
_TARGET_STARTS = (b"/", b"* HTTP/", b"http://", b"https://")


def sniff_http(data: bytes) -> Sniffed | Hint:
    """Recognise an HTTP request by an upper-case method, a space, and the beginning of a request target.

    That includes the preface of HTTP/2 with prior knowledge (``PRI * HTTP/2.0``), and excludes protocols
    whose lines also begin with an upper-case word (SSH, SMTP, IRC, RTSP, Redis) by what follows it.
    """
    space = data.find(b" ", 0, _LONGEST_METHOD + 1)
    method = data[:space] if space >= 0 else data[: _LONGEST_METHOD + 1]
    if not _METHOD.fullmatch(method):
        return Hint.NOT_MINE if data else Hint.NEED_MORE
    if space < 0:
        return Hint.NEED_MORE if len(data) <= _LONGEST_METHOD else Hint.NOT_MINE
    target = data[space + 1 : space + 9]
    if not target:
        return Hint.NEED_MORE
    if method == b"CONNECT":
        return Sniffed("http") if target[:1].isalnum() or target[:1] == b"[" else Hint.NOT_MINE
    hint = Hint.NOT_MINE
    for start in _TARGET_STARTS:
        if target.startswith(start):
            return Sniffed("http")
        if start.startswith(target):
            hint = Hint.NEED_MORE
    return hint


BUILTIN: tuple[Sniffer, ...] = (sniff_tls, sniff_http, sniff_postgres)
"""No two of these claim the same bytes; sniffers of third parties come after them."""

_TLS_FIRST_BYTE = 0x16


def sniff(data: bytes, sniffers: Sequence[Sniffer] = BUILTIN, *, eof: bool = False) -> Sniffed | Literal[Hint.NEED_MORE]:
    """Say what the stream that begins with *data* is.

    The first sniffer that needs more stops the asking, even if a later one would claim the bytes: otherwise
    the answer would depend on whether the deciding byte came in the first segment.

    Args:
        data: all bytes so far.
        sniffers: whom to ask, in order.
        eof: no more bytes will come, or none will be waited for; the answer is then never ``NEED_MORE``.

    Returns:
        What the sniffer said; ``unknown`` if none claims the bytes or they end too early; ``silent`` for no
        bytes at all.
    """
    if data:
        for sniffer in sniffers:
            answer = sniffer(data)
            if isinstance(answer, Sniffed):
                return answer
            if answer is Hint.NEED_MORE:
                break
        else:
            return Sniffed("unknown")
    if not eof:
        return Hint.NEED_MORE
    if not data:
        return Sniffed("silent")
    if data[0] == _TLS_FIRST_BYTE:
        return Sniffed("tls", problem="the ClientHello is incomplete")
    return Sniffed("unknown")


def bytes_wanted(data: bytes) -> int:
    """After ``NEED_MORE`` for *data*, say how many bytes it takes in all for the next question.

    Asking at every byte that arrives is right but wasteful: a hello that comes one byte at a time would be
    read from its start thousands of times. The figure never exceeds what a complete first message needs, so
    waiting for it can't hang.
    """
    if data[:1] == bytes((_TLS_FIRST_BYTE,)):
        return len(data) + missing_hello_bytes(data)
    return len(data) + 1
