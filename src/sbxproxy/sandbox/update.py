"""An update of the policy is a replacement: it is put in force in one step, and then every live flow is judged again by it."""

from __future__ import annotations

__all__ = ["put_in_force"]

import trio

from sbxproxy.connection.context import Context
from sbxproxy.connection.narrow import narrow
from sbxproxy.errors import StageError
from sbxproxy.events import PolicyChanged, Problem
from sbxproxy.flow import CUT_PATIENCE, Flow, all_finished
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.policy.model import Policy

SLICE = 256
"""Flows judged again at a stretch before other tasks get a turn."""


async def put_in_force(context: Context, policy: Policy) -> PolicyChanged:
    """Let *policy* decide from now on, and cut every flow of the sandbox that it would have decided otherwise.

    Returns:
        What changed, which observers were told too.
    """
    context.policy = policy
    context.pool.forget()
    context.transforms.forget()
    cut: list[Flow] = []
    kept = 0
    for index, flow in enumerate(tuple(context.flows.values())):
        if index % SLICE == SLICE - 1:
            await trio.lowlevel.checkpoint()
        if context.policy is not policy:
            break  # a newer update has taken over, and judges them all
        if context.rejudge(flow) and await _stages_agree(context, flow):
            kept += 1
        else:
            flow.cut(Reason.POLICY_CHANGED)
            cut.append(flow)
    await all_finished(cut, CUT_PATIENCE)
    with trio.CancelScope(shield=True):
        await context.pool.bury()
    event = PolicyChanged(sandbox=context.sandbox, mode=policy.mode.value, cut=tuple(flow.id for flow in cut), kept=kept)
    context.emit(event)
    return event


async def _stages_agree(context: Context, flow: Flow) -> bool:
    if not context.policies or flow.decision is None or isinstance(flow.decision, Deny):
        return True
    before = type(flow.decision)
    try:
        return type(await narrow(context, flow)) is before
    except StageError as error:
        context.emit(Problem(sandbox=context.sandbox, flow=flow.id, reason=Reason.STAGE_FAILED, detail=str(error)))
        return False
