"""What a plugin author writes, held to mypy's strict mode: one part for each slot, and the checks of the testing kit on them."""

from __future__ import annotations

from dataclasses import dataclass

import trio
from trio.abc import Stream

from sbxproxy import Event, Flow, FlowClosed, Pipeline, Secret
from sbxproxy.hostname import Hostname
from sbxproxy.http.message import Request, Response
from sbxproxy.policy.decision import Decision, Deny, Relay
from sbxproxy.testing import (
    check_handler,
    check_observer,
    check_policy,
    check_secret_source,
    check_sniffer,
    check_terminator,
    check_transform,
    client_hello,
)
from sbxproxy.wire.result import Hint, Sniffed


def sniff_ssh(data: bytes) -> Sniffed | Hint:
    if data.startswith(b"SSH-"):
        return Sniffed("ssh")
    return Hint.NEED_MORE if b"SSH-".startswith(data) else Hint.NOT_MINE


class Weekdays:
    async def decide(self, flow: Flow) -> Decision:
        if isinstance(flow.decision, Relay) and flow.facts.port == 22:
            return Deny(reason="no-ssh", detail="no SSH from here")
        assert flow.decision is not None
        return flow.decision


class PlainText:
    async def accept(self, flow: Flow, client: Stream) -> Stream:
        return client

    async def connect(self, flow: Flow, upstream: Stream, name: Hostname) -> Stream:
        return upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    key: Secret
    body_limit: int = 1024

    async def on_request(self, flow: Flow, request: Request) -> Request | Response | Deny:
        if request.method == "DELETE":
            return Response(status=405, body=b"")
        return request.with_header("x-signature", self.key.reveal())

    async def on_response(self, flow: Flow, request: Request, response: Response) -> Response:
        return response.without_header("set-cookie")


class Echo:
    async def handle(self, flow: Flow, client: Stream, upstream: Stream) -> None:
        async for chunk in client:
            await client.send_all(chunk)


class Vault:
    async def get(self, name: str) -> Secret:
        return Secret(name)


def count(event: Event) -> None:
    if isinstance(event, FlowClosed):
        print(event.bytes_up)


pipeline = Pipeline(
    sniffers=[sniff_ssh],
    policies=[Weekdays()],
    terminator=PlainText(),
    transforms={"signature": Signature},
    handlers={"echo": Echo()},
    observers=[count],
)


async def checks() -> None:
    check_sniffer(sniff_ssh, {b"SSH-2.0-x\r\n": Sniffed("ssh"), client_hello("a.example"): Hint.NOT_MINE})
    check_observer(count)
    await check_policy(Weekdays())
    await check_terminator(PlainText())
    await check_transform(Signature(key=Secret("x")), secrets=["x"])
    await check_handler(Echo())
    await check_secret_source(Vault(), ["name"])


if __name__ == "__main__":
    trio.run(checks)
