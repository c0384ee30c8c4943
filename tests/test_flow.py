"""A flow is told apart from all others, ends for one reason, and shows no secret."""

from dataclasses import replace

import trio

from sbxproxy.flow import all_finished
from sbxproxy.hostname import canonical_hostname
from sbxproxy.policy import Policy
from sbxproxy.policy.decision import Dial, Inspect
from sbxproxy.testing import make_flow

CANARY = "canary-5f2b91"


def test_ids_ascend():
    first, second = make_flow(), make_flow()
    assert first.id < second.id
    assert first != second


async def test_cutting_ends_it_for_the_first_reason_given():
    flow = make_flow()
    with flow.scope:
        flow.cut("policy-changed")
        flow.cut("idle")
        await trio.sleep_forever()
    assert flow.scope.cancelled_caught
    assert flow.ended == "policy-changed"


async def test_cutting_does_not_rewrite_why_it_ended():
    flow = make_flow()
    flow.ended = "eof"
    flow.cut("drained")
    assert flow.ended == "eof"


async def test_it_is_waited_for_until_all_are_closed_and_no_longer_than_that(autojump_clock):
    """One that hangs holds up who waits for it, and nobody for ever."""
    flows = [make_flow() for _ in range(3)]
    flows[0].finish()

    async def finish(flow, after):
        await trio.sleep(after)
        flow.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish, flows[1], 5)
        nursery.start_soon(finish, flows[2], 3)
        await all_finished(flows, 10)
        assert trio.current_time() == flows[0].started + 5
    await all_finished([make_flow()], 10)
    assert trio.current_time() == flows[0].started + 15


async def test_it_starts_when_it_is_made(autojump_clock):
    await trio.sleep(5)
    made = replace(make_flow(), started=trio.current_time())
    assert made.started == trio.current_time()


def test_c11_its_repr_shows_no_value_of_its_rules():
    document = {"allow": {"api.example.com": [{"transform": [{"headers": {"authorization": CANARY}}]}]}}
    found = Policy.parse(document).match_domain(canonical_hostname("api.example.com"))
    assert found is not None
    rules = found.rules
    assert rules is not None
    flow = make_flow()
    flow.decision = Inspect(reason="r", matched="m", dial=Dial(None, (), 443), rules=rules)
    assert CANARY not in repr(flow)
