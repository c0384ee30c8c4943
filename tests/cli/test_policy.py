"""``sbxproxy policy``: the policy of a running sandbox, from another terminal and from nowhere else."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time

import pytest

from sbxproxy.cli.control import ControlError, ask, find
from sbxproxy.cli.runtime import runtime_directory
from sbxproxy.errors import ConfigurationError
from support.program import one_sentence, sbxproxy, start, write

RULES = '{"allow": {"*.a.example": [{"transform": [{"headers": {"authorization": "Bearer canary"}}]}]}}'


def answers(path):
    """Tell whether somebody listens: there is a moment when the socket is there and nobody does."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def wait_for_sockets(tmp_path, number, child=None):
    deadline = time.monotonic() + 30
    while sum(map(answers, tmp_path.glob("sbxproxy/*.sock"))) < number:
        assert child is None or child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def running(tmp_path, *options, command=("sleep", "60")):
    """A sandbox whose control socket is in *tmp_path*."""
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    child = start("run", *options, "--", *command, env=env)
    try:
        wait_for_sockets(tmp_path, 1, child)
        yield child, env
    finally:
        child.terminate()
        child.communicate(timeout=30)


def test_show_set_and_lint(tmp_path):
    with running(tmp_path, "--policy", write(tmp_path / "policy", RULES), "--name", "build") as (_, env):
        assert sbxproxy("policy", "list", env=env).stdout == "build\n"
        shown = sbxproxy("policy", "show", "build", env=env)
        assert "canary" not in shown.stdout
        assert "<redacted>" in shown.stdout
        linted = sbxproxy("policy", "lint", "build", env=env)
        assert linted.returncode == 1
        assert "broad-credential" in linted.stdout
        done = sbxproxy("policy", "set", "build", "-", env=env, input='{"allow": ["b.example"]}')
        assert done.stdout == "build: user-defined; 0 flows cut, 0 kept\n"
        assert json.loads(sbxproxy("policy", "show", "build", env=env).stdout)["allow"] == ["b.example"]
        assert sbxproxy("policy", "lint", "build", env=env).returncode == 0
        assert sbxproxy("policy", "set", "build", "deny-all", env=env).returncode == 0
        assert json.loads(sbxproxy("policy", "show", "build", env=env).stdout) == "deny-all"
    assert sbxproxy("policy", "list", env=env).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "other"), "running: run"),
        (("set", "run", "{missing}"), "can't be read"),
        (("set", "run", "{bad}"), "transfrom"),
    ],
)
def test_a_mistake_is_one_clear_sentence_and_changes_nothing(arguments, said, tmp_path):
    write(tmp_path / "bad", '{"allow": {"a.example": [{"transfrom": []}]}}')
    with running(tmp_path, "--deny-all") as (_, env):
        arguments = [text.replace("{", f"{tmp_path}/").rstrip("}") for text in arguments]
        assert said in one_sentence(sbxproxy("policy", *arguments, env=env))
        assert json.loads(sbxproxy("policy", "show", "run", env=env).stdout) == "deny-all"


def test_a_second_sandbox_of_the_same_name_gets_another(tmp_path):
    with running(tmp_path, "--deny-all"), running(tmp_path, "--allow-all") as (_, env):
        deadline = time.monotonic() + 30
        while len(names := sbxproxy("policy", "list", env=env).stdout.split()) < 2:
            assert time.monotonic() < deadline
        assert names[0] == "run"
        assert names[1].startswith("run-")
        assert json.loads(sbxproxy("policy", "show", names[1], env=env).stdout) == "allow-all"


def test_l6_the_sandboxed_program_can_not_reach_the_socket(tmp_path):
    """Its directory is hidden, by path, by link and through other processes' roots."""
    code = (
        "import glob, os, socket, sys\n"
        f"places = ['{tmp_path}/sbxproxy', '/proc/1/root{tmp_path}/sbxproxy', '/proc/self/root{tmp_path}/sbxproxy']\n"
        "for place in places:\n"
        "    s = socket.socket(socket.AF_UNIX)\n"
        "    try: s.connect(place + '/run.sock')\n"
        "    except OSError as e: print(type(e).__name__)\n"
        "    else: print('REACHED')\n"
        "    print(glob.glob(place + '/*'))\n"
    )
    with running(tmp_path, "--deny-all", command=("sleep", "60")) as (_, env):
        inside = sbxproxy("run", "--deny-all", "--", "python3", "-c", code, env=env)
    assert inside.returncode == 0, inside.stderr
    assert "REACHED" not in inside.stdout
    assert inside.stdout.count("[]\n") == 3


def test_with_proxy_variables_only_there_is_no_socket(tmp_path):
    """Its command would see it."""
    code = f"import os; print(os.path.exists('{tmp_path}/sbxproxy/run.sock'))"
    done = sbxproxy(
        "run", "--capture=env", "--quiet", "--deny-all", "--", "python3", "-c", code, env={"XDG_RUNTIME_DIR": str(tmp_path)}
    )
    assert done.stdout == "False\n"


def test_l6_socket_and_directory_are_the_users_alone(tmp_path):
    with running(tmp_path, "--deny-all"):
        assert stat.S_IMODE((tmp_path / "sbxproxy").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "sbxproxy" / "run.sock").stat().st_mode) == 0o600


def test_a_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "sbxproxy").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="mode 0700"):
        runtime_directory()
    (tmp_path / "sbxproxy").rmdir()
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "sbxproxy").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigurationError, match="mode 0700"):
        runtime_directory()


@pytest.mark.parametrize("request_", [b"{}\n", b"nonsense\n", b'{"do": "set", "policy": 7}\n', b'{"do": "show"}', b"[]\n"])
def test_nonsense_gets_an_error_and_changes_nothing(request_, tmp_path):
    with running(tmp_path, "--deny-all"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(tmp_path / "sbxproxy" / "run.sock"))
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
            assert "error" in json.loads(sock.recv(65536))
        path = tmp_path / "sbxproxy" / "run.sock"
        assert ask(path, {"do": "show"})["policy"] == "deny-all"


def test_a_sandbox_that_is_gone_is_said_to_be(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "gone.sock"))
    with pytest.raises(ControlError, match="no longer running"):
        ask(find(tmp_path, "gone"), {"do": "show"})
    with pytest.raises(ControlError, match="running: none"):
        find(tmp_path, "gone")


def test_a_socket_that_is_just_being_made_is_waited_for(tmp_path):
    """It is there before it listens; whoever makes it holds the directory's lock for so long."""
    path = tmp_path / "young.sock"
    told = []
    with socket.socket(socket.AF_UNIX) as young, socket.socket(socket.AF_UNIX) as probe:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        young.bind(str(path))
        assert probe.connect_ex(str(path)) == errno.ECONNREFUSED
        asking = threading.Thread(target=lambda: told.append(ask(path, {"do": "show"})))
        asking.start()
        asking.join(0.3)
        assert asking.is_alive()
        young.listen()
        os.close(descriptor)
        young.settimeout(20)
        # One to see whether it is stale, and one that asks.
        for _ in range(2):
            connection, _ = young.accept()
            with connection, connection.makefile("rwb") as lines:
                if lines.readline() == b'{"do": "show"}\n':
                    lines.write(b'{"policy": "deny-all"}\n')
        asking.join(20)
    assert told == [{"policy": "deny-all"}]


def test_what_killed_ones_left_is_not_listed_and_goes(tmp_path):
    """Two of a name, so that neither is simply replaced by the next."""
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            child, env = stack.enter_context(running(tmp_path, "--deny-all"))
            wait_for_sockets(tmp_path, number)
        child.kill()
        child.wait()
        assert len(list(tmp_path.glob("sbxproxy/*.sock"))) == 2
        assert sbxproxy("policy", "list", env=env).stdout == "run\n"
        assert len(list(tmp_path.glob("sbxproxy/*.sock"))) == 1


def test_many_of_a_name_at_once_all_get_a_socket(tmp_path):
    """Between being bound and listening a socket looks like one whose process is gone."""
    tmp_path.joinpath("sbxproxy").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "sbxproxy" / "gone.sock"))
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    children = [start("run", "--deny-all", "--", "sleep", "60", env=env) for _ in range(6)]
    try:
        wait_for_sockets(tmp_path, 6)
        names = sbxproxy("policy", "list", env=env).stdout.split()
        assert len(names) == 6
        assert "gone" not in names
        for name in names:
            assert sbxproxy("policy", "show", name, env=env).stdout == '"deny-all"\n'
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.communicate(timeout=30)
    assert list(tmp_path.glob("sbxproxy/*")) == []
