"""An update is one step: whoever looks, at any moment, sees one policy whole."""

import trio

from sbxproxy.policy import Policy
from support.wire_box import open_box

OLD = Policy.parse({"allow": ["old.example"], "subnets": {"deny": ["192.0.2.0/24"]}})
NEW = Policy.parse({"allow": ["new.example"], "subnets": {"deny": ["198.51.100.0/24"]}})


async def test_l3_readers_never_see_half_an_update():
    """A policy object is immutable and replaced by one reference; names of one and ranges of another never meet."""
    seen = set()
    async with open_box(OLD) as box:

        async def look():
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
