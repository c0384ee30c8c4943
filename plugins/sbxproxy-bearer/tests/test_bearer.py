# ruff: noqa: INP001
"""The plugin alone, and in a whole proxy on a network in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from sbxproxy import Event, Pipeline, PolicyError, Proxy, Secret, Settings, plugins
from sbxproxy.testing import MemoryNetwork, check_transform, make_flow, make_request
from sbxproxy_bearer import Bearer

TOKEN = "gho_0123456789abcdef"  # noqa: S105 - nobody's
POLICY = {
    "allow": {
        "api.github.com": [{"transform": [{"plugin": "bearer", "config": {"token": "${secret:github}"}}]}],
        "example.com": [],
    }
}


async def test_it_is_a_well_behaved_transform() -> None:
    """The kit's check holds any transform to the rules of its slot."""
    await check_transform(Bearer(token=Secret(TOKEN)), secrets=[TOKEN])


async def test_the_programs_own_authorization_is_replaced_in_any_spelling() -> None:
    """A second header of that name would leave it to the server which one counts."""
    request = make_request(headers=[("Authorization", "Bearer stolen"), ("AUTHORIZATION", "Basic x"), ("accept", "*/*")])
    changed = await Bearer(token=Secret(TOKEN)).on_request(make_flow(), request)
    assert changed.headers.get_all("authorization") == [f"Bearer {TOKEN}"]
    assert changed.headers.get("accept") == "*/*"


def test_the_token_is_not_shown() -> None:
    """A transform turns up in tracebacks and debuggers' output."""
    assert TOKEN not in repr(Bearer(token=Secret(TOKEN)))


async def test_a_request_through_the_proxy_carries_the_token_and_no_event_does(tmp_path: Path) -> None:
    """The one request that the rule is about gets the credential, and nothing else does."""
    network = MemoryNetwork()
    origin = network.add_https("api.github.com")
    other = network.add_https("example.com")
    events: list[Event] = []
    proxy = Proxy(
        Settings(upstream_roots=network.write_roots(tmp_path)),
        pipeline=Pipeline(transforms={"bearer": Bearer}),
        observers=[events.append],
        resolver=network,
        dialer=network.dial,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("test", policy=POLICY, secrets={"github": TOKEN})
        request = make_request("GET", "/user", host="api.github.com", headers={"authorization": "placeholder"})
        response = await network.request(sandbox, request)
        assert (response.status, response.body) == (200, b"ok\n")
        nursery.cancel_scope.cancel()
    (seen,) = origin.requests
    assert (seen.method, seen.target, seen.headers.get_all("authorization")) == ("GET", "/user", [f"Bearer {TOKEN}"])
    assert not other.requests
    assert events
    assert TOKEN not in repr(events) + json.dumps(sandbox.policy.document())


def test_a_policy_that_names_it_needs_it_in_the_pipeline() -> None:
    """A rule whose plugin is missing must fail when the policy is read, not send requests without a credential."""
    with pytest.raises(PolicyError, match="bearer"):
        Proxy().create_sandbox("test", policy=POLICY, secrets={"github": TOKEN})


def test_it_is_found_by_its_entry_point() -> None:
    """Only where the distribution is installed: the source tree alone has no entry points."""
    names = [plugin.name for plugin in plugins.installed() if plugin.slot == "transforms"]
    if "bearer" not in names:
        pytest.skip("sbxproxy-bearer is not installed")
    assert plugins.load(["bearer"]).transforms == {"bearer": Bearer}
