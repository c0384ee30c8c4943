"""Workers as an embedder has them: real processes, real connections, and one sandbox that is the same in all of them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

import sbxproxy
from sbxproxy import ConfigurationError, PolicyChanged, PolicyError, Settings
from sbxproxy.workers import Workers, process, shared
from sbxproxy.workers.member import FLOWS
from sbxproxy.workers.process import ENVIRONMENT
from support.crew import OPEN, echoes, environment, open_echo, open_workers
from support.origin import HELLO, Origin
from support.talk import connect, handshake, request, until_end

NAME = "origin.test.example"


async def test_flows_spread_over_the_workers_and_have_ids_of_their_own(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for _ in range(40):
            status, stream = await crew.tunnel(target)
            assert status == 200
            assert await echoes(stream)
        flows = await crew.flows(40)
        assert len(flows) == 2
        assert all(len(ids) > 3 for ids in flows.values())
        assert len(set(crew.ids())) == 40
        assert max(crew.ids()) < 1 << 53  # readers of JSON know no larger integers


async def test_an_update_ends_in_all_workers_what_it_no_longer_allows(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(30)]
        for stream in streams:
            assert await echoes(stream)
        flows = await crew.flows(30)
        changed = await crew.sandbox.update_policy("deny-all")
        assert set(changed.cut) == {flow for ids in flows.values() for flow in ids}
        assert (changed.kept, changed.mode) == (0, "deny-all")
        assert crew.of(PolicyChanged) == [changed]
        assert {event.ended for event in crew.closed} == {"policy-changed"}  # told before the update was
        assert len(crew.closed) == 30
        assert crew.sandbox.flows == frozenset()
        with trio.fail_after(30):
            assert {(await until_end(stream))[1] for stream in streams} == {"reset"}


async def test_after_an_update_every_worker_judges_by_it(tmp_path: Path) -> None:
    """Each round asks more often than chance could hide a worker that lags behind."""
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for round_ in range(6):
            allowed = bool(round_ % 2)
            await crew.sandbox.update_policy(OPEN if allowed else "deny-all")
            for _ in range(20):
                status, stream = await crew.tunnel(target)
                assert status == (200 if allowed else 403)
                await stream.aclose()
        assert len({event.flow // FLOWS for event in crew.closed}) == 2


async def test_an_update_keeps_what_it_still_allows(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(10)]
        changed = await crew.sandbox.update_policy({"subnets": {"allow": ["127.0.0.1/32"]}})
        assert (changed.cut, changed.kept) == ((), 10)
        for stream in streams:
            assert await echoes(stream)


async def test_an_invalid_update_changes_nothing_anywhere(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for wrong in ("nonsense", {"allow": {NAME: [{"transform": [{"headers": {"x": "${secret:absent}"}}]}]}}):
            with pytest.raises(PolicyError):
                await crew.sandbox.update_policy(wrong)
        assert crew.sandbox.policy == sbxproxy.Policy.parse(OPEN)
        for _ in range(10):
            assert (await crew.tunnel(target))[0] == 200
        assert crew.of(PolicyChanged) == []


async def test_updates_at_once_leave_all_workers_with_the_same_policy(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(crew.sandbox.update_policy, OPEN if number % 2 else "deny-all")
        expected = 200 if crew.sandbox.policy == sbxproxy.Policy.parse(OPEN) else 403
        assert {(await crew.tunnel(target))[0] for _ in range(20)} == {expected}


async def test_a_cancelled_update_goes_on(tmp_path: Path) -> None:
    """Workers that differ for ever would be worse than either policy."""
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(6)]
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crew.sandbox.update_policy, sbxproxy.Policy.parse("deny-all"))
                while crew.sandbox.policy.mode != "deny-all":
                    await trio.sleep(0)
                scope.cancel()
        assert scope.cancelled_caught
        (changed,) = await crew.until(lambda: crew.of(PolicyChanged))
        assert len(changed.cut) == 6
        with trio.fail_after(30):
            for stream in streams:
                await until_end(stream)
        assert {(await crew.tunnel(target))[0] for _ in range(20)} == {403}


async def test_a_policy_that_workers_can_not_be_told_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would end because of it, and so would those that take their places."""
    monkeypatch.setattr(shared, "MOST", 1000)
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        with pytest.raises(PolicyError, match="larger"):
            await crew.sandbox.update_policy({"allow": [f"host{number}.example" for number in range(100)]})
        assert (await crew.tunnel(target))[0] == 200


async def test_c14_all_workers_have_one_authority_and_secrets_get_into_their_requests(tmp_path: Path) -> None:
    asked = []

    async def give(name: str) -> str:
        asked.append(name)
        return "canary-in-a-header"

    origin = Origin((NAME,))
    policy = {
        "allow": {
            NAME: [{"transform": [{"headers": {"authorization": "Bearer ${secret:called}", "x-other": "${secret:literal}"}}]}]
        }
    }
    secrets = {"called": sbxproxy.CallableSource(give), "literal": "canary-of-old"}
    async with open_workers(policy, origin, directory=tmp_path, secrets=secrets) as crew:
        for _ in range(30):
            status, stream = await crew.tunnel(f"{NAME}:{origin.port}")
            assert status == 200
            tls = await handshake(stream, NAME, trust=crew.sandbox.certificate_pem)
            assert (await request(tls, NAME))[::2] == (200, HELLO)
            await tls.aclose()
        assert {(seen.one("authorization"), seen.one("x-other")) for seen in origin.requests} == {
            ("Bearer canary-in-a-header", "canary-of-old")
        }
        assert len(await crew.until(lambda: len(crew.closed) == 30 and {event.flow // FLOWS for event in crew.closed})) == 2
        assert asked == ["called"] * 30
        assert "canary" not in repr(crew.events)


async def test_s1_a_request_whose_secret_can_not_be_had_is_refused(tmp_path: Path) -> None:
    async def fail(name: str) -> str:
        raise ValueError("canary-in-an-error")

    origin = Origin((NAME,))
    policy = {"allow": {NAME: [{"transform": [{"headers": {"authorization": "${secret:bad}"}}]}]}}
    async with open_workers(policy, origin, directory=tmp_path, secrets={"bad": sbxproxy.CallableSource(fail)}) as crew:
        _, stream = await crew.tunnel(f"{NAME}:{origin.port}")
        tls = await handshake(stream, NAME, trust=crew.sandbox.certificate_pem)
        status, _, body = await request(tls, NAME)
        assert status == 502
        assert b"canary" not in body
        assert origin.requests == []
        await crew.until(lambda: crew.of(sbxproxy.Problem))
        assert "canary" not in repr(crew.events)


async def test_s2_no_secret_and_no_key_shows_in_a_workers_arguments_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBX_TEST_TOKEN", "canary-in-the-environment")
    secrets = {"a": "canary-literal", "b": sbxproxy.EnvironmentSource("SBX_TEST_TOKEN")}
    policy = {"allow": {NAME: [{"transform": [{"headers": {"x": "${secret:a} ${secret:b} canary-inline"}}]}]}}
    auth = sbxproxy.ListenerAuth(user="me", password="canary-password")
    async with open_workers(policy, directory=tmp_path, secrets=secrets, sandbox={"auth": auth}) as crew:
        assert len(crew.workers.processes) == 2
        for pid in crew.workers.processes:
            for where in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{where}").read_bytes()
                assert content
                assert b"canary" not in content
        assert "canary" not in repr(crew.sandbox) + repr(crew.workers) + repr(crew.sandbox.policy)


async def test_s2_workers_have_only_the_variables_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedder's environment may be full of secrets that no policy names."""
    monkeypatch.setenv("SBX_TEST_TOKEN", "canary")
    workers = Workers(count=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        names = {entry.split(b"=")[0] for entry in Path(f"/proc/{workers.processes[0]}/environ").read_bytes().split(b"\0")}
        assert names - {b""} <= {name.encode() for name in ENVIRONMENT}
        assert b"PATH" in names
        nursery.cancel_scope.cancel()


async def test_what_waits_for_workers_that_end_is_not_told_that_it_has_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 1000)
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        inner = trio.CancelScope()
        workers = Workers(count=2, environment=environment())

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with inner:
                await workers.run(task_status=task_status)

        await nursery.start(run)
        sandbox = await workers.create_sandbox("box", policy="allow-all", listen=["127.0.0.1:0"])
        for pid in workers.processes:
            os.kill(pid, signal.SIGSTOP)

        async def update() -> None:
            try:
                outcomes.append(await sandbox.update_policy("deny-all"))
            except RuntimeError as error:
                outcomes.append(error)

        nursery.start_soon(update)
        await trio.sleep(0.3)
        inner.cancel()
    assert [type(outcome) for outcome in outcomes] == [RuntimeError]


async def test_it_listens_on_all_kinds_of_sockets(tmp_path: Path) -> None:
    where = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/box.sock"]
    async with open_echo(tmp_path=tmp_path, listen=where) as (crew, target):
        assert [endpoint.rpartition(":")[0] for endpoint in crew.sandbox.endpoints] == ["127.0.0.1", "[::1]", "unix"]
        for endpoint in crew.sandbox.endpoints:
            for _ in range(10):
                status, stream = await crew.tunnel(target, endpoint)
                assert status == 200
                assert await echoes(stream)
        assert len(await crew.flows(30)) == 2
        await crew.sandbox.aclose()
        assert not (tmp_path / "box.sock").exists()


async def test_l3_the_sandbox_can_not_reach_its_own_listeners(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path, listen=["127.0.0.1:0"] * 2) as (crew, _):
        for endpoint in crew.sandbox.endpoints:
            for _ in range(6):
                assert (await crew.tunnel(endpoint))[0] == 403


async def test_l3_nor_those_of_a_sandbox_that_not_all_workers_serve_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another's listener a program would be another sandbox: all workers know of it before one serves it."""
    hang = "from sbxproxy.workers import worker; import trio; opened = worker._Desk._open\n"
    hang += "async def slow(self, message, nursery):\n"
    hang += "    if message['name'] == 'other': await trio.sleep_forever()\n"
    hang += "    return await opened(self, message, nursery)\n"
    hang += "worker._Desk._open = slow; main()"
    monkeypatch.setattr(process, "_PROGRAM", process._PROGRAM.replace("main()", hang))
    monkeypatch.setattr(shared, "PATIENCE", 20)
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        async with trio.open_nursery() as nursery:

            async def create() -> None:
                await crew.workers.create_sandbox("other", policy="deny-all", listen=["127.0.0.1:0", "[::1]:0"])

            nursery.start_soon(create)
            await crew.until(lambda: len(crew.workers.sandboxes) == 2 and crew.workers.sandboxes[1].is_served)
            for _ in range(10):
                for endpoint in crew.workers.sandboxes[1].endpoints:
                    assert (await crew.tunnel(endpoint))[0] == 403
                assert (await crew.tunnel(target))[0] == 200
            for pid in crew.workers.processes:  # no better in those that come later
                os.kill(pid, signal.SIGKILL)
            for _ in range(10):
                assert (await crew.tunnel(crew.workers.sandboxes[1].endpoints[0]))[0] == 403
            nursery.cancel_scope.cancel()


async def test_what_a_closed_sandbox_listened_on_can_be_reached_again(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, _):
        other = await crew.workers.create_sandbox("other", policy="deny-all", listen=["127.0.0.1:0"])
        assert {(await crew.tunnel(other.endpoints[0]))[0] for _ in range(10)} == {403}
        await other.aclose()
        with socket.create_server(("127.0.0.1", int(other.endpoints[0].split(":")[1]))):
            assert {(await crew.tunnel(other.endpoints[0]))[0] for _ in range(10)} == {200}


async def test_listeners_ask_for_a_password_where_they_are_told_to(tmp_path: Path) -> None:
    auth = sbxproxy.ListenerAuth(user="me", password="hush")
    async with open_echo(tmp_path=tmp_path, sandbox={"auth": auth}) as (crew, target):
        for _ in range(6):
            stream = await crew.open()
            assert (await connect(stream, target))[0] == 407
            stream = await crew.open()
            assert (await connect(stream, target, "Proxy-Authorization: Basic bWU6aHVzaA=="))[0] == 200
        variables = crew.sandbox.environment(directory=tmp_path)
        assert variables["HTTPS_PROXY"] == f"http://me:hush@{crew.sandbox.endpoints[0]}"
        assert (tmp_path / "ca.pem").read_bytes() == crew.sandbox.certificate_pem
        assert crew.sandbox.write_trust(tmp_path) == (tmp_path / "ca.pem", tmp_path / "bundle.pem")


async def test_two_sandboxes_are_apart(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        seen: list[sbxproxy.Event] = []
        other = await crew.workers.create_sandbox("other", policy="deny-all", listen=["127.0.0.1:0"], observers=[seen.append])
        assert other.certificate_pem != crew.sandbox.certificate_pem
        for _ in range(10):
            assert (await crew.tunnel(target, other.endpoints[0]))[0] == 403
            assert (await crew.tunnel(target))[0] == 200
        assert crew.workers.sandboxes == (crew.sandbox, other)
        await other.aclose()
        await other.aclose()
        assert crew.workers.sandboxes == (crew.sandbox,)
        assert {event.sandbox for event in seen} == {"other"}
        with pytest.raises(OSError, match="Connect"):
            await crew.open(other.endpoints[0])
        with pytest.raises(RuntimeError):
            await other.update_policy("allow-all")
        again = await crew.workers.create_sandbox("other", policy=OPEN, listen=[other.endpoints[0]])
        assert (await crew.tunnel(target, again.endpoints[0]))[0] == 200
        assert "other" in repr(again)


async def test_closing_a_sandbox_cuts_its_flows(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(10)]
        await crew.sandbox.aclose()
        assert [event.ended for event in crew.closed] == ["sandbox-closed"] * 10
        with trio.fail_after(30):
            for stream in streams:
                await until_end(stream)


async def test_a_sandbox_that_can_not_be_is_refused_before_anything_changes(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, _):
        create = crew.workers.create_sandbox
        taken = crew.sandbox.endpoints[0]
        with pytest.raises(ConfigurationError, match="open already"):
            await create("box", policy="deny-all", listen=["127.0.0.1:0"])
        with pytest.raises(ConfigurationError, match="name"):
            await create("", policy="deny-all", listen=["127.0.0.1:0"])
        with pytest.raises(PolicyError):
            await create("new", policy={"allow": ["*"], "mode": "deny-all"}, listen=["127.0.0.1:0"])
        with pytest.raises(ConfigurationError, match="in use"):
            await create("new", policy="deny-all", listen=["127.0.0.1:0", taken])
        for listen in ([], "127.0.0.1:0", ["127.0.0.1:0"] * 65):
            with pytest.raises(ConfigurationError, match="listen"):
                await create("new", policy="deny-all", listen=listen)
        with pytest.raises(ConfigurationError, match="secret name"):
            await create("new", policy="deny-all", listen=["127.0.0.1:0"], secrets={"not a name": "x"})
        assert crew.workers.sandboxes == (crew.sandbox,)


async def test_drain_lets_flows_end_and_then_run_returns(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(10)]
        pids = crew.workers.processes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crew.workers.drain, 30)
            await crew.until(lambda: crew.sandbox._places[0]._sockets[0].fileno() < 0)
            for stream in streams:
                assert await echoes(stream)
                await stream.aclose()
        assert [event.ended for event in crew.closed] == ["eof"] * 10
        assert "drained" not in {event.ended for event in crew.closed}
        await crew.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
        with pytest.raises(RuntimeError):
            await crew.sandbox.update_policy("allow-all")
        with pytest.raises(RuntimeError):
            await crew.workers.create_sandbox("new", policy="deny-all", listen=["127.0.0.1:0"])
        assert crew.of(sbxproxy.Problem) == []
        await crew.workers.drain()


async def test_drain_cuts_what_does_not_end(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(6)]
        await crew.workers.drain(0.1)
        assert [event.ended for event in crew.closed] == ["drained"] * 6
        with trio.fail_after(30):
            for stream in streams:
                await until_end(stream)


async def test_plugins_are_loaded_by_each_worker_and_observers_by_the_supervisor(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    policy = {"allow": {NAME: [{"transform": [{"plugin": "bearer", "config": {"token": "${secret:a}"}}]}]}}
    async with open_workers(policy, origin, directory=tmp_path, plugins=["bearer"], secrets={"a": "s3cret"}) as crew:
        for _ in range(10):
            _, stream = await crew.tunnel(f"{NAME}:{origin.port}")
            tls = await handshake(stream, NAME, trust=crew.sandbox.certificate_pem)
            assert (await request(tls, NAME))[0] == 200
            await tls.aclose()
        assert {seen.one("authorization") for seen in origin.requests} == {"Bearer s3cret"}
        with pytest.raises(PolicyError, match="no transform"):
            await crew.sandbox.update_policy({"allow": {NAME: [{"transform": [{"plugin": "absent"}]}]}})


async def test_an_observer_that_raises_ends_nothing(tmp_path: Path) -> None:
    def fail(event: sbxproxy.Event) -> None:
        raise ValueError("canary")

    async with open_echo(tmp_path=tmp_path, sandbox={"observers": [fail]}) as (crew, target):
        assert await echoes((await crew.tunnel(target))[1])
        await crew.flows(1)


async def test_bounds_are_those_of_all_workers_together(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path, limits=sbxproxy.Limits(flows_per_sandbox=4)) as (crew, target):
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await crew.tunnel(target))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(24):
                nursery.start_soon(ask)
            await crew.until(lambda: len(statuses) >= 4)
            await trio.sleep(0.5)  # for those who must wait
            assert statuses == [200] * 4
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [0, -1, 257, 1.5, True, None])
async def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(ConfigurationError, match="workers"):
        Workers(count=count)


@pytest.mark.parametrize("plugins", [[object()], "name", ["no-such-plugin"]])
async def test_plugins_go_by_the_names_of_those_that_are_installed(plugins: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"names|no plugin"):
        Workers(count=2, plugins=plugins)


async def test_observers_must_be_callable() -> None:
    with pytest.raises(ConfigurationError, match="observer"):
        Workers(count=2, observers=["no"])  # type: ignore[list-item]


async def test_roots_that_can_not_be_loaded_stop_the_workers_before_they_serve(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(Workers(Settings(upstream_roots=bad), count=2, environment=environment()).run)
    assert caught.group_contains(ConfigurationError, match="bad.pem")


async def test_workers_run_once_and_sandboxes_need_that(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        await Workers(count=1).create_sandbox("box", policy="deny-all", listen=["127.0.0.1:0"])
    async with open_echo(tmp_path=tmp_path, count=1) as (crew, target):
        with pytest.raises(RuntimeError):
            await crew.workers.run()
        assert (await crew.tunnel(target))[0] == 200
        assert repr(crew.workers) == "<Workers 1 of 1, 1 sandboxes>"
    assert crew.workers.processes == ()
