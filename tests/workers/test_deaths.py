"""Workers that die, hang or talk nonsense, and a supervisor that dies: nothing goes on that a policy doesn't hold."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

import sbxproxy
from sbxproxy import ConfigurationError, Problem
from sbxproxy.workers import Workers, member, process, shared, supervisor
from sbxproxy.workers.framing import frame
from support.crew import OPEN, echoes, environment, open_echo, open_workers
from support.origin import HELLO, Origin
from support.talk import handshake, request, until_end
from support.tcp import open_descriptors

SUPERVISED = Path(__file__).parents[1] / "support" / "supervised.py"


def lost(crew: Any) -> list[str]:
    return [problem.detail for problem in crew.of(Problem) if problem.reason == "worker-lost"]


async def members(crew: Any) -> dict[int, int]:
    """Process ids by the number of the worker."""
    return {each.number: each.pid for each in crew.workers._live}


async def test_a_killed_worker_takes_its_own_flows_along_and_no_others(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for _ in range(30):
            assert await echoes((await crew.tunnel(target))[1])
        flows = await crew.flows(30)
        pids = await members(crew)
        victim, other = flows
        os.kill(pids[victim], signal.SIGKILL)
        await crew.until_lost()
        alive = [await echoes(stream) for stream in crew.streams]
        assert alive.count(True) == len(flows[other])
        (told,) = lost(crew)
        assert told.startswith(f"worker {victim} (process {pids[victim]}) ended with SIGKILL; another takes its place")
        assert told.endswith(f"; {len(flows[victim])} of its flows are lost")
        assert crew.sandbox.flows == frozenset(flows[other])


async def test_nobody_is_refused_while_a_worker_is_replaced(tmp_path: Path) -> None:
    """Its queue is kept open by the supervisor: who waits in it is served by the next worker."""
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for pid in crew.workers.processes:
            os.kill(pid, signal.SIGKILL)
        for _ in range(20):
            with trio.fail_after(30):
                status, stream = await crew.tunnel(target)
            assert status == 200
            assert await echoes(stream)
        await crew.until_lost(2)
        assert set(await crew.flows(20)) == {3, 4}


async def test_the_policy_and_the_authority_are_the_same_after_a_replacement(tmp_path: Path) -> None:
    origin = Origin(("origin.test.example",))
    policy = {"allow": {origin.names[0]: [{"transform": [{"headers": {"authorization": "${secret:a}"}}]}]}}
    async with open_workers("allow-all", origin, directory=tmp_path, secrets={"a": "s3cret"}, count=1) as crew:
        await crew.sandbox.update_policy(policy)
        os.kill(crew.workers.processes[0], signal.SIGKILL)
        _, stream = await crew.tunnel(f"{origin.names[0]}:{origin.port}")
        tls = await handshake(stream, origin.names[0], trust=crew.sandbox.certificate_pem)
        assert (await request(tls, origin.names[0]))[::2] == (200, HELLO)
        assert origin.requests[0].one("authorization") == "s3cret"


async def test_a_worker_that_hangs_when_the_policy_changes_is_replaced_under_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 3)  # the other one has to answer within it
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        streams = [(await crew.tunnel(target))[1] for _ in range(20)]
        flows = await crew.flows(20)
        victim, other = flows
        pid = (await members(crew))[victim]
        os.kill(pid, signal.SIGSTOP)
        changed = await crew.sandbox.update_policy("deny-all")
        # Here it has happened already: the one that hung is gone, with all of its flows.
        assert not Path(f"/proc/{pid}").exists()
        assert set(changed.cut) == set(flows[other])
        with trio.fail_after(30):
            for stream in streams:
                await until_end(stream)
        for _ in range(20):
            assert (await crew.tunnel(target))[0] == 403
        await crew.until_lost()
        assert "was killed, since it did not answer in 3" in lost(crew)[0]


async def test_a_worker_that_hangs_is_noticed_without_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that the kernel deals to it would wait for ever."""
    monkeypatch.setattr(member, "PULSE", 0.1)
    monkeypatch.setattr(member, "PULSE_PATIENCE", 3)  # the others have to answer within it
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        os.kill(crew.workers.processes[0], signal.SIGSTOP)
        for _ in range(20):
            with trio.fail_after(30):
                assert (await crew.tunnel(target))[0] == 200
        await crew.until_lost()


async def test_a_supervisor_that_was_stopped_does_not_take_its_workers_for_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z, a debugger, a virtual machine that is resumed: the answers are there, and not read yet."""
    monkeypatch.setattr(member, "PULSE", 0.01)
    monkeypatch.setattr(member, "PULSE_PATIENCE", 0.2)
    monkeypatch.setattr(member, "LAST_CHANCE", 30)  # that there is one is what counts: the workers may be held up too
    async with open_echo(tmp_path=tmp_path) as (crew, _):
        for _ in range(4):
            await trio.sleep(0.05)
            time.sleep(0.4)
        await trio.sleep(0.3)
        assert lost(crew) == []


async def test_a_supervisor_without_descriptors_loses_workers_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_args: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(supervisor, "PAUSE", 0.01)
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        with monkeypatch.context() as broken:
            broken.setattr(member.socket, "socketpair", exhausted)
            os.kill(crew.workers.processes[0], signal.SIGKILL)
            await crew.until(lambda: len(lost(crew)) > 3)
            assert "Too many open files" in lost(crew)[-1]
        await crew.until(lambda: len(crew.workers.processes) == 2)
        with monkeypatch.context() as broken:
            broken.setattr(os, "dup", exhausted)  # for the sockets of a new sandbox
            await crew.workers.create_sandbox("other", policy="deny-all", listen=["127.0.0.1:0"])
            await crew.until(lambda: any("could not be given its sockets" in told for told in lost(crew)))
        await crew.until(lambda: len(crew.workers.processes) == 2)
        assert {(await crew.tunnel(target))[0] for _ in range(10)} == {200}
        assert {(await crew.tunnel(target, crew.workers.sandboxes[1].endpoints[0]))[0] for _ in range(10)} == {403}


async def test_a_worker_that_can_not_make_a_sandbox_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not go on without: its share of the connections would wait for ever."""
    program = process._PROGRAM.replace(
        "main()", "from sbxproxy.proxy import Proxy; Proxy.create_sandbox = lambda *_, **__: {}['canary']; main()"
    )
    before = process._PROGRAM
    monkeypatch.setattr(process, "_PROGRAM", program)
    workers = Workers(count=2, environment=environment())
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            seen: list[sbxproxy.Event] = []
            await nursery.start(workers.run)
            monkeypatch.setattr(process, "_PROGRAM", before)
            sandbox = await workers.create_sandbox("box", policy="deny-all", listen=["127.0.0.1:0"], observers=[seen.append])
            while len(workers.processes) < 2:
                await trio.sleep(0.01)
            assert (await sandbox.update_policy("allow-all")).kept == 0
            nursery.cancel_scope.cancel()
    details = [event.detail for event in seen if isinstance(event, Problem)]
    assert len(details) == 2
    assert all("could not do what it was told: KeyError" in detail and "canary" not in detail for detail in details)


async def test_a_worker_that_starts_during_an_update_has_the_new_policy(tmp_path: Path) -> None:
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for number in range(6):
            os.kill(crew.workers.processes[number % 2], signal.SIGKILL)
            await trio.sleep(0.05 * number)
            await crew.sandbox.update_policy("deny-all")
            assert {(await crew.tunnel(target))[0] for _ in range(10)} == {403}
            await crew.sandbox.update_policy(OPEN)
            assert {(await crew.tunnel(target))[0] for _ in range(10)} == {200}
            await crew.until_lost(number + 1)


async def test_an_update_while_no_worker_lives_holds_for_those_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it waits for nobody who is dead."""
    monkeypatch.setattr(shared, "PATIENCE", 1000)
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        for pid in crew.workers.processes:
            os.kill(pid, signal.SIGKILL)
        with trio.fail_after(30):
            await crew.sandbox.update_policy("deny-all")
        assert {(await crew.tunnel(target))[0] for _ in range(10)} == {403}


async def test_signals_of_a_terminal_or_service_manager_do_not_end_workers(tmp_path: Path) -> None:
    """Their supervisor hears them too, and drains."""
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        _, stream = await crew.tunnel(target)
        pids = crew.workers.processes
        for pid in pids:
            assert os.getsid(pid) == pid
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        await trio.sleep(0.2)
        assert await echoes(stream)
        assert set(crew.workers.processes) == set(pids)


async def test_replacements_leave_no_descriptors_and_no_processes_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SETTLED", 0.0)
    async with open_echo(tmp_path=tmp_path) as (crew, target):
        before = open_descriptors()
        for number in range(10):
            for pid in crew.workers.processes:
                os.kill(pid, signal.SIGKILL)
            await crew.until_lost(2 * (number + 1))
        with trio.fail_after(20):  # starting one takes some for a moment
            while open_descriptors() != before:
                await trio.sleep(0.01)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert set(map(int, children)) >= set(crew.workers.processes)
        states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children}
        assert "Z" not in states.values()
        assert (await crew.tunnel(target))[0] == 200


async def test_workers_that_can_not_start_again_are_tried_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PAUSE", 0.05)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.4)
    async with open_echo(tmp_path=tmp_path, count=1) as (crew, target):
        with monkeypatch.context() as broken:
            broken.setattr(process, "_PROGRAM", "import sys; sys.exit(7)")
            os.kill(crew.workers.processes[0], signal.SIGKILL)
            await trio.sleep(2)
            assert len(lost(crew)) <= 9
            await crew.until(lambda: len(lost(crew)) >= 3)
            assert "ended with code 7" in lost(crew)[-1]
        with trio.fail_after(30):
            assert (await crew.tunnel(target))[0] == 200


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(7)",
        "no python",
        # Junk instead of messages, each of another kind.
        "import sys, socket; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'\\xff' * 100); s.recv(1)",
        "import sys, socket; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'\\0\\0\\0\\x02[]'); s.recv(1)",
        'import sys, socket; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b\'\\0\\0\\0\\x0a{"do":"x"}\'); s.recv(1)',
        "import sys, socket; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'\\0\\0'); s.close()",
        "import sys, socket; s = socket.socket(fileno=int(sys.argv[1])); socket.send_fds(s, [b'\\0'], [0]); s.recv(1)",
    ],
)
async def test_workers_that_can_not_start_at_first_are_an_error(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROGRAM", program)
    before = open_descriptors()
    with pytest.raises(ExceptionGroup) as caught, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(Workers(count=2).run)
    assert caught.group_contains(ConfigurationError, match="ended before it was ready")
    assert open_descriptors() <= before + 3  # Trio's own, of the first thread


NONSENSE = {
    "unknown": {"do": "else"},
    "no events": {"do": "events", "events": [{"event": "problem"}], "lost": 0},
    "odd event": {"do": "events", "events": [7], "lost": 0},
    "odd sandbox": {
        "do": "events",
        "events": [{"event": "problem", "sandbox": ["box"], "time": 1, "flow": None, "reason": "", "detail": ""}],
        "lost": 0,
    },
    "odd flow": {
        "do": "events",
        "events": [{"event": "problem", "sandbox": "box", "time": 1, "flow": [], "reason": "", "detail": ""}],
        "lost": 0,
    },
    "odd ask": {"do": "ask", "ask": "1", "sandbox": "box", "name": "a"},
    "odd result": {"do": "done", "call": 2, "cut": ["a"], "kept": 0},
    "answer to nothing": {"do": "done", "call": 3},
}


@pytest.mark.parametrize("message", NONSENSE.values(), ids=NONSENSE)
async def test_a_worker_that_talks_nonsense_is_replaced(message: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says it instead of its second answer, that about the sandbox."""
    program = process._PROGRAM.replace(
        "main()",
        f"from sbxproxy.workers import channel; post = channel.Channel.post; said = []\n"
        f"def spoilt(self, message, descriptors=()):\n"
        f"    said.append(1)\n"
        f"    post(self, {message!r} if len(said) == 2 else message, descriptors)\n"
        f"channel.Channel.post = spoilt; main()",
    )
    assert program != process._PROGRAM
    before = process._PROGRAM
    monkeypatch.setattr(process, "_PROGRAM", program)
    events: list[sbxproxy.Event] = []
    workers = Workers(count=1, observers=[events.append], environment=environment())
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            monkeypatch.setattr(process, "_PROGRAM", before)
            sandbox = await workers.create_sandbox("box", policy="deny-all", listen=["127.0.0.1:0"])
            while not workers.processes:
                await trio.sleep(0.01)
            host, port = sandbox.endpoints[0].split(":")
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 403")
            await stream.aclose()
            nursery.cancel_scope.cancel()
    (problem,) = [event for event in events if isinstance(event, Problem)]
    assert "was killed" in problem.detail


# -- the supervisor's end


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("hang", [False, True], ids=["well", "hanging"])
def test_l9_workers_end_with_their_supervisor_even_if_they_hang(hang: bool) -> None:
    """Killed, it can't say anything: the kernel closes the channel, and sends the signal that was asked for."""
    program = subprocess.Popen([sys.executable, str(SUPERVISED)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    endpoint, *pids = program.stdout.readline().split()
    workers = list(map(int, pids))
    assert len(workers) == 2
    assert not gone(workers)
    if hang:
        os.kill(workers[0], signal.SIGSTOP)
    program.kill()
    program.wait()
    program.stdout.close()
    deadline = time.monotonic() + 20
    while not gone(workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host, port = endpoint.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


async def worker(*chunks: bytes, close: bool = False) -> int:
    """Run a worker that is sent *chunks*; its exit code."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = process.start(theirs, environment())
        theirs.close()
        for chunk in chunks:
            ours.sendall(chunk)
        if close:
            ours.close()
        with trio.fail_after(30):
            return await trio.to_thread.run_sync(child.wait)


BEGIN = frame({"do": "start", "call": 1, "settings": {}, "plugins": [], "first": 1})


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff" * 8,
        b"\0\0\0\1{",
        b"\0\0\0\2[]",
        frame({"do": "update"}),
        frame({"do": "start", "call": 1}),
        frame({"do": "start", "descriptors": 1}),
    ],
)
async def test_a_worker_ends_when_its_supervisor_talks_nonsense(junk: bytes) -> None:
    assert await worker(junk) == 3


@pytest.mark.parametrize("size", [0, 3, 20, len(BEGIN) - 1])
async def test_a_worker_ends_when_its_supervisor_ends_in_the_middle_of_a_message(size: int) -> None:
    assert await worker(BEGIN[:size], close=True) == 3


async def test_a_worker_does_not_outlive_a_parent_that_was_gone_before_it_could_look() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        code = process._PROGRAM.replace("main()", "sys.argv[2] = '1'; main()")
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), "0", "[" + ",".join(f'"{p}"' for p in sys.path) + "]"],
            pass_fds=[theirs.fileno()],
        )
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(child.wait) == 1
