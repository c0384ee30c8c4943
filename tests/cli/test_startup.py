"""What must not be imported before the command runs, and what happens while the rest is imported."""

import os
import select
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from sbxproxy.capture.starting import Started
from sbxproxy.cli import confine
from sbxproxy.loading import Loading
from support.program import PROGRAM, sbxproxy, write

SLOW = (
    "OpenSSL",
    "certifi",
    "dns",
    "h11",
    "importlib.metadata",
    "pydantic",
    "re2",
    "rich",
    "sbxproxy.connection",
    "sbxproxy.dns",
    "sbxproxy.events",
    "sbxproxy.http",
    "sbxproxy.net",
    "sbxproxy.plugins",
    "sbxproxy.policy.explain",
    "sbxproxy.policy.lint",
    "sbxproxy.proxy",
    "sbxproxy.secrets",
    "sbxproxy.stages",
    "service_identity",
    "ssl",
    "trio",
)
"""Modules that take milliseconds each, or bring in such."""

AT = """
import sys
from {module} import {name} as owner
def told(*arguments, _then=getattr(owner, {function!r}), **options):
    print("LOADED", *sorted(sys.modules), flush=True)
    return _then(*arguments, **options)
setattr(owner, {function!r}, told)
sys.argv = ["sbxproxy", *sys.argv[1:]]
from sbxproxy.cli import main
main()
"""


def loaded_at(module, name, function, *arguments):
    code = AT.format(module=module, name=name, function=function)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert done.returncode == 0, done.stderr
    return set(line.split()[1:])


@pytest.mark.parametrize("policy", [["--policy", "deny-all"], ["--policy", "allow-all"], ["--allow", "a.example"]])
def test_before_the_command_runs_nothing_slow_is_imported(policy):
    """The command waits for every one of them, and needs none until it connects."""
    loaded = loaded_at("sbxproxy.capture.starting", "Started", "go", "run", *policy, "--", "true")
    assert loaded.isdisjoint(SLOW)


def test_a_policy_with_rules_is_read_without_models_too(tmp_path):
    """Building them takes longer than all the rest."""
    rule = '{"allow": {"a.example": [{"transform": [{"headers": {"x-a": "1"}}]}]}}'
    policy = write(tmp_path / "policy.json", rule)
    loaded = loaded_at("sbxproxy.capture.starting", "Started", "go", "run", "--policy", policy, "--", "true")
    assert loaded.isdisjoint(SLOW)


def test_the_sandbox_is_begun_before_its_certificate_is_made_and_its_policy_read():
    """By another process, which has a processor of its own meanwhile."""
    loaded = loaded_at("sbxproxy.cli", "confine", "begin", "run", "--policy", "deny-all", "--", "true")
    assert loaded.isdisjoint({*SLOW, "cryptography"})


def test_the_version_takes_neither_loop_nor_proxy():
    loaded = loaded_at("click", "Context", "exit", "--version")
    assert loaded.isdisjoint({*SLOW, "cryptography", "sbxproxy.policy", "sbxproxy.settings"})


def test_when_a_proxy_listens_what_carries_connections_is_not_yet_imported():
    """It is loaded in a thread, so that no connection waits for another's; here not before the start has been looked at."""
    code = (
        "import sys, trio\n"
        "from sbxproxy import Proxy\n"
        "from sbxproxy.loading import Loading\n"
        "finish, told = Loading.finish, trio.Event()\n"
        "async def finish_later(self):\n"
        "    await told.wait()\n"
        "    await finish(self)\n"
        "Loading.finish = finish_later\n"
        "async def main():\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        proxy = Proxy()\n"
        "        await nursery.start(proxy.run)\n"
        "        sandbox = proxy.create_sandbox('s', policy='deny-all')\n"
        "        await nursery.start(sandbox.serve, await trio.open_tcp_listeners(0, host='127.0.0.1'))\n"
        "        print('LOADED', *sys.modules)\n"
        "        told.set()\n"
        "        with trio.fail_after(30):\n"
        "            while 'sbxproxy.connection.story' not in sys.modules: await trio.sleep(0.01)\n"
        "        nursery.cancel_scope.cancel()\n"
        "trio.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    theirs = {"OpenSSL", "dns", "h11", "pydantic", "rich", "service_identity", "importlib.metadata"}
    parts = (
        *("connection.narrow", "connection.story", "dns.message", "fronts.dns", "fronts.http", "fronts.socks5", "http.handler"),
        *("sandbox.update", "stages.inspector"),
    )
    assert theirs.union(f"sbxproxy.{part}" for part in parts).isdisjoint(done.stdout.split())


def test_a_signal_that_comes_while_the_proxy_is_imported_reaches_the_command():
    """It would end sbxproxy, and the command with it, were it not kept until there is somebody to pass it on."""
    trap = "trap 'echo told; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    child = subprocess.Popen(
        [*PROGRAM, "run", "--policy", "deny-all", "--", "sh", "-c", trap],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout.readline() == "up\n"
        child.terminate()
        assert child.stdout.read() == "told\n"
        assert child.wait(timeout=20) == 9
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


TOLD_AT_ONCE = """
import os, signal, sys, time
from sbxproxy.capture.starting import Started
def go(self, _then=Started.go):
    _then(self)
    while not os.path.exists(sys.argv[-1]):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
Started.go = go
from sbxproxy.cli import main
main()
"""


def test_a_signal_that_comes_as_soon_as_the_command_runs_reaches_it(tmp_path):
    """Who has seen a line of its may send one before anything else has happened here."""
    trap = "trap 'echo told; exit 9' TERM; touch \"$0\"; while :; do sleep 0.05; done"
    argv = [sys.executable, "-c", TOLD_AT_ONCE, "run", "--policy", "deny-all", "--", "sh", "-c", trap, tmp_path / "up"]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.stdout, done.returncode) == ("told\n", 9), done.stderr


def test_what_connects_at_once_is_served():
    """Its connection waits until there is who serves it, and is then decided on like any other."""
    code = "import socket; s = socket.create_connection(('192.0.2.1', 443), 20); s.settimeout(20); s.sendall(b'x' * 9); s.recv(1)"
    done = sbxproxy("run", "--policy", "deny-all", "--", "/usr/bin/python3", "-S", "-c", code)
    assert done.returncode == 1
    assert "ConnectionResetError" in done.stderr or "ConnectionRefusedError" in done.stderr
    assert "deny-all" in done.stderr


def test_where_something_may_still_be_wrong_the_command_waits(tmp_path):
    """A secret that can't be had is found out later than the rest, and the command is not executed even so."""
    mark = tmp_path / "ran"
    rule = '{"allow": {"a.example": [{"transform": [{"headers": {"x-a": "${secret:a}"}}]}]}}'
    policy = write(tmp_path / "policy.json", rule)
    done = sbxproxy("run", "--policy", policy, "--secret", "a=env:SBX_NOT_SET", "--", "touch", mark)
    assert done.returncode == 125
    assert not mark.exists()


def test_an_invalid_policy_ends_what_was_begun(tmp_path):
    mark = tmp_path / "ran"
    done = sbxproxy("run", "--policy", write(tmp_path / "policy.json", "{"), "--", "touch", mark)
    assert done.returncode == 125
    assert not mark.exists()


def test_an_import_is_broken_off_when_the_command_has_ended_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "sbx_made_up.py").write_text("import sbx_made_up_too\n")
    (tmp_path / "sbx_made_up_too.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    child = subprocess.Popen(["sleep", "60"])
    started = Started(child, None, os.pidfd_open(child.pid))
    try:
        with confine._Watch(started):
            import sbx_made_up_too  # noqa: F401
        child.kill()
        select.select([started.pidfd], [], [], 20)
        with pytest.raises(confine._Ended), confine._Watch(started):
            import sbx_made_up  # noqa: F401
        assert not any(isinstance(finder, confine._Watch) for finder in sys.meta_path)
    finally:
        child.kill()
        child.wait()
        for descriptor in (started.pidfd,):
            os.close(descriptor)
        for name in ("sbx_made_up", "sbx_made_up_too"):
            sys.modules.pop(name, None)


async def test_modules_are_loaded_once_in_a_thread_and_whoever_comes_meanwhile_waits(tmp_path, monkeypatch):
    import trio

    (tmp_path / "sbx_slow.py").write_text("import threading, time\ntime.sleep(0.2)\nBY = threading.current_thread()\n")
    monkeypatch.syspath_prepend(tmp_path)
    loading = Loading("sbx_slow")
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(loading.finish)
        import sbx_slow

        assert sbx_slow.BY is not threading.main_thread()
    finally:
        sys.modules.pop("sbx_slow", None)


async def test_loading_that_is_cancelled_is_taken_up_again(tmp_path, monkeypatch):
    import trio

    (tmp_path / "sbx_one.py").write_text("import sbx_gate\nsbx_gate.begun.set()\nassert sbx_gate.cancelled.wait(60)\n")
    (tmp_path / "sbx_two.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    gate = SimpleNamespace(begun=threading.Event(), cancelled=threading.Event())
    monkeypatch.setitem(sys.modules, "sbx_gate", gate)
    loading = Loading("sbx_one", "sbx_two")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loading.finish)
            while not gate.begun.is_set():
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
            gate.cancelled.set()
        assert "sbx_two" not in sys.modules
        await loading.finish()
        assert "sbx_two" in sys.modules
    finally:
        for name in ("sbx_one", "sbx_two"):
            sys.modules.pop(name, None)
