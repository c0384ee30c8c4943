"""Secrets in a worker: it has none, and asks the supervisor for a value whenever a request needs one."""

from __future__ import annotations

__all__ = ["Asker", "RemoteSource"]

import itertools
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

    async def ask(self, sandbox: str, name: str) -> Secret:
        """Return the value of the secret *name* of *sandbox*, as of now.

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
        return question.value

    def answer(self, number: int, value: Secret | None, error: str) -> None:
        """Take an answer; one that nobody waits for any more is dropped."""
        question = self._open.get(number)
        if question is not None:
            question.value, question.error = value, error
            question.answered.set()


class _Question:
    __slots__ = ("answered", "error", "value")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.value: Secret | None = None
        self.error = ""


class RemoteSource:
    """A ``SecretSource`` that asks the supervisor; what can't change is asked for once."""

    __slots__ = ("_asker", "_kept", "_lasting", "_sandbox")

    def __init__(self, asker: Asker, sandbox: str, *, lasting: bool) -> None:
        """Ask for secrets of *sandbox*; *lasting* tells that the value never changes."""
        self._asker = asker
        self._sandbox = sandbox
        self._lasting = lasting
        self._kept: Secret | None = None

    def __repr__(self) -> str:
        return "<RemoteSource>"

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError("a source of secrets can't be pickled")

    async def get(self, name: str) -> Secret:
        """Return the value of *name*.

        Raises:
            SecretError: there is none, or no answer.
        """
        if self._kept is not None:
            await trio.lowlevel.checkpoint()
            return self._kept
        value = await self._asker.ask(self._sandbox, name)
        if self._lasting:
            self._kept = value
        return value
