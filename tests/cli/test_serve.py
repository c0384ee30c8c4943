"""``sbxproxy serve``: says where it listens, drains on SIGTERM, and writes what clients need."""

import json
import os
import signal
import socket
import stat
import subprocess
import time

import pytest

from support.program import one_sentence, sbxproxy, start, write


def started(*arguments, **options):
    server = start("serve", *arguments, **options)
    line = server.stderr.readline()
    assert "listening on" in line, line + server.stderr.read()
    return server, line.split()[-1]


def stop(server):
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=30)
    assert server.returncode == 0, err
    return out, err


def test_it_serves_says_where_and_ends_with_0_after_sigterm():
    server, where = started("--deny-all", "--listen", "127.0.0.1:0")
    done = subprocess.run(["curl", "-sS", "-x", f"http://{where}", "https://a.example/"], capture_output=True, text=True)
    assert "response 403" in done.stderr
    stop(server)


def test_sigterm_ends_it_while_a_client_is_connected():
    server, where = started("--deny-all", "--listen", "127.0.0.1:0", "--grace", "0.2")
    host, port = where.split(":")
    with socket.create_connection((host, int(port))):
        stop(server)


def test_it_writes_the_certificate_and_the_variables(tmp_path):
    server, where = started(
        "--deny-all",
        "--listen",
        "127.0.0.1:0",
        "--ca-out",
        tmp_path / "ca.pem",
        "--trust-dir",
        tmp_path / "trust",
        "--env-out",
        tmp_path / "env.sh",
    )
    described = sbxproxy("ca", tmp_path / "ca.pem")
    script = (
        f'. {tmp_path}/env.sh; test "$HTTPS_PROXY" = http://{where} && test -s "$SSL_CERT_FILE" && curl -sS https://a.example/'
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    stop(server)
    assert "sbxproxy serve" in described.stdout
    assert "response 403" in done.stderr
    assert stat.S_IMODE((tmp_path / "env.sh").stat().st_mode) == 0o600
    assert (tmp_path / "trust" / "ca.pem").read_bytes() == (tmp_path / "ca.pem").read_bytes()


def test_it_tells_a_descriptor_when_it_is_ready():
    reading, writing = os.pipe()
    server = start("serve", "--deny-all", "--listen", "127.0.0.1:0", "--ready-fd", writing, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as ready:
        lines = ready.read().split()
    assert len(lines) == 1
    assert lines[0].startswith("127.0.0.1:")
    stop(server)


def test_it_listens_on_a_unix_socket_and_removes_it(tmp_path):
    path = tmp_path / "sbx.sock"
    server, where = started("--deny-all", "--listen", f"unix:{path}")
    assert where == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 403")
    stop(server)
    assert not path.exists()


def test_listener_auth_asks_for_a_password():
    server, where = started("--deny-all", "--listen", "127.0.0.1:0", "--listener-auth", "me=env:PW", env={"PW": "hush"})
    without = subprocess.run(["curl", "-sS", "-x", f"http://{where}", "https://a.example/"], capture_output=True, text=True)
    having = subprocess.run(
        ["curl", "-sS", "-x", f"http://me:hush@{where}", "https://a.example/"], capture_output=True, text=True
    )
    socks = subprocess.run(
        ["curl", "-sS", "-x", f"socks5h://me:hush@{where}", "https://a.example/"], capture_output=True, text=True
    )
    stop(server)
    assert "407" in without.stderr
    assert "403" in having.stderr
    assert socks.returncode == 97  # refused by ruleset


def test_a_busy_port_is_one_clear_sentence():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert f"127.0.0.1:{port}" in one_sentence(sbxproxy("serve", "--deny-all", "--listen", f"127.0.0.1:{port}"))


@pytest.mark.parametrize("where", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "example.com:80", "unix:/nowhere/at/all/sock"])
def test_a_listener_that_can_not_be_is_one_clear_sentence(where):
    assert "Error" in one_sentence(sbxproxy("serve", "--deny-all", "--listen", where))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--listener-auth", "me=plain"),
        ("--listener-auth", "me=env:SBX_NOT_SET"),
        ("--proxy-protocol", "10.0.0.1/8"),
        ("--proxy-protocol", "UNIX"),
    ],
)
def test_other_mistakes_are_one_clear_sentence_too(option, value):
    assert option in one_sentence(sbxproxy("serve", "--deny-all", "--listen", "127.0.0.1:0", option, value))


def test_env_out_needs_a_tcp_listener(tmp_path):
    text = one_sentence(sbxproxy("serve", "--deny-all", "--listen", f"unix:{tmp_path}/s", "--env-out", tmp_path / "env"))
    assert "Unix socket" in text


def test_the_env_file_has_lines_for_containers(tmp_path):
    server, where = started("--deny-all", "--listen", "127.0.0.1:0", "--env-out", tmp_path / "env")
    stop(server)
    lines = (tmp_path / "env").read_text().splitlines()
    assert f"HTTPS_PROXY=http://{where}" in lines
    assert all("=" in line and not line.startswith("export") for line in lines)


def test_the_secret_is_not_among_the_arguments(tmp_path):
    """Arguments can be read by every user of the machine."""
    secret = write(tmp_path / "token", "canary-in-a-file\n")
    server, _ = started(
        "--inject", "a.example:authorization: ${secret:x}", "--secret", f"x=file:{secret}", "--listen", "127.0.0.1:0"
    )
    with open(f"/proc/{server.pid}/cmdline") as arguments:
        assert "canary" not in arguments.read()
    stop(server)


def test_the_env_file_is_private_even_if_it_was_there_before(tmp_path):
    """It holds the listener's password."""
    path = write(tmp_path / "env", "")
    path.chmod(0o644)
    server, _ = started(
        "--deny-all",
        "--listen",
        "127.0.0.1:0",
        "--listener-auth",
        "user=env:SBX_PASSWORD",
        "--env-out",
        path,
        env={"SBX_PASSWORD": "canary"},
    )
    stop(server)
    assert "canary" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- workers


def children(server):
    with open(f"/proc/{server.pid}/task/{server.pid}/children") as listed:
        return list(map(int, listed.read().split()))


def ask(where):
    return subprocess.run(["curl", "-sS", "-x", f"http://{where}", "https://a.example/"], capture_output=True, text=True).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_serve_and_end_with_0_after_a_signal_to_their_supervisor(number):
    server, where = started("--deny-all", "--listen", "127.0.0.1:0", "--workers", "2")
    workers = children(server)
    assert len(workers) == 2
    assert all("response 403" in ask(where) for _ in range(6))
    server.send_signal(number)
    _, err = server.communicate(timeout=30)
    assert server.returncode == 0, err
    assert "worker" not in err
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_ctrl_c_in_a_terminal_drains_the_workers_instead_of_killing_them():
    """A terminal sends its signal to a whole process group."""
    server, where = started("--deny-all", "--listen", "127.0.0.1:0", "--workers", "2", start_new_session=True)
    assert "response 403" in ask(where)
    os.killpg(server.pid, signal.SIGINT)
    _, err = server.communicate(timeout=30)
    assert server.returncode == 0, err
    assert "worker" not in err


def test_workers_take_a_changed_policy_file(tmp_path):
    policy = write(tmp_path / "policy.json", '"deny-all"')
    events = tmp_path / "events"
    server, where = started("--policy", policy, "--listen", "127.0.0.1:0", "--workers", "2", "--events", events)
    write(policy, '{"allow": ["b.example"]}')
    server.send_signal(signal.SIGHUP)
    while "policy-changed" not in (events.read_text() if events.exists() else ""):
        assert server.poll() is None
        time.sleep(0.01)
    assert all("response 403" in ask(where) for _ in range(6))
    stop(server)
    reasons = {json.loads(line)["reason"] for line in events.read_text().splitlines() if "flow-closed" in line}
    assert reasons == {"domain-not-allowed"}


def test_workers_write_the_same_files_and_hide_the_same_secrets(tmp_path):
    arguments = ["--listener-auth", "me=env:PW", "--inject", "a.example:x: ${secret:x}", "--secret", "x=env:TOKEN"]
    server, where = started(
        "--listen", "127.0.0.1:0", "--workers", "2", "--env-out", tmp_path / "env", "--ca-out", tmp_path / "ca.pem", *arguments,
        env={"PW": "canary-password", "TOKEN": "canary-token"},
    )  # fmt: skip
    for pid in children(server):
        with open(f"/proc/{pid}/environ") as environment, open(f"/proc/{pid}/cmdline") as command:
            assert "canary" not in environment.read() + command.read()
    stop(server)
    assert f"HTTPS_PROXY=http://me:canary-password@{where}" in (tmp_path / "env").read_text()
    assert (tmp_path / "ca.pem").read_bytes().startswith(b"-----BEGIN")


@pytest.mark.parametrize(
    "where", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "example.com:80", "unix:/nowhere/at/all/sock", "::1:80"]
)
def test_a_listener_that_can_not_be_is_one_clear_sentence_with_workers_too(where):
    assert "Error" in one_sentence(sbxproxy("serve", "--deny-all", "--workers", "2", "--listen", where))
