"""What third parties' policy stages make of a flow that the policy allows: they may deny it or hand it over, and open nothing.

They are asked when a flow is decided, and again when the policy has changed.
"""

from __future__ import annotations

__all__ = ["narrow"]

from sbxproxy.connection.context import Context
from sbxproxy.errors import StageError
from sbxproxy.flow import Flow
from sbxproxy.policy.decision import Decision, Deny, Handle, Relay
from sbxproxy.stages.pipeline import run_stage


async def narrow(context: Context, flow: Flow) -> Decision:
    """Ask the third parties' policy stages about a flow that the policy allows; the first that objects decides.

    Raises:
        StageError: one failed, or tried to open more than the policy does.
    """
    for stage in context.policies:
        allowed = flow.decision
        assert allowed is not None
        assert not isinstance(allowed, Deny)
        label = f"policy stage {type(stage).__name__}"
        answer = await run_stage(label, context.limits.stage, stage.decide, flow)
        match answer:
            case Deny():
                flow.decision = answer
                return answer
            case Handle() if answer.dial == allowed.dial and answer.name in context.handlers and isinstance(allowed, Relay):
                flow.decision = answer
            case _ if answer is allowed or answer == allowed:
                pass
            case _:
                raise StageError(f"{label} returned something that the policy does not allow")
    assert flow.decision is not None
    return flow.decision
