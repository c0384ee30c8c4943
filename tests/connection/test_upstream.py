"""An idle connection that was verified spares the next client's flow a handshake, as long as it is one the policy allows."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import trio

from sbxproxy.connection.record import Recorder
from sbxproxy.connection.upstream import Upstream, peer_address
from sbxproxy.events import FlowOpened
from sbxproxy.flow import Flow
from sbxproxy.http.handler import Origin as Key
from sbxproxy.policy.decision import Dial, Facts
from support.firewall import Firewall, open_firewall
from support.origin import Origin
from support.talk import connect, handshake, request
from support.tcp import tcp_pair, unix_pair

NAME = "origin.test.example"
POLICY = {"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}}


async def _ask(firewall: Firewall, port: int) -> int:
    stream = await firewall.open()
    assert (await connect(stream, f"{NAME}:{port}"))[0] == 200
    tls = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)
    status, _, _ = await request(tls, f"{NAME}:{port}")
    await tls.aclose()
    return status


async def test_clients_one_after_another_share_a_connection(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    async with open_firewall(POLICY, origin, directory=tmp_path) as firewall:
        for count in (1, 2, 3):
            assert await _ask(firewall, origin.port) == 200
            await firewall.next_closed(count)
    assert origin.connections == 1
    assert len(origin.requests) == 3
    opened = [event for event in firewall.events if isinstance(event, FlowOpened)]
    assert [event.address for event in opened] == [f"127.0.0.1:{origin.port}"] * 3
    assert {event.address for event in firewall.closed()} == {f"127.0.0.1:{origin.port}"}


async def test_b1_after_a_change_of_policy_it_is_opened_and_verified_anew(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    async with open_firewall(POLICY, origin, directory=tmp_path) as firewall:
        assert await _ask(firewall, origin.port) == 200
        await firewall.next_closed(1)
        await firewall.sandbox.update_policy({"allow": {NAME: [{"transform": [{"headers": {"x": "z"}}]}]}})
        assert await _ask(firewall, origin.port) == 200
    assert origin.connections == 2


async def test_n7_another_address_than_the_judged_ones_is_not_reused(tmp_path: Path) -> None:
    """Where the name leads now decides, not where it led when the connection was opened."""
    origin = Origin((NAME,))
    async with open_firewall(POLICY, origin, directory=tmp_path) as firewall:
        assert await _ask(firewall, origin.port) == 200
        await firewall.next_closed(1)
        context = firewall.sandbox._context
        flow = Flow(sandbox="x", front="connect", facts=Facts(host=NAME, port=origin.port))
        upstream = Upstream(context, flow, Recorder(context, flow))
        here, elsewhere = ip_address("127.0.0.1"), ip_address("127.0.0.2")
        assert not upstream.reuse(Dial(name=None, addresses=(elsewhere,), port=origin.port), Key(NAME, origin.port))
        assert flow.address is None
        assert not upstream.reuse(Dial(name=None, addresses=(here,), port=origin.port), Key(NAME, origin.port + 1))
        assert upstream.reuse(Dial(name=None, addresses=(elsewhere, here), port=origin.port), Key(NAME, origin.port))
        assert flow.address == here
        assert len(context.pool) == 1, "it stays the pool's"


async def test_only_a_socket_tells_whom_it_is_connected_to() -> None:
    near, far = tcp_pair()
    assert peer_address(near) == ip_address("127.0.0.1")
    await far.aclose()
    await near.aclose()
    assert peer_address(near) is None
    one, other = unix_pair()
    assert peer_address(one) is None
    await one.aclose()
    await other.aclose()
    left, right = trio.testing.memory_stream_pair()
    assert peer_address(left) is peer_address(right) is None
