"""A sandbox under a policy that changes while connections are open, and beside others that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sbxproxy
from sbxproxy import CallableSource, Limits, Pipeline, PolicyError
from sbxproxy.events import Problem, RequestDone
from sbxproxy.flow import Flow
from sbxproxy.testing.hello import client_hello
from support.download import download, stream_for_ever
from support.firewall import Firewall, open_firewall
from support.origin import HELLO, Origin
from support.talk import connect, handshake, request, until_end
from support.wire_box import ALERT_ACCESS_DENIED, open_box

NAME, OTHER = "origin.test.example", "other.test.example"
INJECT: dict[str, Any] = {"allow": {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:k}"}}]}]}}
SECRETS = {"k": "value-of-k"}


async def test_l2_an_update_between_verdict_and_connect_denies() -> None:
    """The policy in force when the connection stands decides, and the upstream gets no byte."""
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}) as box:

        async def tighten() -> None:
            assert (await box.sandbox.update_policy("deny-all")).kept in {0, 1}

        box.wires.before_dial = tighten
        await box.say(NAME, client_hello(NAME))
        assert len(box.wires.dialled) == 1
        assert [(await until_end(upstream))[0] for upstream in box.wires.upstreams] in ([], [b""])
        assert box.closed[0].decision == "deny" or box.closed[0].ended == "policy-changed"
        assert box.closed[0].bytes_up == 0


async def test_l2_an_update_while_a_name_is_looked_up_denies() -> None:
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}) as box:
        look_up = box.wires.resolve

        async def slowly(name: Any) -> Any:
            await box.sandbox.update_policy({"allow": [OTHER]})
            return await look_up(name)

        box.wires.resolve = slowly  # type: ignore[method-assign]
        await box.say("203.0.113.9", client_hello(NAME))
        assert box.wires.dialled == []
        assert box.closed[0].decision == "deny"


@pytest.mark.parametrize(
    "bad", [None, 7, "allow-most", {"allow": ["*."]}, {"allow": [NAME], "subnet": {}}, {"subnets": {"allow": ["10.0.0.1/8"]}}]
)
async def test_l4_an_invalid_update_leaves_the_old_policy_in_force(bad: object) -> None:
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}) as box:
        await box.open(NAME).send_all(client_hello(NAME))
        await box.settle()
        before = box.sandbox.policy
        with pytest.raises(PolicyError):
            await box.sandbox.update_policy(bad)
        assert box.sandbox.policy is before
        assert len(box.sandbox.flows) == 1


@pytest.mark.parametrize("empty", [{}, {"allow": []}, {"allow": {}}, {"subnets": {"allow": []}}, "deny-all"])
async def test_l5_an_empty_policy_allows_nothing(empty: object) -> None:
    async with open_box(empty, {NAME: "1.1.0.1"}) as box:
        await box.say(NAME, client_hello(NAME))
        await box.say("1.1.0.1", client_hello(NAME))
        assert {event.decision for event in box.closed} == {"deny"}
        assert box.wires.dialled == []


async def test_an_update_that_names_an_unknown_secret_is_invalid() -> None:
    async with open_box("deny-all") as box:
        with pytest.raises(PolicyError, match="'k'"):
            await box.sandbox.update_policy(INJECT)
        assert box.sandbox.policy.mode.value == "deny-all"


async def test_a_scoped_policy_ends_with_its_block_whatever_happens_in_it() -> None:
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1", OTHER: "1.1.0.2"}) as box:
        before = box.sandbox.policy
        with pytest.raises(ZeroDivisionError):
            async with box.sandbox.scoped_policy({"allow": [OTHER]}):
                await box.open(OTHER).send_all(client_hello(OTHER))
                await box.settle()
                assert len(box.sandbox.flows) == 1
                raise ZeroDivisionError
        assert box.sandbox.policy is before
        assert box.sandbox.flows == ()


# -- no policy, no network


async def test_l7_there_is_no_sandbox_without_a_policy() -> None:
    proxy = sbxproxy.Proxy()
    with pytest.raises(TypeError):
        proxy.create_sandbox("box")  # type: ignore[call-arg]
    for bad in (None, "allow", {"allow": [7]}):
        with pytest.raises(PolicyError):
            proxy.create_sandbox("box", policy=bad)
    assert proxy.sandboxes == ()


@pytest.mark.parametrize("way", ["sandbox", "drain", "cancel"])
async def test_l7_when_the_proxy_ends_the_listener_is_closed_and_nothing_passes(way: str, tmp_path: Path) -> None:
    """A crash must leave the program without network, not without a firewall."""
    origin = Origin((NAME,), handler=stream_for_ever)
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        tls = await download(firewall, origin, NAME, root=origin.write_root(tmp_path))
        match way:
            case "sandbox":
                await firewall.sandbox.aclose()
            case "drain":
                with trio.fail_after(30):
                    await firewall.proxy.drain(grace=0.2)
            case "cancel":
                firewall.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(30):
            await until_end(tls.transport_stream)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(ConnectionRefusedError):
                await firewall.open()
        assert firewall.sandbox.flows == ()


async def test_a_drain_lets_a_flow_end_by_itself(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await connect(stream, f"{NAME}:{origin.port}")
        tls = await handshake(stream, NAME, origin.write_root(tmp_path))
        firewall.nursery.start_soon(firewall.proxy.drain, 60.0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(ConnectionRefusedError):
            await firewall.open()
        assert (await request(tls, NAME))[2] == HELLO
        await tls.aclose()
        assert (await firewall.next_closed()).ended == "eof"


async def test_l8_a_sandbox_is_known_by_its_listener_and_by_nothing_that_its_program_says(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        poor = firewall.proxy.create_sandbox("poor", policy="deny-all")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await firewall.nursery.start(poor.serve, listeners)
        async with trio.SocketStream(trio.socket.socket()) as stream:
            await stream.socket.connect(listeners[0].socket.getsockname())
            assert (await connect(stream, f"{NAME}:{origin.port}", "X-Sandbox: box", "Proxy-Authorization: Basic Ym94Og=="))[
                0
            ] == 403
        assert (await connect(await firewall.open(), f"{NAME}:{origin.port}"))[0] == 200
        assert poor.certificate_pem != firewall.sandbox.certificate_pem
        await firewall.next_closed()
    assert firewall.closed()[0].sandbox == "poor"


async def test_c15_sandboxes_share_no_upstream_connection(tmp_path: Path) -> None:
    """Within one, connections are used again; what carried another sandbox's credential never is."""
    origin = Origin((NAME,))
    async with open_firewall(INJECT, origin, directory=tmp_path, secrets={"k": "first"}) as firewall:
        second = firewall.proxy.create_sandbox("second", policy=INJECT, secrets={"k": "second"})
        for sandbox in (firewall.sandbox, firewall.sandbox, second, firewall.sandbox):
            near, far = trio.testing.memory_stream_pair()
            firewall.nursery.start_soon(sandbox.handle, far, (NAME, origin.port))
            async with await handshake(near, NAME, trust=sandbox.certificate_pem) as tls:
                assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
    assert [seen.one("authorization") for seen in origin.requests] == [
        f"Bearer {who}" for who in ("first", "first", "second", "first")
    ]
    assert origin.connections >= 2


# -- what fails is one flow's own


class _Raising:
    def __init__(self, **_config: object) -> None:
        pass

    async def on_request(self, flow: Flow, request: Any) -> Any:
        if "boom" in request.target:
            raise RuntimeError("canary in an exception")
        return request


async def _ask(firewall: Firewall, origin: Origin, path: str) -> tuple[int, bytes]:
    stream = await firewall.open()
    assert (await connect(stream, f"{NAME}:{origin.port}"))[0] == 200
    tls = await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem)
    status, head, body = await request(tls, f"{NAME}:{origin.port}", path)
    return status, head + body


async def test_l9_a_raising_transform_denies_its_request_and_no_other(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    policy = {"allow": {NAME: [{"transform": [{"plugin": "raising", "config": {}}]}]}}
    pipeline = Pipeline(transforms={"raising": _Raising})
    async with open_firewall(policy, origin, directory=tmp_path, pipeline=pipeline) as firewall:
        assert (await _ask(firewall, origin, "/fine"))[0] == 200
        status, answer = await _ask(firewall, origin, "/boom")
        assert status == 502
        assert b"canary" not in answer
        assert (await _ask(firewall, origin, "/fine"))[0] == 200
    assert [seen.target for seen in origin.requests] == ["/fine", "/fine"]
    assert "canary" not in repr(firewall.events)
    assert [event.reason for event in firewall.events if isinstance(event, Problem)] == ["stage-failed"]


async def test_l9_a_raising_secret_source_denies_its_request_and_no_other(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    calls: list[str] = []

    async def fetch(name: str) -> str:
        calls.append(name)
        await trio.lowlevel.checkpoint()
        if len(calls) == 2:
            raise RuntimeError("canary in an exception")
        return "value"

    secrets = {"k": CallableSource(fetch)}
    async with open_firewall(INJECT, origin, directory=tmp_path, secrets=secrets) as firewall:
        assert [(await _ask(firewall, origin, "/"))[0] for _ in range(3)] == [200, 502, 200]
        done = [event for event in firewall.events if isinstance(event, RequestDone)]
        assert [event.reason for event in done] == [None, "secret-unavailable", None]
    assert len(origin.requests) == 2
    assert "canary" not in repr(firewall.events)


async def test_l9_a_raising_observer_changes_nothing(tmp_path: Path) -> None:
    def observer(_event: object) -> None:
        raise RuntimeError("canary")

    origin = Origin((NAME,))
    async with open_firewall(INJECT, origin, directory=tmp_path, secrets=SECRETS, observers=[observer]) as firewall:
        assert (await _ask(firewall, origin, "/"))[0] == 200
        assert (await _ask(firewall, origin, "/"))[0] == 200
        await firewall.sandbox.update_policy("deny-all")
        assert (await connect(await firewall.open(), NAME + ":443"))[0] == 403


class _Stage:
    """Raises, or widens, for one name only."""

    def __init__(self, answer: Callable[[Flow], Any]) -> None:
        self.answer = answer

    async def decide(self, flow: Flow) -> Any:
        await trio.lowlevel.checkpoint()
        return self.answer(flow) if flow.facts.server_name == OTHER else flow.decision


def _raise(_flow: Flow) -> Any:
    raise RuntimeError("canary in an exception")


@pytest.mark.parametrize("answer", [_raise, lambda _flow: None, lambda _flow: "allow"])
async def test_l9_a_failing_policy_stage_denies_its_flow_and_no_other(answer: Callable[[Flow], Any]) -> None:
    names = {NAME: "1.1.0.1", OTHER: "1.1.0.2"}
    async with open_box({"allow": ["*.test.example"]}, names, pipeline=Pipeline(policies=[_Stage(answer)])) as box:
        assert await box.say(OTHER, client_hello(OTHER)) == ALERT_ACCESS_DENIED
        assert box.closed[0].reason == "stage-failed"
        assert box.wires.dialled == []
        await box.open(NAME).send_all(client_hello(NAME))
        await box.settle()
        assert box.wires.dialled == [(("1.1.0.1",), 443)]
        assert "canary" not in repr(box.events)


@pytest.mark.parametrize("part", ["resolver", "dialer", "sniffer"])
async def test_l9_a_raising_part_ends_its_flow_and_no_other(part: str) -> None:
    def sniffer(data: bytes) -> Any:
        raise RuntimeError("canary in an exception")

    options = {"pipeline": Pipeline(sniffers=[sniffer])} if part == "sniffer" else {}
    async with open_box({"allow": [NAME]}, {NAME: "1.1.0.1"}, **options) as box:
        fine = box.open(NAME)
        await fine.send_all(client_hello(NAME))
        await box.settle()
        if part == "dialer":
            box.wires.before_dial = lambda: 1 / 0
        if part == "resolver":
            box.wires.answers = {}
        await box.say(NAME, b"\x07unknown protocol" if part == "sniffer" else client_hello(NAME))
        assert len(box.closed) == 1
        assert box.closed[0].bytes_up == 0
        assert "canary" not in repr(box.events)
        await box.wires.upstreams[0].send_all(b"alive")
        assert await fine.receive_some() == b"alive"


# -- bounds


async def test_x1_connections_beyond_the_bound_wait_and_room_is_given_back(tmp_path: Path) -> None:
    """They wait in the kernel, where they cost no descriptor; streams handed over can't wait there, and are refused."""
    origin = Origin((NAME,))
    limits = Limits(flows_per_sandbox=3)
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path, limits=limits) as firewall:
        root = origin.write_root(tmp_path)
        open_ones = []
        for _ in range(3):
            stream = await firewall.open()
            assert (await connect(stream, f"{NAME}:{origin.port}"))[0] == 200
            open_ones.append(await handshake(stream, NAME, root))
        answers: list[int] = []

        async def wait_for_room() -> None:
            answers.append((await connect(await firewall.open(), f"{NAME}:{origin.port}"))[0])

        for _ in range(5):
            firewall.nursery.start_soon(wait_for_room)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert answers == []
        near, far = trio.testing.memory_stream_pair()
        await firewall.sandbox.handle(far, (NAME, 443))
        assert (await until_end(near))[0] == b""
        assert firewall.reasons == ["limit"]
        assert (await request(open_ones[0], NAME))[2] == HELLO
        await trio.aclose_forcefully(open_ones.pop())
        with trio.fail_after(30):
            while not answers:
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert answers == [200]
        assert len(firewall.sandbox.flows) == 3


async def test_x1_the_bound_over_all_sandboxes_holds_too(tmp_path: Path) -> None:
    async with open_firewall("deny-all", directory=tmp_path, limits=Limits(flows=1)) as firewall:
        second = firewall.proxy.create_sandbox("second", policy={"allow": [NAME]})
        near, far = trio.testing.memory_stream_pair()
        firewall.nursery.start_soon(second.handle, far, ("203.0.113.1", 443))
        await trio.testing.wait_all_tasks_blocked()
        assert len(second.flows) == 1
        stream, answers = await firewall.open(), []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append((await connect(stream, f"{NAME}:443"))[0])

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert answers == []
            await near.aclose()
            with trio.fail_after(30):
                while not answers:
                    await trio.sleep(0.01)
        assert answers == [403]


async def test_one_sandbox_is_told_apart_in_events_and_repr() -> None:
    async with open_box("deny-all") as box:
        assert repr(box.sandbox) == "<Sandbox 'box' deny-all 0 flows>"
        await box.sandbox.aclose()
        await box.sandbox.aclose()
        assert "closed" in repr(box.sandbox)
        with pytest.raises(RuntimeError):
            await box.sandbox.update_policy("allow-all")
        near, far = trio.testing.memory_stream_pair()
        with pytest.raises(RuntimeError):
            await box.sandbox.handle(far, (NAME, 443))
        assert await near.receive_some() == b""
        assert box.proxy.sandboxes == ()


async def test_the_trust_files_live_as_long_as_the_sandbox(tmp_path: Path) -> None:
    async with open_firewall("deny-all", directory=tmp_path) as firewall:
        env = firewall.sandbox.environment(proxy=firewall.listener)
        bundle = Path(env["SSL_CERT_FILE"] or "")
        assert firewall.sandbox.certificate_pem.strip() in bundle.read_bytes()
        assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in bundle.parent.iterdir())
        assert env["HTTPS_PROXY"] == f"http://127.0.0.1:{firewall.port}"
        assert env["SSL_CERT_DIR"] is None
        await firewall.sandbox.aclose()
        assert not bundle.parent.exists()
