"""``sbxproxy run``: it ends as its command does, and its command holds no secret."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from support.program import PROGRAM, one_sentence, sbxproxy, start, write
from support.programs import require, takes_root

NOT_ROOT = ["--user=65534"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_commands(code):
    assert sbxproxy("run", "--deny-all", "--", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "INT"])
def test_a_command_ended_by_a_signal_gives_128_and_its_number(name):
    done = sbxproxy("run", "--deny-all", "--", "sh", "-c", f"kill -{name} $$")
    assert done.returncode == 128 + getattr(signal, f"SIG{name}")


def test_a_missing_command_is_127_and_one_not_executable_126(tmp_path):
    assert sbxproxy("run", "--deny-all", "--", "no-such-command-anywhere").returncode == 127
    assert sbxproxy("run", "--deny-all", "--", write(tmp_path / "plain", "x")).returncode == 126


def test_standard_streams_are_the_commands():
    done = sbxproxy("run", "--deny-all", "--", "sh", "-c", "cat; echo err >&2", input="in")
    assert (done.stdout, done.stderr) == ("in", "err\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals_reach_the_command(name):
    code = (
        f"import signal,sys,time; signal.signal(signal.{name}, lambda *_: sys.exit(42)); print('up', flush=True); time.sleep(30)"
    )
    child = start("run", "--deny-all", "--", sys.executable, "-c", code, start_new_session=True)
    assert child.stdout.readline() == "up\n"
    child.send_signal(getattr(signal, name))
    assert child.wait(timeout=20) == 42
    child.communicate()


def test_without_a_policy_nothing_runs(tmp_path):
    """A sandbox never runs without a policy."""
    mark = tmp_path / "ran"
    text = one_sentence(sbxproxy("run", "--", "touch", mark))
    assert "--policy FILE" in text
    assert not mark.exists()


BAD = [
    (["--policy", "{missing}"], "can't be read"),
    (["--policy", "{bad}"], 'allow["a.example"][0].transfrom'),
    (["--policy", "{notjson}"], "line 1"),
    (["--allow", "exa*mple"], "whole label"),
    (["--allow-all", "--deny-all"], "exclude each other"),
    (["--allow-cidr", "10.0.0.1/8"], "10.0.0.0/8"),
    (["--deny-all", "--secret", "x=plain-text-secret"], "never the value itself"),
    (["--deny-all", "--secret", "x=nosuch:kind"], "env:VARIABLE"),
    (["--inject", "a.example"], "HOST:Header: value"),
    (["--inject", "a.example:authorization: ${secret:x}"], "no source"),
    (["--inject", "a.example:authorization: ${secret:x}", "--secret", "x=env:SBX_NOT_SET"], "SBX_NOT_SET is not set"),
    (["--inject", "a.example:authorization: ${secret:x}", "--secret", "x=file:{missing}"], "can't read"),
    (["--inject", "a.example:authorization: ${secret:x}", "--secret", "x=cmd:false"], "ended with 1"),
    (["--deny-all", "--plugin", "no-such-plugin"], "installed:"),
    (["--deny-all", "--upstream-ca", "{missing}"], "missing"),
    (["--deny-all", "--resolve", "nonsense"], "HOST:ADDRESS"),
    (["--deny-all", "--private-network", "10.0.0.256/8"], "--private-network"),
    (["--deny-all", "--events", "/nowhere/at/all"], "--events"),
    (["--deny-all", "--config", "{badtoml}"], "not TOML"),
    (["--deny-all", "--config", "{unknown}"], "did you mean 'allow'"),
    (["--deny-all", "--quiet", "-v"], "exclude"),
    (["--deny-all", "--capture", "env", "--nss"], "--capture=namespaces"),
]


@pytest.mark.parametrize(("options", "said"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_one_clear_sentence_and_nothing_runs(options, said, tmp_path):
    write(tmp_path / "bad", '{"allow": {"a.example": [{"transfrom": []}]}}')
    write(tmp_path / "notjson", "{")
    write(tmp_path / "badtoml", "= 1")
    write(tmp_path / "unknown", 'alow = ["a.example"]')
    names = {name: str(tmp_path / name) for name in ("missing", "bad", "notjson", "badtoml", "unknown")}
    options = [
        names.get(text[1:-1], text) if text.startswith("{") else text.replace("{missing}", names["missing"]) for text in options
    ]
    mark = tmp_path / "ran"
    text = one_sentence(sbxproxy("run", *options, "--", "touch", mark))
    assert said in text
    assert "plain-text-secret" not in text
    assert not mark.exists()


PACKAGE = """
set -e
apt-get -q -o Debug::NoLocking=1 -o Dir::State::Lists="$PWD" -o Dir::Cache="$PWD" -o Dir::Etc::SourceList=/dev/null \\
  -o Dir::Etc::SourceParts=/dev/null update
touch mine; chown 1:2 mine; stat -c %u:%g mine
"""


@pytest.mark.parametrize(("options", "works"), [([], False), (["--root-files"], True)], ids=["without", "with"])
def test_package_managers_get_root_s_rights_over_files_only_if_asked(options, works, tmp_path):
    """apt becomes a user of its own, and packages have files of others."""
    takes_root()
    require("apt-get")
    done = sbxproxy("run", "--deny-all", *options, "--", "sh", "-c", PACKAGE, cwd=tmp_path)
    assert (done.returncode == 0, "1:2" in done.stdout) == (works, works), done.stderr


def test_who_is_not_root_has_no_rights_to_keep(tmp_path):
    mark = tmp_path / "ran"
    text = one_sentence(sbxproxy("run", "--deny-all", "--root-files", *NOT_ROOT, "--", "touch", mark))
    assert "only root" in text
    assert not mark.exists()


LIMITED = """
import subprocess, sys
open("/proc/sys/user/max_net_namespaces", "w").write("0")
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""


def test_where_nothing_can_be_captured_nothing_runs(tmp_path):
    """It says why in a few lines, and 125 is nobody else's exit code. The limit is set in a user namespace of its own."""
    mark = tmp_path / "ran"
    argv = [require("unshare"), "-Ur", sys.executable, "-c", LIMITED, *PROGRAM, "run", "--deny-all", "--", "touch", mark]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 125
    assert "max_net_namespaces" in one_sentence(done)
    assert not mark.exists()


@pytest.mark.parametrize("capture", ["namespaces", "env"])
def test_the_command_does_not_see_variables_that_hold_secrets(capture):
    done = sbxproxy(
        "run",
        "--capture",
        capture,
        "--inject",
        "a.example:authorization: Bearer ${secret:x}",
        "--secret",
        "x=env:HUSH",
        "--",
        "env",
        env={"HUSH": "canary-value", "https_proxy": "http://192.0.2.1:1", "SSH_AUTH_SOCK": "/tmp/agent"},
    )
    assert done.returncode == 0
    assert "canary-value" not in done.stdout + done.stderr
    assert ("HTTPS_PROXY=http://sandbox:" in done.stdout) is (capture == "env")
    assert ("SSH_AUTH_SOCK=" in done.stdout) is (capture == "env")
    assert "192.0.2.1" not in done.stdout
    assert "SSL_CERT_FILE=" in done.stdout


def test_the_trust_files_are_gone_afterwards():
    done = sbxproxy("run", "--deny-all", "--", "sh", "-c", 'test -s "$SSL_CERT_FILE" && echo "$SSL_CERT_FILE"')
    assert done.returncode == 0
    assert not os.path.exists(done.stdout.strip())


def test_a_certificate_database_is_seen_by_the_command_alone(tmp_path):
    """What the user's own home had there is as it was; where there was nothing, an empty place stays."""
    require("certutil")
    look = [
        "sh",
        "-c",
        'certutil -L -d "sql:$HOME/.pki/nssdb"; certutil -A -d "sql:$HOME/.pki/nssdb" -n x -t C,, -i "$SSL_CERT_FILE"',
    ]
    for _ in range(2):
        done = sbxproxy("run", "--deny-all", "--nss", "--quiet", "--", *look, env={"HOME": str(tmp_path)})
        assert "sbxproxy root 0" in done.stdout, done.stderr
        assert "read-only" in done.stderr
        assert list((tmp_path / ".pki" / "nssdb").iterdir()) == []


@pytest.mark.parametrize(("home", "said"), [("", "HOME"), ("/etc/passwd", "HOME")])
def test_a_certificate_database_takes_a_home(home, said):
    done = sbxproxy("run", "--deny-all", "--nss", "--", "echo", "ran", env={"HOME": home})
    assert done.returncode == 125
    assert said in one_sentence(done)
    assert done.stdout == ""


def test_where_certutil_is_absent_nothing_runs(tmp_path):
    done = sbxproxy("run", "--deny-all", "--nss", "--", "/bin/echo", "ran", env={"HOME": str(tmp_path), "PATH": "/nonexistent"})
    assert done.returncode == 125
    assert "libnss3-tools" in one_sentence(done)
    assert done.stdout == ""


@pytest.mark.parametrize("capture", ["namespaces", "env"])
def test_a_denial_says_what_why_and_what_would_allow_it(capture):
    """Where the name isn't even resolved, that is said of the look-up."""
    # Not -S: curl writes its message in pieces, and standard error is one for both.
    done = sbxproxy("run", "--capture", capture, "--allow", "good.example", "--", "curl", "-s", "https://bad.example/")
    if capture == "namespaces":
        event = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
        assert (event["event"], event["decision"], event["reason"], event["name"]) == (
            "dns",
            "deny",
            "domain-not-allowed",
            "bad.example",
        )
        assert event["remedy"] == '"allow": ["bad.example"]'
        return
    event = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
    assert (event["decision"], event["reason"], event["target"]) == ("deny", "domain-not-allowed", "bad.example:443")
    assert event["remedy"] == '"allow": ["bad.example"]'


def test_quiet_says_nothing():
    done = sbxproxy("run", "--quiet", "--deny-all", "--", "curl", "-s", "https://bad.example/")
    assert done.stderr == ""


def test_events_go_to_a_file(tmp_path):
    sbxproxy("run", "--quiet", "--deny-all", "--events", tmp_path / "log", "--", "curl", "-s", "https://bad.example/")
    kinds = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert set(kinds) == {"dns"}
    where = ("--resolve", "bad.example:1.1.1.1", "--capture=env", "--quiet", "--deny-all", "--events", tmp_path / "log")
    sbxproxy("run", *where, "--", "curl", "-s", "https://bad.example/")
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["event"] == "flow-closed"


def test_the_policy_may_come_from_standard_input():
    done = sbxproxy("run", "--policy", "-", "--", "sh", "-c", "echo ran", input='{"allow": ["a.example"]}')
    assert done.stdout == "ran\n"


def test_a_toml_file_gives_options_and_the_command_line_wins(tmp_path):
    config = write(tmp_path / "sbx.toml", 'allow = ["a.example"]\nquiet = true\n')
    done = sbxproxy("run", "--config", config, "--", "curl", "-sS", "https://b.example/")
    assert "Could not resolve host" in done.stderr
    assert '"event"' not in done.stderr
    done = sbxproxy("run", "--config", config, "--deny-all", "--events", "-", "--", "curl", "-s", "https://a.example/")
    assert json.loads(done.stdout.splitlines()[0])["reason"] == "deny-all"


def wait_for(path, text, child):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    pytest.fail(f"{text} did not come: {path.read_text() if path.exists() else 'no file'}")


@pytest.mark.parametrize("how", ["poll", "SIGHUP"])
def test_a_changed_policy_file_takes_effect_and_a_bad_one_does_not(how, tmp_path):
    """An update is validated whole; a bad one leaves the old policy in force."""
    policy, events, errors = write(tmp_path / "policy.json", '"allow-all"'), tmp_path / "events", tmp_path / "stderr"
    with errors.open("w") as stream:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from sbxproxy.cli import main; main()",
                "run",
                "--policy",
                policy,
                "--events",
                events,
                "--",
                "sh",
                "-c",
                "echo up; exec sleep 60",
            ],
            stdout=subprocess.PIPE,
            stderr=stream,
            stdin=subprocess.DEVNULL,
        )
    try:
        assert child.stdout.readline() == b"up\n"  # by then signals are minded
        for text, sign in (
            ('{"allow": ["a.example"]}', "user-defined"),
            ("{", "the old policy stays in force"),
            ('"deny-all"', "deny-all"),
        ):
            policy.write_text(text)
            if how == "SIGHUP":
                child.send_signal(signal.SIGHUP)
            wait_for(errors, sign, child)
        wait_for(events, '"mode":"deny-all"', child)  # written by a thread of its own, a moment later
    finally:
        child.terminate()
        assert child.wait(timeout=20) == 128 + signal.SIGTERM
        child.stdout.close()


def test_on_a_terminal_the_command_gets_ctrl_c(tmp_path):
    """The terminal's signals go to the command alone, which may handle them."""
    import pty

    code = "import signal,sys,time; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); print('up', flush=True); time.sleep(30)"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-c",
                "from sbxproxy.cli import main; main()",
                "run",
                "--deny-all",
                "--",
                sys.executable,
                "-c",
                code,
            ],
        )
    seen = b""
    while b"up" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 9
