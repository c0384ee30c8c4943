"""Third parties' parts at work in a sandbox, requests that rules send elsewhere, and upstreams that can't be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from sbxproxy import Pipeline
from sbxproxy.errors import UpstreamConnectError
from sbxproxy.flow import Flow
from sbxproxy.http.message import Headers, Request, Response
from sbxproxy.policy.decision import Deny
from sbxproxy.testing.hello import client_hello
from sbxproxy.wire.result import Hint, Sniffed
from support.firewall import Firewall, open_firewall
from support.origin import HELLO, Origin, Reply, Seen
from support.stages import Echo, HandleAll
from support.talk import connect, handshake, request, until_end
from support.wire_box import open_box

NAME, OTHER = "origin.test.example", "other.test.example"
ALERT_INTERNAL_ERROR = bytes.fromhex("15030300020250")


async def _open(firewall: Firewall, port: int) -> trio.SSLStream:
    stream = await firewall.open()
    assert (await connect(stream, f"{NAME}:{port}"))[0] == 200
    return await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)


# -- sniffers, handlers


def sniff_greeting(data: bytes) -> Sniffed | Hint:
    if not data.startswith(b"HI "[: len(data)]):
        return Hint.NOT_MINE
    return Sniffed("greeting") if len(data) >= 3 else Hint.NEED_MORE


async def test_a_handler_gets_both_ends_and_the_first_bytes_again() -> None:
    pipeline = Pipeline(policies=[HandleAll()], handlers={"echo": Echo()})
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, pipeline=pipeline) as box:
        stream = box.open(NAME)
        await stream.send_all(client_hello(NAME))
        assert await until_end(stream) == (b"handled " + client_hello(NAME), "eof")
        await box.settle()
        assert box.wires.dialled == [(("1.1.0.1",), 443)]
        assert (box.closed[0].decision, box.closed[0].ended) == ("handle", "eof")


async def test_a_third_partys_protocol_is_known_by_its_name_and_still_needs_a_range() -> None:
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, pipeline=Pipeline(sniffers=[sniff_greeting])) as box:
        stream = box.open(NAME)
        await stream.send_all(b"H")
        await box.settle()
        await stream.send_all(b"I all")
        await until_end(stream)
        await stream.aclose()
        await box.settle()
        assert (box.closed[0].wire, box.closed[0].reason) == ("greeting", "protocol-not-allowed")


# -- transforms


class Signing:
    """Sees the body, changes the request, answers or refuses, and marks the response."""

    body_limit = 100

    def __init__(self, *, mark: str) -> None:
        self.mark = mark

    async def on_request(self, flow: Flow, request: Request) -> Request | Response | Deny:
        await trio.lowlevel.checkpoint()
        if request.path == "/answer":
            return Response(status=202, headers=Headers(), body=b"by the plugin")
        if request.path == "/refuse":
            return Deny(reason="signature", detail="not this one")
        assert request.body is not None
        return replace(request.with_header("x-length", str(len(request.body))), body=request.body.upper())

    async def on_response(self, flow: Flow, request: Request, response: Response) -> Response:
        await trio.lowlevel.checkpoint()
        return replace(response, headers=response.headers.with_header("x-mark", self.mark))


async def test_a_transform_changes_answers_and_refuses(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    policy = {"allow": {NAME: [{"transform": [{"plugin": "signing", "config": {"mark": "seen"}}]}]}}
    pipeline = Pipeline(transforms={"signing": Signing})
    async with open_firewall(policy, origin, directory=tmp_path, pipeline=pipeline) as firewall:
        tls = await _open(firewall, origin.port)
        host = f"{NAME}:{origin.port}"
        status, head, _ = await request(tls, host, "/", method="POST", body=b"hello")
        assert status == 200
        assert b"x-mark: seen" in head.lower()
        assert (await request(tls, host, "/answer"))[::2] == (202, b"by the plugin")
        status, _, body = await request(tls, host, "/refuse")
        assert (status, json.loads(body)["error"]) == (403, "signature")
        assert (await request(tls, host, "/", method="POST", body=b"x" * 101))[0] == 413
    (seen,) = origin.requests
    assert (seen.one("x-length"), seen.body) == ("5", b"HELLO")


# -- forwardURL


async def test_a_request_can_be_forwarded_to_another_verified_server(tmp_path: Path) -> None:
    async def where(seen: Seen) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply(b"forwarded")

    first, second = Origin((NAME,)), Origin((OTHER,), respond=where)
    rules: list[Any] = [{"forwardURL": f"https://{OTHER}:PORT/base"}]
    async with open_firewall("deny-all", first, second, directory=tmp_path) as firewall:
        rules[0]["forwardURL"] = f"https://{OTHER}:{second.port}/base"
        await firewall.sandbox.update_policy({"allow": {NAME: rules}})
        tls = await _open(firewall, first.port)
        assert (await request(tls, f"{NAME}:{first.port}", "/path?q=1"))[::2] == (200, b"forwarded")
        assert (await request(tls, f"{NAME}:{first.port}", "/../up"))[0] == 400
    (seen,) = second.requests
    assert seen.target == "/base/path?q=1"
    assert seen.one("host") == f"{OTHER}:{second.port}"
    assert seen.one("vercel-forwarded-host") == NAME
    assert seen.one("vercel-forwarded-port") == str(first.port)
    assert first.connections == 0


@pytest.mark.parametrize(("address", "reason"), [("10.0.0.1", "private-address"), ("127.0.0.9", "address-denied")])
async def test_a_forward_goes_to_no_address_that_is_not_open(address: str, reason: str, tmp_path: Path) -> None:
    rules = [{"forwardURL": f"https://{OTHER}/"}]
    policy = {"allow": {NAME: rules}, "subnets": {"deny": ["127.0.0.9/32"]}}
    async with open_firewall(policy, directory=tmp_path, resolve={OTHER: [address]}) as firewall:
        tls = await _open(firewall, 443)
        status, _, body = await request(tls, NAME)
        assert (status, json.loads(body)["error"]) == (403, reason)


# -- upstreams that can't be had


async def test_an_upstream_that_refuses_is_told_in_each_protocol(tmp_path: Path) -> None:
    """The tunnel is not open yet: 502. It is, for the sake of the hello: an alert. It is inspected: 502 inside it."""
    policy = {"allow": {NAME: [], OTHER: [{"transform": [{"headers": {"x": "y"}}]}]}, "subnets": {"allow": ["127.0.0.2/32"]}}
    names = {NAME: ["127.0.0.1"], OTHER: ["127.0.0.1"]}
    async with open_firewall(policy, directory=tmp_path, resolve=names) as firewall:
        status, _ = await connect(await firewall.open(), "127.0.0.2:1")
        assert status == 502
        stream = await firewall.open()
        assert (await connect(stream, f"{NAME}:1"))[0] == 200
        await stream.send_all(client_hello(NAME))
        assert (await until_end(stream))[0] == ALERT_INTERNAL_ERROR
        stream = await firewall.open()
        assert (await connect(stream, f"{OTHER}:1"))[0] == 200
        tls = await handshake(stream, OTHER, trust=firewall.sandbox.certificate_pem)
        status, _, body = await request(tls, f"{OTHER}:1")
        assert (status, json.loads(body)["error"]) == (502, "connection-refused")
        await tls.aclose()
        await firewall.next_closed(3)
    told = sorted((event.decision, event.reason) for event in firewall.closed())  # they end in any order
    assert told == [("error", "connection-refused"), ("error", "connection-refused"), ("inspect", "domain-allowed")]


async def test_a_name_that_cannot_be_resolved_is_a_bad_gateway_and_not_a_denial(tmp_path: Path) -> None:
    class Nowhere:
        async def resolve(self, name: str) -> tuple[()]:
            from sbxproxy.errors import UpstreamResolveError

            await trio.lowlevel.checkpoint()
            raise UpstreamResolveError("the name has no address")

    async with open_firewall({"allow": [NAME]}, directory=tmp_path, resolver=Nowhere()) as firewall:
        stream = await firewall.open()
        status, head = await connect(stream, f"{NAME}:443")
        assert status == 502
        assert b"x-sbxproxy-deny" not in head.lower()
        await stream.aclose()
        event = await firewall.next_closed()
    assert (event.decision, event.ended) == ("error", "failed")


async def test_a_dialer_that_fails_by_contract_is_an_upstream_error() -> None:
    async def refuse() -> None:
        raise UpstreamConnectError("the upstream refused the connection", reason="connection-refused")

    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}) as box:
        box.wires.before_dial = refuse
        assert await box.say(NAME, client_hello(NAME)) == ALERT_INTERNAL_ERROR
        assert (box.closed[0].decision, box.closed[0].reason) == ("error", "connection-refused")


async def test_an_answer_that_says_hello_is_the_origins_own(tmp_path: Path) -> None:
    """Rules that only match elsewhere leave requests and responses as they are."""
    origin = Origin((NAME,))
    rules = [{"match": {"path": {"exact": "/never"}}, "response": {"statusCode": 404}}]
    async with open_firewall({"allow": {NAME: rules}}, origin, directory=tmp_path) as firewall:
        tls = await _open(firewall, origin.port)
        assert (await request(tls, f"{NAME}:{origin.port}", fields=["X-Own: yes"]))[::2] == (200, HELLO)
        assert (await request(tls, f"{NAME}:{origin.port}", "/never"))[0] == 404
    assert [seen.one("x-own") for seen in origin.requests] == ["yes"]
