"""What workers say of themselves: their events, their questions for secrets, and, when they are gone, that they are."""

from __future__ import annotations

__all__ = ["Hearing"]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from sbxproxy.errors import SecretError
from sbxproxy.events import Event, Observer, Problem, from_dict, telling
from sbxproxy.workers.member import Member
from sbxproxy.workers.shared import SharedSandbox


class Hearing:
    """Takes the messages of all workers that are no answers."""

    __slots__ = ("_emit", "_nursery", "_sandboxes")

    def __init__(
        self, sandboxes: Mapping[str, SharedSandbox], observers: Sequence[Observer], nursery: Callable[[], trio.Nursery]
    ) -> None:
        """Look for sandboxes in *sandboxes* as it is at each moment.

        Args:
            sandboxes: by name.
            observers: told of what belongs to no sandbox, or to one that is closed.
            nursery: returns the one in which sources of secrets are asked.
        """
        self._sandboxes = sandboxes
        self._emit = telling(observers)
        self._nursery = nursery

    def take(self, member: Member, message: dict[str, Any]) -> None:
        """Take a message of *member*; a wrong one ends it."""
        match message:
            case {"do": "events", "events": list(events), "lost": int(lost)}:
                self._take_events(member, events, lost)
            case {"do": "ask", "ask": int(number), "sandbox": str(sandbox), "name": str(name)}:
                self._nursery().start_soon(self._answer, member, number, sandbox, name)
            case _:
                member.kill("it said something unknown")

    def lost(self, member: Member) -> None:
        """Tell that *member* has ended, to all whose flows it had."""
        told = f"worker {member.number} (process {member.pid}) {member.describe()}; another takes its place"
        for name in member.holds:
            sandbox = self._sandboxes.get(name)
            if sandbox is not None:
                flows = sandbox.lose(member.number)
                detail = f"{told}; {flows} of its flows are lost" if flows else told
                sandbox.emit(Problem(sandbox=name, flow=None, reason="worker-lost", detail=detail))
        if not member.holds:
            self._emit(Problem(sandbox="", flow=None, reason="worker-lost", detail=told))

    def _take_events(self, member: Member, events: Sequence[Any], lost: int) -> None:
        for values in events:
            event = _event(values)
            if event is None:
                member.kill("its events were wrong")
                return
            sandbox = self._sandboxes.get(event.sandbox)
            if sandbox is not None:
                sandbox.emit(event)
            else:
                self._emit(event)
        if lost:
            self._emit(Problem(sandbox="", flow=None, reason="events-lost", detail=f"{lost} events of worker {member.number}"))

    async def _answer(self, member: Member, number: int, name: str, secret: str) -> None:
        sandbox = self._sandboxes.get(name)
        answer: dict[str, Any] = {"do": "secret", "ask": number}
        try:
            if sandbox is None or name not in member.holds:
                raise SecretError(f"no sandbox has the secret {secret!r}")
            answer["value"], keep = await sandbox.secret(secret)
            answer["keep"] = None if keep == math.inf else keep
        except SecretError as error:
            answer["error"] = str(error)
        member.post(answer)


def _event(values: Any) -> Event | None:
    """Read an event; ``None`` if it is none, or has something else where it is looked at here."""
    match values:
        case {"sandbox": str(), "flow": int() | None} | {"sandbox": str(), "event": "dns"}:
            try:
                return from_dict(values)
            except (ValueError, TypeError):
                return None
        case _:
            return None
