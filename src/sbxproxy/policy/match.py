"""What a rule asks of a request: matchers for its path, method, query and header fields.

A regular expression is RE2's, searched for anywhere in the text; ``^`` and ``$`` anchor it. RE2 takes time in
proportion to the text whatever the pattern, so a request can't be made to cost more.
"""

from __future__ import annotations

__all__ = ["Form", "KeyValue", "Matcher", "RequestMatch", "check_method"]

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from urllib.parse import parse_qsl

from sbxproxy.policy.fault import Fault
from sbxproxy.policy.path import canonical_path, canonical_rule_path

_REGEX_MEMORY = 1 << 20
"""Bytes for one compiled expression. RE2's own default is 8 MiB; a policy may hold thousands."""

_METHOD = re.compile(r"[A-Z][A-Z0-9!#$%&'*+.^_|~-]{0,31}")


def check_method(text: str) -> str:
    """Return *text* if it is a method.

    Raises:
        Fault: it isn't.
    """
    if not _METHOD.fullmatch(text):
        raise Fault("not a method", "in upper case, such as GET: methods are case-sensitive")
    return text


class Form(StrEnum):
    """How a matcher compares; the values are the keys in the document."""

    EXACT = "exact"
    STARTS_WITH = "startsWith"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One comparison.

    Attributes:
        form: how to compare.
        text: what the author wrote.
        fold: compare without case (names of header fields).
    """

    form: Form
    text: str = field(repr=False)
    fold: bool = False
    _compared: str = field(default="", repr=False, compare=False)
    _regex: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, form: Form, text: str, *, fold: bool = False) -> Self:
        """Make a matcher.

        Raises:
            Fault: *text* is no RE2 expression, or is empty where that would fit everything unnoticed.
        """
        if form is Form.REGEX:
            return cls(form, text, fold, _regex=_compile(text, fold=fold))
        if not text and form is Form.STARTS_WITH:
            raise Fault("empty: everything starts with that", "leave the matcher out")
        return cls(form, text, fold, _compared=text.lower() if fold else text)

    @classmethod
    def of_path(cls, form: Form, text: str) -> Self:
        """Make a matcher for paths, which are compared in their canonical form.

        Raises:
            Fault: no path can match.
        """
        if form is Form.REGEX:
            return cls(form, text, _regex=_compile(text, fold=False))
        return cls(form, text, _compared=canonical_rule_path(text, whole=form is Form.EXACT))

    def fits(self, text: str) -> bool:
        """Compare with *text*."""
        if self._regex is not None:
            return self._regex.search(text) is not None
        if self.fold:
            text = text.lower()
        return text == self._compared if self.form is Form.EXACT else text.startswith(self._compared)

    def document(self) -> dict[str, str]:
        """Return it as the author wrote it."""
        return {self.form.value: self.text}


def _compile(pattern: str, *, fold: bool) -> Any:
    import re2  # noqa: PLC0415 - few policies need it

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _REGEX_MEMORY
    options.case_sensitive = not fold
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        # RE2 says "missing ): (abc": the part after the colon quotes the pattern.
        detail = error.args[0] if error.args else b""
        text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        raise Fault(
            f"not a regular expression: {text.partition(':')[0]}",
            "RE2 syntax: no look-around, no back-references",
        ) from None


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A pair that must be among a request's query parameters or header fields; ``None`` fits anything."""

    key: Matcher | None
    value: Matcher | None

    def fits(self, pairs: Iterable[tuple[str, str]]) -> bool:
        """Tell whether one of *pairs* fits in both halves; any of repeated ones will do."""
        key, value = self.key, self.value
        return any((key is None or key.fits(name)) and (value is None or value.fits(content)) for name, content in pairs)

    def document(self) -> dict[str, object]:
        """Return it as the author wrote it."""
        halves = (("key", self.key), ("value", self.value))
        return {name: half.document() for name, half in halves if half is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMatch:
    """All that a rule asks for; what is empty asks for nothing.

    Attributes:
        path: compared with the path, without the query, in the form that ``canonical_path`` gives it.
        methods: any of these.
        query: each must fit a parameter; names and values are decoded as form values (``+`` is a space).
        headers: each must fit a field; names compare without case, values are read as latin-1.
    """

    path: Matcher | None = None
    methods: frozenset[str] = frozenset()
    query: tuple[KeyValue, ...] = ()
    headers: tuple[KeyValue, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether every request fits."""
        return not (self.path or self.methods or self.query or self.headers)

    def fits(self, *, method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Tell whether a request fits in every part.

        An ambiguous path fits no path matcher; it is for the caller to refuse such a request.
        """
        if self.methods and method not in self.methods:
            return False
        if self.path is not None:
            path = canonical_path(target)
            if path is None or not self.path.fits(path):
                return False
        if self.query:
            parameters = parse_qsl(target.partition("?")[2], keep_blank_values=True)
            if not all(pair.fits(parameters) for pair in self.query):
                return False
        if self.headers:
            fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            return all(pair.fits(fields) for pair in self.headers)
        return True

    def document(self) -> dict[str, object]:
        """Return it as the author wrote it, but with the methods sorted."""
        written: dict[str, object] = {}
        if self.path is not None:
            written["path"] = self.path.document()
        if self.methods:
            written["method"] = sorted(self.methods)
        if self.query:
            written["queryString"] = [pair.document() for pair in self.query]
        if self.headers:
            written["headers"] = [pair.document() for pair in self.headers]
        return written
