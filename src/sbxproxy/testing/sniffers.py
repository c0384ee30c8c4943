"""Checks that a sniffer's answer depends on the bytes and on nothing else, least of all on how TCP cut them."""

from __future__ import annotations

__all__ = ["check_sniffer"]

import random
from collections.abc import Iterable, Mapping

from sbxproxy.stages import slots
from sbxproxy.testing.checks import ensure
from sbxproxy.wire.result import Hint, Sniffed, Sniffer

_TAILS = (b"\0", b"\r\n\r\n", b"\xff" * 64, bytes(range(256)))
_SHOWN = 24


def check_sniffer(sniffer: Sniffer, samples: Mapping[bytes, Sniffed | Hint], *, seed: int = 0, mutations: int = 200) -> None:
    """Check *sniffer* on *samples*: every prefix of each, what may follow, and damaged copies.

    It must be a plain function of one argument that always answers with a ``Sniffed`` or a ``Hint``, gives the same answer to the
    same bytes however often and in whatever order it is asked, and never changes its mind: once it is anything but ``NEED_MORE``,
    more bytes don't change it.

    Args:
        sniffer: the part.
        samples: first bytes of connections and the right answer to each; give some that are not its own, and some cut short.
        seed: for the damaged copies.
        mutations: damaged copies of each sample.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule; the message names it and the bytes.
        ValueError: no sample was given, or one is empty: a sniffer is never asked about no bytes.
    """
    slots.check_sniffer(sniffer)
    if not samples or b"" in samples:
        raise ValueError("give at least one sample, and none that is empty")
    answers: dict[bytes, Sniffed | Hint] = {}
    for sample, expected in samples.items():
        answer = _follow(sniffer, sample, answers)
        ensure(answer == expected, f"sniffer answered {answer} instead of {expected} to {_show(sample)}")
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    for sample in samples:
        for _ in range(mutations):
            _follow(sniffer, _damaged(sample, chance), answers, every=False)
    _ask_again(sniffer, answers, chance)


def _follow(sniffer: Sniffer, data: bytes, answers: dict[bytes, Sniffed | Hint], *, every: bool = True) -> Sniffed | Hint:
    """Ask about growing prefixes of *data* and what may follow; return the answer to *data* itself."""
    ends: Iterable[int] = range(1, len(data) + 1) if every else sorted({1, len(data) // 2 or 1, len(data)})
    last: Sniffed | Hint = Hint.NEED_MORE
    for end in ends:
        last = _step(sniffer, data[:end], last, answers)
    for tail in _TAILS:
        _step(sniffer, data + tail, last, answers)
    return last


def _step(sniffer: Sniffer, data: bytes, before: Sniffed | Hint, answers: dict[bytes, Sniffed | Hint]) -> Sniffed | Hint:
    answer = _ask(sniffer, data)
    answers[data] = answer
    if before is not Hint.NEED_MORE:
        ensure(answer == before, f"sniffer answered {before} and then {answer} when more bytes had come: {_show(data)}")
    return answer


def _ask(sniffer: Sniffer, data: bytes) -> Sniffed | Hint:
    try:
        answer: object = sniffer(data)
    except Exception as error:
        raise AssertionError(f"sniffer raised {type(error).__name__} for {_show(data)}") from error
    ensure(isinstance(answer, Sniffed | Hint), f"sniffer answered {type(answer).__name__}, no Sniffed or Hint, to {_show(data)}")
    assert isinstance(answer, Sniffed | Hint)
    if isinstance(answer, Sniffed):
        wire: object = answer.wire
        ensure(isinstance(wire, str) and wire, f"Sniffed.wire must name the protocol: {_show(data)}")
        name: object = answer.server_name
        ensure(name is None or (isinstance(name, bytes) and name), f"Sniffed.server_name must be bytes or None: {_show(data)}")
        alpn: object = answer.alpn
        ensure(isinstance(alpn, tuple), f"Sniffed.alpn must be a tuple of bytes: {_show(data)}")
    return answer


def _ask_again(sniffer: Sniffer, answers: Mapping[bytes, Sniffed | Hint], chance: random.Random) -> None:
    """Ask everything once more in another order: a sniffer that remembers gives itself away."""
    order = list(answers)
    chance.shuffle(order)
    for data in order:
        answer = _ask(sniffer, data)
        ensure(answer == answers[data], f"sniffer answered {answers[data]} at first and {answer} later to {_show(data)}")


def _damaged(sample: bytes, chance: random.Random) -> bytes:
    data = bytearray(sample)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice(b"\0\xff\x7f\x80 \r\n")
            case 2:
                data.insert(at, chance.randrange(256))
            case _ if len(data) > 1:
                del data[at]
            case _:
                pass
    return bytes(data)


def _show(data: bytes) -> str:
    more = f"… ({len(data)} bytes)" if len(data) > _SHOWN else ""
    return f"{data[:_SHOWN]!r}{more}"
