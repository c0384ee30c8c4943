"""Third parties' policy stages: they may take away what the policy allows, and add nothing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from sbxproxy import Pipeline
from sbxproxy.events import PolicyChanged
from sbxproxy.flow import Flow
from sbxproxy.testing.hello import client_hello
from support.stages import Echo, HandleAll, Toggle
from support.wire_box import ALERT_ACCESS_DENIED, open_box

NAME, OTHER = "origin.test.example", "other.test.example"


async def test_a_handler_that_is_not_there_is_a_denial() -> None:
    pipeline = Pipeline(policies=[HandleAll("absent")], handlers={"echo": Echo()})
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, pipeline=pipeline) as box:
        assert await box.say(NAME, client_hello(NAME)) == ALERT_ACCESS_DENIED
        assert box.closed[0].reason == "stage-failed"
        assert box.wires.dialled == []


class Elsewhere(HandleAll):
    """Tries to open what the policy did not."""

    async def decide(self, flow: Flow) -> Any:
        handled = await super().decide(flow)
        return replace(handled, dial=replace(handled.dial, addresses=(ip_address("10.0.0.1"),)))


async def test_a_stage_cannot_send_a_flow_elsewhere() -> None:
    pipeline = Pipeline(policies=[Elsewhere()], handlers={"echo": Echo()})
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, pipeline=pipeline) as box:
        assert await box.say(NAME, client_hello(NAME)) == ALERT_ACCESS_DENIED
        assert box.closed[0].reason == "stage-failed"
        assert box.wires.dialled == []


async def test_a_stage_cannot_take_a_flow_away_from_its_rules() -> None:
    """A handler would carry it without inspection."""
    policy = {"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}}
    pipeline = Pipeline(policies=[HandleAll()], handlers={"echo": Echo()})
    async with open_box(policy, {NAME: "1.1.0.1"}, pipeline=pipeline) as box:
        assert await box.say(NAME, client_hello(NAME)) == ALERT_ACCESS_DENIED
        assert box.closed[0].reason == "stage-failed"
        assert box.wires.dialled == []


async def test_a_policy_stage_narrows_and_is_asked_again_when_the_policy_changes() -> None:
    stage = Toggle()
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, pipeline=Pipeline(policies=[stage])) as box:
        await box.open(NAME).send_all(client_hello(NAME))
        await box.settle()
        assert (await box.sandbox.update_policy({"allow": [NAME, OTHER]})).kept == 1
        stage.objects = True
        changed = await box.sandbox.update_policy({"allow": [NAME]})
        assert isinstance(changed, PolicyChanged)
        assert len(changed.cut) == 1
        assert await box.say(NAME, client_hello(NAME)) == ALERT_ACCESS_DENIED
        assert box.closed[-1].reason == "quota"
        assert len(box.wires.dialled) == 1
