"""What an update of the policy does to the connections that are open, and what of the old policy it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from sbxproxy import Pipeline
from sbxproxy.events import PolicyChanged, Problem
from sbxproxy.flow import Flow
from sbxproxy.policy import Policy
from sbxproxy.testing.hello import client_hello
from support.download import download, stream_for_ever
from support.firewall import open_firewall
from support.origin import Origin
from support.stages import Toggle
from support.talk import connect, handshake, request, until_end
from support.wire_box import open_box

NAME, OTHER = "origin.test.example", "other.test.example"
INJECT: dict[str, Any] = {"allow": {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:k}"}}]}]}}
SECRETS = {"k": "value-of-k"}
OLD = Policy.parse({"allow": ["old.example"], "subnets": {"deny": ["192.0.2.0/24"]}})
NEW = Policy.parse({"allow": ["new.example"], "subnets": {"deny": ["198.51.100.0/24"]}})


@pytest.mark.parametrize("inspected", [False, True])
async def test_l1_an_open_download_is_cut_at_once_and_the_client_sees_a_reset(inspected: bool, tmp_path: Path) -> None:
    """A cut that looked like an orderly end could pass for a whole response."""
    origin = Origin((NAME,), handler=stream_for_ever)
    policy: Any = INJECT if inspected else {"allow": [NAME]}
    async with open_firewall(policy, origin, directory=tmp_path, secrets=SECRETS) as firewall:
        trust = firewall.sandbox.certificate_pem if inspected else b""
        tls = await download(firewall, origin, NAME, trust=trust, root=None if inspected else origin.write_root(tmp_path))
        (flow,) = firewall.sandbox.flows
        began = trio.current_time()
        changed = await firewall.sandbox.update_policy("deny-all")
        assert trio.current_time() - began < 1
        assert (changed.mode, changed.cut, changed.kept) == ("deny-all", (flow.id,), 0)
        with trio.fail_after(30):
            assert (await until_end(tls.transport_stream))[1] == "reset"
        event = await firewall.next_closed()
        assert (event.flow, event.ended) == (flow.id, "policy-changed")
        assert firewall.sandbox.flows == ()
        assert (await connect(await firewall.open(), f"{NAME}:{origin.port}"))[0] == 403


async def test_l1_only_what_the_new_policy_denies_is_cut() -> None:
    names = {NAME: "1.1.0.1", OTHER: "1.1.0.2"}
    async with open_box({"allow": [NAME, OTHER]}, names) as box:
        streams = [box.open(name) for name in (NAME, OTHER)]
        for stream, name in zip(streams, (NAME, OTHER), strict=True):
            await stream.send_all(client_hello(name))
        await box.settle()
        kept, lost = sorted(box.sandbox.flows, key=lambda flow: flow.facts.host != NAME)
        assert await box.sandbox.update_policy({"allow": [NAME]}) == box.events[-1]
        changed = box.events[-1]
        assert isinstance(changed, PolicyChanged)
        assert (changed.cut, changed.kept) == ((lost.id,), 1)
        assert box.sandbox.flows == (kept,)
        assert await until_end(streams[1]) == (b"", "eof")  # a stream in memory knows no reset
        await streams[0].send_all(b"still here")
        await box.settle()
        assert [flow.bytes_up for flow in box.sandbox.flows] == [len(client_hello(NAME)) + len(b"still here")]


@pytest.mark.parametrize(
    "after",
    [
        {"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}},
        {"allow": [NAME], "subnets": {"deny": ["1.1.0.0/24"]}},
        {"allow": [OTHER]},
        {},
    ],
)
async def test_l1_a_relay_that_would_now_be_something_else_is_cut(after: object) -> None:
    """Inspected from now on, at a denied address, another name: none may go on as the relay that it is."""
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}) as box:
        await box.open(NAME).send_all(client_hello(NAME))
        await box.settle()
        changed = await box.sandbox.update_policy(after)
        assert len(changed.cut) == 1
        assert box.closed[0].ended == "policy-changed"


async def test_an_inspected_connection_stays_and_uses_the_new_rules_from_its_next_request_on(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    async with open_firewall(INJECT, origin, directory=tmp_path, secrets={**SECRETS, "new": "newer"}) as firewall:
        stream = await firewall.open()
        await connect(stream, f"{NAME}:{origin.port}")
        tls = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
        rules = [{"transform": [{"headers": {"Authorization": "Bearer ${secret:new}"}}]}]
        changed = await firewall.sandbox.update_policy({"allow": {NAME: rules}})
        assert (changed.cut, changed.kept) == ((), 1)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
    assert [seen.one("authorization") for seen in origin.requests] == ["Bearer value-of-k", "Bearer newer"]


async def test_an_update_leaves_no_idle_upstream_connection_behind(tmp_path: Path) -> None:
    """One that was opened under the old policy would carry requests to an address that the new one may deny."""
    origin = Origin((NAME,))
    async with open_firewall(INJECT, origin, directory=tmp_path, secrets=SECRETS) as firewall:
        stream = await firewall.open()
        await connect(stream, f"{NAME}:{origin.port}")
        tls = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)
        for expected in (1, 1, 2):
            if expected == 2:
                assert (await firewall.sandbox.update_policy(INJECT)).kept == 1
            assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
            assert origin.connections == expected


async def test_a_policy_stage_that_fails_on_an_update_ends_the_flow() -> None:
    class Failing(Toggle):
        async def decide(self, flow: Flow) -> Any:
            await trio.lowlevel.checkpoint()
            if self.objects:
                raise RuntimeError("canary")
            return flow.decision

    stage = Failing()
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, pipeline=Pipeline(policies=[stage])) as box:
        await box.open(NAME).send_all(client_hello(NAME))
        await box.settle()
        stage.objects = True
        assert len((await box.sandbox.update_policy({"allow": [NAME]})).cut) == 1
        assert [event.reason for event in box.events if isinstance(event, Problem)] == ["stage-failed"]
        assert "canary" not in repr(box.events)


async def test_l3_readers_never_see_half_an_update() -> None:
    """An update is one step: whoever looks, at any moment, sees one policy whole.

    A policy object is immutable and replaced by one reference; names of one and ranges of another never meet.
    """
    seen: set[int] = set()
    async with open_box(OLD) as box:

        async def look() -> None:
            while True:
                policy = box.sandbox.policy
                before = policy.document()
                await trio.lowlevel.checkpoint()
                assert policy.document() == before
                seen.add(id(policy))
                assert policy in (OLD, NEW)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            nursery.start_soon(look)
            for policy in (NEW, OLD) * 5:
                await box.sandbox.update_policy(policy)
                await trio.sleep(0.001)  # let the readers look
            nursery.cancel_scope.cancel()
    assert seen == {id(OLD), id(NEW)}
