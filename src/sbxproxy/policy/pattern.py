"""Domain patterns: how they are read, and how the most specific one is found without looking at the others.

A ``*`` stands for a whole label. In front it is one label or more, elsewhere exactly one; alone it is every
name. The apex is not covered: ``*.example.com`` matches ``a.b.example.com`` and not ``example.com``.
"""

from __future__ import annotations

__all__ = ["PatternTable", "parse_pattern"]

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from sbxproxy.hostname import MAX_NAME, Hostname, canonical_hostname
from sbxproxy.policy.fault import Fault

_ADVICE = 'a host name or a wildcard: "api.example.com", "*.example.com"'


def parse_pattern(text: str) -> str:
    """Return *text* in canonical form: A-labels in lower case, no trailing dot, ``*`` only as whole labels.

    Raises:
        Fault: it is no pattern, or could never match.
    """
    if name := canonical_hostname(text):
        return name
    # Before anything that takes time in proportion to it (IDNA does, and more).
    if len(text) > MAX_NAME + 1:
        raise Fault("longer than a host name can be", f"at most {MAX_NAME} characters")
    if not text.strip():
        raise Fault("empty", _ADVICE)
    labels = text.removesuffix(".").split(".")
    if text == "*.":
        raise Fault("a wildcard without a domain", '"*" for every domain, or "*.example.com"')
    if any("*" in label and label != "*" for label in labels):
        raise Fault("* stands for a whole label", 'such as "*.example.com", not "api*.example.com"')
    ascii_labels = [label if label == "*" or label.isascii() else _a_label(label) for label in labels]
    pattern = ".".join(ascii_labels).lower()
    # A wildcard label can be any, so one letter stands in for it in the test.
    probe = pattern.replace("*", "x")
    if canonical_hostname(probe) != probe:
        raise Fault(*_why_no_pattern(text))
    return pattern


def _a_label(label: str) -> str:
    import idna  # noqa: PLC0415 - few policies need it

    try:
        encoded = idna.encode(label, uts46=True, transitional=False).decode("ascii")
        normal = idna.decode(encoded)
    except (idna.IDNAError, UnicodeError):
        raise Fault("not a valid internationalised name (IDNA 2008)", "its A-label, such as xn--e1afmkfd") from None
    if normal != label:
        # Full-width letters, U+212A for k and the like read as one name and are another.
        raise Fault("an internationalised name that is not in its normal form", f'write "{encoded}"')
    return encoded


def _why_no_pattern(text: str) -> tuple[str, str]:
    if "://" in text:
        return "a URL, not a host name", _ADVICE
    if "/" in text:
        return "not a host name", f"address ranges go to subnets.allow; otherwise {_ADVICE}"
    if text.count(":") == 1:
        return "a pattern has no port: it allows TLS on every port", "leave the port out"
    if ":" in text or text.replace(".", "").isdigit():
        return "an address, not a host name", "put it in subnets.allow"
    if text.rsplit(".", maxsplit=1)[-1][:1].isdigit():
        return "names can't end in a number", _ADVICE
    return "not a host name", _ADVICE


_Value = TypeVar("_Value")


class _Node(Generic[_Value]):
    """One label further left; ``here`` ends a pattern, ``beyond`` is a leading ``*`` in front of it."""

    __slots__ = ("any_label", "beyond", "here", "labels")

    def __init__(self) -> None:
        self.labels: dict[str, _Node[_Value]] = {}
        self.any_label: _Node[_Value] | None = None
        self.here: _Value | None = None
        self.beyond: _Value | None = None


class PatternTable(Generic[_Value]):
    """An immutable map from canonical patterns to values.

    A look-up follows the labels of the name from the right, so it costs what the name is long, not what the
    table is large. Of several patterns that match, the exact one wins; then, label by label from the right, a
    literal beats an inner ``*``, and that beats a leading ``*``.
    """

    __slots__ = ("_above", "_exact", "_root")

    def __init__(self, patterns: Iterable[tuple[str, _Value]] = ()) -> None:
        """Take canonical patterns; of a pattern that stands twice the last value counts."""
        self._exact: dict[str, _Value] = {}
        self._above: set[str] = set()
        """Every proper ancestor of an exact name."""
        self._root: _Node[_Value] | None = None
        for pattern, value in patterns:
            if "*" in pattern:
                self._root = self._root or _Node()
                self._add(self._root, pattern, value)
            else:
                self._exact[pattern] = value
                _, _, parent = pattern.partition(".")
                while parent and parent not in self._above:
                    self._above.add(parent)
                    _, _, parent = parent.partition(".")

    @staticmethod
    def _add(node: _Node[_Value], pattern: str, value: _Value) -> None:
        first, *others = pattern.split(".")
        for label in reversed(others):
            if label == "*":
                node.any_label = node.any_label or _Node()
                node = node.any_label
            else:
                node = node.labels.setdefault(label, _Node())
        if first == "*":
            node.beyond = value
        else:
            node.labels.setdefault(first, _Node()).here = value

    def find(self, name: Hostname) -> _Value | None:
        """Return the value of the most specific pattern that matches *name*."""
        found = self._exact.get(name)
        if found is not None or self._root is None:
            return found
        labels = name.split(".")
        return self._descend(self._root, labels, len(labels))

    def _descend(self, node: _Node[_Value], labels: list[str], left: int) -> _Value | None:
        """Look among the patterns under *node* with *left* labels of the name not yet matched."""
        if left == 0:
            return node.here
        child = node.labels.get(labels[left - 1])
        if child is not None:
            found = self._descend(child, labels, left - 1)
            if found is not None:
                return found
        if node.any_label is not None:
            found = self._descend(node.any_label, labels, left - 1)
            if found is not None:
                return found
        return node.beyond

    def find_all(self, name: Hostname) -> Iterator[_Value]:
        """Yield the values of all patterns that match *name*, most specific first."""
        if (found := self._exact.get(name)) is not None:
            yield found
        if self._root is not None:
            labels = name.split(".")
            yield from self._descend_all(self._root, labels, len(labels))

    def _descend_all(self, node: _Node[_Value], labels: list[str], left: int) -> Iterator[_Value]:
        if left == 0:
            if node.here is not None:
                yield node.here
            return
        for child in (node.labels.get(labels[left - 1]), node.any_label):
            if child is not None:
                yield from self._descend_all(child, labels, left - 1)
        if node.beyond is not None:
            yield node.beyond

    def has_below(self, name: str) -> bool:
        """Tell whether some pattern matches a name below *name*: more labels, ending in these; "" is the root of all names.

        It costs what ``find`` does.
        """
        if not name:
            return bool(self._exact) or self._root is not None
        if name in self._above:
            return True
        if self._root is None:
            return False
        labels = name.split(".")
        return self._goes_on(self._root, labels, len(labels))

    def _goes_on(self, node: _Node[_Value], labels: list[str], left: int) -> bool:
        # A leading * takes any number of labels, so what stands in front of it is below too.
        if node.beyond is not None:
            return True
        if left == 0:
            return bool(node.labels) or node.any_label is not None
        children = (node.labels.get(labels[left - 1]), node.any_label)
        return any(child is not None and self._goes_on(child, labels, left - 1) for child in children)
