"""Secrets in a worker: it has none, and asks the supervisor for a value whenever a request needs one."""

from __future__ import annotations

__all__ = ["Asker", "RemoteSource"]

import itertools
import math
from typing import Any

import trio

from sbxproxy.errors import SecretError
from sbxproxy.secrets import Secret
from sbxproxy.workers.channel import Channel

PATIENCE = 60.0
"""Seconds for an answer: more than any source of ours takes, a command with its 30 included."""


class Asker:
    """Sends the questions of all sandboxes of a worker, and gives each its answer."""

    __slots__ = ("_channel", "_numbers", "_open")

    def __init__(self, channel: Channel) -> None:
        """Ask by *channel*."""
        self._channel = channel
        self._numbers = itertools.count(1)
        self._open: dict[int, _Question] = {}

    def __repr__(self) -> str:
        return f"<Asker, {len(self._open)} questions>"

    async def ask(self, sandbox: str, name: str) -> tuple[Secret, float]:
        """Return the value of the secret *name* of *sandbox*, as of now, and for how many seconds from now it may be kept.

        Raises:
            SecretError: there is none, or no answer.
        """
        number = next(self._numbers)
        question = self._open[number] = _Question()
        try:
            self._channel.post({"do": "ask", "ask": number, "sandbox": sandbox, "name": name})
            with trio.move_on_after(PATIENCE):
                await question.answered.wait()
        finally:
            del self._open[number]
        if question.value is None:
            raise SecretError(question.error or f"secret {name!r}: no answer in {PATIENCE:g} s")
        return question.value, question.keep

    def answer(self, number: int, value: Secret | None, error: str, keep: float = 0.0) -> None:
        """Take an answer; one that nobody waits for any more is dropped."""
        question = self._open.get(number)
        if question is not None:
            question.value, question.error, question.keep = value, error, keep
            question.answered.set()


class _Question:
    __slots__ = ("answered", "error", "keep", "value")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.value: Secret | None = None
        self.error = ""
        self.keep = 0.0


class RemoteSource:
    """A ``SecretSource`` that asks the supervisor, and keeps one value for as long as that lets it."""

    __slots__ = ("_asker", "_kept", "_sandbox", "_until")

    def __init__(self, asker: Asker, sandbox: str) -> None:
        """Ask for secrets of *sandbox*."""
        self._asker = asker
        self._sandbox = sandbox
        self._kept: Secret | None = None
        self._until = -math.inf

    def __repr__(self) -> str:
        return "<RemoteSource>"

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError("a source of secrets can't be pickled")

    async def get(self, name: str) -> Secret:
        """Return the value of *name*.

        Raises:
            SecretError: there is none, or no answer.
        """
        if (kept := self.at_hand(name)) is not None:
            await trio.lowlevel.checkpoint()
            return kept
        began = trio.current_time()
        value, keep = await self._asker.ask(self._sandbox, name)
        self._kept, self._until = (value, began + keep) if keep > 0 else (None, -math.inf)
        return value

    def at_hand(self, name: str) -> Secret | None:  # noqa: ARG002
        """Return what is kept, while it may be."""
        return self._kept if trio.current_time() < self._until else None
