"""Whole proxies on the network in memory: nothing here opens a socket, and a guard sees to it."""

from __future__ import annotations

import socket

import h11
import pytest
import trio
import trio.testing

from sbxproxy import Pipeline, Proxy, Settings
from sbxproxy.address import parse_address
from sbxproxy.errors import UpstreamConnectError, UpstreamResolveError, UpstreamTlsError
from sbxproxy.http.message import Headers, Response
from sbxproxy.policy.decision import Handle
from sbxproxy.testing import MemoryNetwork, client_hello, fetch, make_request

RULE = [{"transform": [{"headers": {"x-key": "${secret:key}"}}]}]


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch):
    """The event loop's own come from socketpair, which needs none of these."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket.socket, "bind", refuse)


async def start(nursery, network, tmp_path, policy, **options):
    events = []
    proxy = Proxy(
        Settings(upstream_roots=network.write_roots(tmp_path)), resolver=network, dialer=network.dial, observers=[events.append]
    )
    await nursery.start(network.run)
    await nursery.start(proxy.run)
    return proxy.create_sandbox("test", policy=policy, **options), events


async def echo(stream):
    async for chunk in stream:
        await stream.send_all(chunk)


async def test_an_allowed_name_is_relayed_and_another_is_not(nursery, tmp_path):
    network = MemoryNetwork()
    network.add("api.example.com", 443, echo)
    network.add("evil.example", 443, echo)
    sandbox, events = await start(nursery, network, tmp_path, {"allow": ["api.example.com"]})
    hello = client_hello("api.example.com")
    async with await network.connect(sandbox, "api.example.com", 443) as stream:
        await stream.send_all(hello)
        received = b""
        while len(received) < len(hello):
            received += await stream.receive_some()
    assert received == hello
    await trio.testing.wait_all_tasks_blocked()
    async with await network.connect(sandbox, "evil.example", 443) as stream:
        await stream.send_all(client_hello("evil.example"))
        assert hello[:3] != await stream.receive_some()
    await trio.testing.wait_all_tasks_blocked()
    assert network.resolved == ["api.example.com"]
    assert network.dialled == [(parse_address("1.1.0.0"), 443)]
    assert [event.reason for event in events if type(event).__name__ == "FlowClosed"] == ["domain-allowed", "domain-not-allowed"]


async def test_an_inspected_request_reaches_the_origin_changed(nursery, tmp_path):
    network = MemoryNetwork()
    origin = network.add_https("api.example.com", lambda request: Response(status=201, body=request.body.upper()))
    sandbox, _ = await start(nursery, network, tmp_path, {"allow": {"api.example.com": RULE}}, secrets={"key": "s3cret"})
    response = await network.request(sandbox, make_request("POST", "/x?y=1", body=b"hello"))
    assert (response.status, response.body) == (201, b"HELLO")
    (request,) = origin.requests
    assert (request.method, request.target, request.host, request.body) == ("POST", "/x?y=1", "api.example.com", b"hello")
    assert request.headers.get_all("x-key") == ["s3cret"]


async def test_a_request_that_is_denied_is_no_handshake(nursery, tmp_path):
    network = MemoryNetwork()
    sandbox, _ = await start(nursery, network, tmp_path, "deny-all")
    with pytest.raises(UpstreamTlsError):
        await network.request(sandbox, make_request())


async def test_a_relayed_request_shows_the_origins_own_certificate(nursery, tmp_path):
    """The sandbox's authority is all that the client trusts here, so a plain relay can't pass for an inspected flow."""
    network = MemoryNetwork()
    origin = network.add_https("api.example.com")
    sandbox, _ = await start(nursery, network, tmp_path, "allow-all")
    with pytest.raises(UpstreamTlsError):
        await network.request(sandbox, make_request())
    assert not origin.requests


async def test_names_and_addresses():
    network = MemoryNetwork()
    network.add("a.example", 443, echo)
    network.add("a.example", 80, echo)
    network.add("b.example", 443, echo, addresses=["10.0.0.1", "fd00::1"])
    network.add("10.9.9.9", 22, echo)
    assert await network.resolve("a.example") == (parse_address("1.1.0.0"),)
    assert await network.resolve("b.example") == (parse_address("10.0.0.1"), parse_address("fd00::1"))
    with pytest.raises(UpstreamResolveError):
        await network.resolve("c.example")
    assert network.resolved == ["a.example", "b.example", "c.example"]
    assert "2 names, 5 origins" in repr(network)


async def test_the_first_address_with_an_origin_is_connected(nursery):
    network = MemoryNetwork()
    network.add("10.0.0.2", 443, echo)
    await nursery.start(network.run)
    first, second = parse_address("10.0.0.1"), parse_address("10.0.0.2")
    stream, address = await network.dial([first, second], 443)
    assert address == second
    assert network.dialled == [(first, 443), (second, 443)]
    await stream.aclose()
    with pytest.raises(UpstreamConnectError) as caught:
        await network.dial([second], 80)
    assert caught.value.reason == "connection-refused"


@pytest.mark.parametrize(
    ("host", "options"),
    [("a b", {}), ("127.1", {}), ("b.example", {"addresses": []}), ("b.example", {"addresses": ["x"]}), ("a.example", {})],
)
def test_origins_that_can_not_be_are_refused(host, options):
    network = MemoryNetwork()
    network.add("a.example", 443, echo)
    with pytest.raises(ValueError, match=r"neither|addresses|has an origin"):
        network.add(host, 443, echo, **options)


async def test_mistakes_of_a_test_are_named(tmp_path):
    network = MemoryNetwork()
    network.add("a.example", 443, echo)
    with pytest.raises(RuntimeError, match="not running"):
        await network.dial([parse_address("1.1.0.0")], 443)
    with pytest.raises(ValueError, match="host name"):
        network.add_https("1.2.3.4")
    with pytest.raises(ValueError, match="host name"):
        await network.request(None, make_request(host="1.2.3.4:1"))


async def test_what_an_origin_raises_fails_the_test():
    """A fault of the test's own origin must not look like a network's."""
    network = MemoryNetwork()

    async def faulty(stream):
        raise ZeroDivisionError

    network.add("10.0.0.1", 1, faulty)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            await network.dial([parse_address("10.0.0.1")], 1)
    assert caught.group_contains(ZeroDivisionError)


async def test_the_origin_serves_requests_one_after_another_and_survives_half_of_one(nursery):
    network = MemoryNetwork()
    origin = network.add_https("a.example")
    client, server = trio.testing.memory_stream_pair()
    nursery.start_soon(origin, server)
    for target in ("/1", "/2"):
        response = await fetch(client, make_request("GET", target, host="a.example"))
        assert response.status == 200
    await client.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab")
    await client.send_eof()
    await trio.testing.wait_all_tasks_blocked()
    assert [request.target for request in origin.requests] == ["/1", "/2"]


async def test_the_origin_ends_where_the_client_says_so():
    network = MemoryNetwork()
    origin = network.add_https("a.example")
    client, server = trio.testing.memory_stream_pair()
    await client.send_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    await origin(server)
    assert len(origin.requests) == 1


async def test_the_origin_refuses_nonsense():
    client, server = trio.testing.memory_stream_pair()
    await client.send_all(b"nonsense\r\n\r\n")
    with pytest.raises(h11.RemoteProtocolError):
        await MemoryNetwork().add_https("a.example")(server)


async def serve_bytes(data):
    client, server = trio.testing.memory_stream_pair()
    await server.send_all(data)
    await server.send_eof()
    return client


async def test_fetch_skips_interim_responses_and_takes_its_own_framing():
    client = await serve_bytes(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
    headers = Headers.of([("host", "other.example"), ("content-length", "1")])
    response = await fetch(client, make_request("POST", "/", headers=headers, body=b"x"))
    assert (response.status, response.body) == (200, b"hi")


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh", b"HTTP/1.1 101 X\r\nupgrade: x\r\n\r\n"])
async def test_fetch_reports_an_answer_that_is_none(data):
    with pytest.raises(h11.RemoteProtocolError):
        await fetch(await serve_bytes(data), make_request())


class HandOverSsh:
    async def decide(self, flow):
        allowed = flow.decision
        if flow.facts.port == 22:
            return Handle(name="ssh", reason="ssh-brokered", matched=None, dial=allowed.dial)
        return allowed


class Broker:
    async def handle(self, flow, client, upstream):
        await upstream.send_all(b"brokered: " + await client.receive_some())
        await client.send_all(await upstream.receive_some())


async def test_a_policy_stage_and_a_handler_work_together(nursery):
    """A third party's own relay, between both ends of a flow that the policy allows."""
    network = MemoryNetwork()
    network.add("1.2.3.4", 22, echo)
    events = []
    proxy = Proxy(
        pipeline=Pipeline(policies=[HandOverSsh()], handlers={"ssh": Broker()}),
        resolver=network,
        dialer=network.dial,
        observers=[events.append],
    )
    await nursery.start(network.run)
    await nursery.start(proxy.run)
    sandbox = proxy.create_sandbox("test", policy={"subnets": {"allow": ["1.2.3.0/24"]}})
    with trio.fail_after(30):
        async with await network.connect(sandbox, "1.2.3.4", 22) as stream:
            await stream.send_all(b"SSH-2.0-x\r\n")
            received = b""
            async for chunk in stream:
                received += chunk
    assert received == b"brokered: SSH-2.0-x\r\n"
    await trio.testing.wait_all_tasks_blocked()
    closed = events[-1]
    assert (closed.decision, closed.reason) == ("handle", "ssh-brokered")
