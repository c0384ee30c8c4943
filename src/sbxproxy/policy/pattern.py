"""Domain patterns: how they are read, and how the most specific one is found without looking at the others.

A ``*`` stands for a whole label. In front it is one label or more, elsewhere exactly one; alone it is every
name. The apex is not covered: ``*.example.com`` matches ``a.b.example.com`` and not ``example.com``.
"""

from __future__ import annotations

__all__ = ["PatternTable", "parse_pattern"]

from collections.abc import Collection, Iterator

from sbxproxy.hostname import MAX_NAME, Hostname, canonical_hostname
from sbxproxy.paced import paced
from sbxproxy.policy.fault import Fault

_ADVICE = 'a host name or a wildcard: "api.example.com", "*.example.com"'


def parse_pattern(text: str) -> str:
    """Return *text* in canonical form: A-labels in lower case, no trailing dot, ``*`` only as whole labels.

    Raises:
        Fault: it is no pattern, or could never match.
    """
    if name := canonical_hostname(text):
        return name
    if text.startswith("*.") and (name := canonical_hostname(text[2:])) and len(name) <= MAX_NAME - 2:
        return f"*.{name}"
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


class _Node:
    """One label further left; ``here`` ends a pattern, ``beyond`` ends one with a leading ``*`` in front."""

    __slots__ = ("any_label", "beyond", "here", "labels")

    def __init__(self) -> None:
        self.labels: dict[str, _Node] = {}
        self.any_label: _Node | None = None
        self.here: str | None = None
        self.beyond: str | None = None


class PatternTable:
    """An immutable set of canonical patterns.

    A look-up costs what the name is long, not what the table is large. Of several patterns that match, the exact one wins; then, label by
    label from the right, a literal beats an inner ``*``, and that beats a leading ``*``. Patterns without an inner ``*``, which are nearly
    all, are found without making an object for each: the garbage collector would look at those again and again.
    """

    __slots__ = ("_above", "_below", "_patterns", "_root")

    def __init__(self, patterns: Collection[str] = ()) -> None:
        """Take canonical patterns; the collection is kept, must not change, and should be quick to tell whether it holds something."""
        self._patterns = patterns
        self._below: dict[str, str] = {}
        """What stands behind a leading ``*``, without the dot, and the pattern."""
        self._above: set[str] = set()
        """Every name that a name matched by one of these stands below, as far as they spell it."""
        self._root: _Node | None = None
        above = self._above
        for pattern in paced(patterns):
            if "*" in pattern:
                if "*" in pattern[1:] or pattern[0] != "*":
                    self._root = self._root or _Node()
                    self._add(self._root, pattern)
                    continue
                self._below[pattern[2:]] = pattern
            _, _, parent = pattern.partition(".")
            while parent and parent not in above:
                above.add(parent)
                _, _, parent = parent.partition(".")

    @staticmethod
    def _add(node: _Node, pattern: str) -> None:
        first, *others = pattern.split(".")
        for label in reversed(others):
            if label == "*":
                node.any_label = node.any_label or _Node()
                node = node.any_label
            else:
                node = node.labels.setdefault(label, _Node())
        if first == "*":
            node.beyond = pattern
        else:
            node.labels.setdefault(first, _Node()).here = pattern

    def find(self, name: Hostname) -> str | None:
        """Return the most specific pattern that matches *name*."""
        if name in self._patterns:
            return name
        found, rest = None, name if self._below else ""
        while rest and found is None:
            _, _, rest = rest.partition(".")
            found = self._below.get(rest)
        if self._root is None:
            return found
        labels = name.split(".")
        other = next(self._descend(self._root, labels, len(labels)), None)
        return found if other is None or (found is not None and _rank(found) > _rank(other)) else other

    def _covering(self, name: str) -> Iterator[str]:
        """Yield the patterns with nothing but a leading ``*`` that match *name*, most specific first."""
        rest = name
        while rest:
            _, _, rest = rest.partition(".")
            if (pattern := self._below.get(rest)) is not None:
                yield pattern

    def _descend(self, node: _Node, labels: list[str], left: int) -> Iterator[str]:
        """Yield the patterns under *node* that match with *left* labels of the name still to be matched, most specific first."""
        if left == 0:
            if node.here is not None:
                yield node.here
            return
        for child in (node.labels.get(labels[left - 1]), node.any_label):
            if child is not None:
                yield from self._descend(child, labels, left - 1)
        if node.beyond is not None:
            yield node.beyond

    def find_all(self, name: Hostname) -> list[str]:
        """Return all patterns that match *name*, most specific first."""
        found = [*self._covering(name)]
        if self._root is not None:
            labels = name.split(".")
            found += self._descend(self._root, labels, len(labels))
        return [*([name] if name in self._patterns else []), *sorted(found, key=_rank, reverse=True)]

    def has_below(self, name: str) -> bool:
        """Tell whether some pattern matches a name below *name*: more labels, ending in these; "" is the root of all names.

        It costs what ``find`` does.
        """
        if not name:
            return bool(self._patterns)
        if name in self._above or next(self._covering(name), None) is not None:
            return True
        if self._root is None:
            return False
        labels = name.split(".")
        return self._goes_on(self._root, labels, len(labels))

    def _goes_on(self, node: _Node, labels: list[str], left: int) -> bool:
        # A leading * takes any number of labels, so what stands in front of it is below too.
        if node.beyond is not None:
            return True
        if left == 0:
            return bool(node.labels) or node.any_label is not None
        children = (node.labels.get(labels[left - 1]), node.any_label)
        return any(child is not None and self._goes_on(child, labels, left - 1) for child in children)


def _rank(pattern: str) -> list[int]:
    """Return what the more specific of two patterns that match one name has more of, label by label from the right."""
    first, *others = pattern.split(".")
    return [*(1 if label == "*" else 2 for label in reversed(others)), 0 if first == "*" else 2]
