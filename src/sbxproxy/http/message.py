"""HTTP heads as frozen values: what transforms see and change.

Values are kept as bytes, because RFC 9110 section 5.5 lets header values hold octets that are no text
(obs-text). The ``str`` views are latin-1, which maps each octet to one character and back.
"""

from __future__ import annotations

__all__ = ["Headers", "Request", "Response"]

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self


def fold_name(name: str | bytes) -> bytes:
    """Make a header name comparable: lower case, and ``_`` as ``-``, which WSGI and CGI can't tell apart."""
    raw = name.encode("ascii") if isinstance(name, str) else name
    return raw.lower().replace(b"_", b"-")


@dataclass(frozen=True, slots=True)
class Headers:
    """An ordered, immutable multi-map of header fields; names compare without case.

    Attributes:
        fields: pairs of name and value as on the wire, in order.
    """

    fields: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str | bytes, str | bytes]]) -> Self:
        """Build from pairs of text or bytes; text is latin-1."""

        def raw(text: str | bytes) -> bytes:
            return text.encode("latin-1") if isinstance(text, str) else text

        return cls(tuple((raw(name), raw(value)) for name, value in pairs))

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str | bytes) and self.get(name) is not None

    def __repr__(self) -> str:
        """Show names only: values may be secret."""
        return f"<Headers {', '.join(name.decode('latin-1') for name, _ in self.fields)}>"

    def get(self, name: str | bytes) -> str | None:
        """Return the first value of *name*, or ``None``."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str | bytes) -> list[str]:
        """Return all values of *name*, in order."""
        wanted = (name.encode("latin-1") if isinstance(name, str) else name).lower()
        return [value.decode("latin-1") for sent, value in self.fields if sent.lower() == wanted]

    def without(self, *names: str | bytes) -> Self:
        """Drop every field whose name is one of *names*, in any case, and with ``_`` for ``-``."""
        gone = {fold_name(name) for name in names}
        return type(self)(tuple([pair for pair in self.fields if fold_name(pair[0]) not in gone]))

    def with_header(self, name: str, value: str) -> Self:
        """Drop every field of that name and put this one last: afterwards it stands exactly once.

        Raises:
            ValueError: the name is no token, or the value holds a control character; the message doesn't show
                the value.
        """
        field = check_field(name, value)
        folded = fold_name(field[0])
        return type(self)((*[pair for pair in self.fields if fold_name(pair[0]) != folded], field))


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t -~]*")


def check_field(name: str, value: str) -> tuple[bytes, bytes]:
    """Return the field as bytes (RFC 9110 section 5.6.2 and 5.5).

    Raises:
        ValueError: the name is no token, or the value has CR, LF, NUL, another control character or a
            character above U+007E; the message never shows the value.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError("header name is not a token (RFC 9110 section 5.6.2)")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"value of header {name!r} has a control or non-ASCII character")
    return name.encode(), value.strip(" \t").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as a transform sees it: hop-by-hop fields and framing are gone, ``host`` is the verified server name.

    Attributes:
        method: upper-case token.
        target: origin-form, path and query as sent, or ``*``.
        headers: end-to-end fields, without ``host``, ``content-length``, ``transfer-encoding`` and ``expect``.
        host: the verified server name, canonical, with ``:port`` unless that is the scheme's own.
        body: the whole body where a transform asked for it, otherwise ``None``: it is streamed. A transform
            may replace it.
    """

    method: str
    target: str
    headers: Headers = field(default_factory=Headers)
    host: str
    body: bytes | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Leave out the query, which often holds secrets, and the body."""
        return f"<Request {self.method} {self.host}{self.path} {self.headers!r}>"

    @property
    def path(self) -> str:
        """The target without its query: what may be logged."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the first ``?``, or the empty string."""
        return self.target.partition("?")[2]

    def with_header(self, name: str, value: str) -> Self:
        """Return a copy in which *name* stands exactly once, with *value*; see ``Headers.with_header``."""
        return self.with_headers(self.headers.with_header(name, value))

    def without_header(self, *names: str) -> Self:
        """Return a copy without these fields."""
        return self.with_headers(self.headers.without(*names))

    def with_headers(self, headers: Headers) -> Self:
        """Return a copy with other fields."""
        return type(self)(method=self.method, target=self.target, headers=headers, host=self.host, body=self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response, made by a rule or a transform, or the head of an upstream's.

    Attributes:
        status: 200 to 599.
        headers: end-to-end fields; framing is made by the core.
        body: the whole body, or ``None`` for an upstream's, which is streamed.
    """

    status: int
    headers: Headers = field(default_factory=Headers)
    body: bytes | None = field(default=None, repr=False)

    def with_header(self, name: str, value: str) -> Self:
        """Return a copy in which *name* stands exactly once, with *value*; see ``Headers.with_header``."""
        return self._with(self.headers.with_header(name, value))

    def without_header(self, *names: str) -> Self:
        """Return a copy without these fields."""
        return self._with(self.headers.without(*names))

    def _with(self, headers: Headers) -> Self:
        return type(self)(status=self.status, headers=headers, body=self.body)
