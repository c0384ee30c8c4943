"""Third parties' parts, for what happens round them."""

from __future__ import annotations

from typing import Any

import trio

from sbxproxy.flow import Flow
from sbxproxy.policy.decision import Deny, Handle


class HandleAll:
    """Gives every flow that the policy allows to the handler *name*."""

    def __init__(self, name: str = "echo") -> None:
        self.name = name

    async def decide(self, flow: Flow) -> Any:
        await trio.lowlevel.checkpoint()
        decision = flow.decision
        assert decision is not None
        assert not isinstance(decision, Deny)
        return Handle(name=self.name, reason=decision.reason, matched=decision.matched, dial=decision.dial)


class Echo:
    """A protocol of its own: answers, and never asks the server."""

    async def handle(self, flow: Flow, client: Any, upstream: Any) -> None:
        first = await client.receive_some()
        await client.send_all(b"handled " + first)
        flow.bytes_up += len(first)


class Toggle:
    """Agrees until it is told to object."""

    objects = False

    async def decide(self, flow: Flow) -> Any:
        await trio.lowlevel.checkpoint()
        return Deny(reason="quota", detail="no more today") if self.objects else flow.decision
