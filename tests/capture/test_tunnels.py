"""Real programs that tunnel through DNS, against the name server of their own that they need outside."""

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

from support.captured import MODES, as_user
from support.outer import RESOLVER, open_outer
from support.programs import unavailable

DOMAIN = "t.tunnel.example"
CLOSED = {
    "deny-all": "deny-all",
    "another domain": {"allow": ["good.example", "*.other.example"]},
    "a range beside domains": {"allow": ["good.example"], "subnets": {"allow": ["9.0.0.0/8"]}},
}
"""The last allows the very server that is asked: still, of names only what is listed is looked up."""


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


@pytest.fixture
def outer(root):
    """It takes root to start servers on privileged ports of another namespace."""
    with open_outer() as found:
        yield found


def program(name):
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        unavailable(f"{name} is not installed")
    return path


@contextmanager
def server(outer, *argv):
    process = subprocess.Popen(
        outer.internet(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for _ in range(600):
            listening = subprocess.run(outer.internet(["cat", "/proc/net/udp"]), capture_output=True, text=True).stdout
            if ":0035 " in listening:
                break
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        else:
            pytest.fail("it does not listen")
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def dns2tcp(outer, tmp_path):
    """One resource at the other end; the client lists it once it has a session."""
    client = program("dns2tcpc")
    settings = {
        "listen": RESOLVER, "port": 53, "user": "nobody", "chroot": "/var/empty" if os.path.isdir("/var/empty") else "/tmp",
        "domain": DOMAIN, "resources": "treasure:127.0.0.1:7777",
    }  # fmt: skip
    config = tmp_path / "dns2tcpd.conf"
    config.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    with server(outer, program("dns2tcpd"), "-F", "-f", str(config)):
        yield lambda kind: ["timeout", "15", client, "-z", DOMAIN, "-T", kind, RESOLVER]


def through_run(outer, mode, policy, argv):
    command = outer.command(mode, "run", "--quiet", "--policy", "-", "--", *argv)
    from support.captured import environment

    done = subprocess.run(
        command, input=json.dumps(policy), capture_output=True, text=True, timeout=90, env=environment(), cwd="/"
    )
    return done.stdout + done.stderr


def test_dns2tcp_gets_a_session_where_nothing_holds_it(outer, mode, dns2tcp):
    done = subprocess.run(outer.inside(dns2tcp("TXT")), capture_output=True, text=True, timeout=60)
    assert "treasure" in done.stdout + done.stderr


def test_dns2tcp_reaches_its_server_where_anything_may_be_looked_up(outer, mode, dns2tcp):
    """So what fails below fails for the policy. Both ends of it are its server's words: queries go on in lower case, its encoding
    needs both, and what it draws by lot gets over that or doesn't.
    """
    outer.packets()
    output = through_run(outer, mode, "allow-all", dns2tcp("TXT"))
    assert "Authentication Failed" in output or "treasure" in output
    assert outer.packets() != []


@pytest.mark.parametrize("kind", ["TXT", "KEY"])
@pytest.mark.parametrize("policy", CLOSED)
def test_r1_dns2tcp_gets_no_session(outer, mode, dns2tcp, policy, kind):
    outer.packets()
    output = through_run(outer, mode, CLOSED[policy], dns2tcp(kind))
    assert "treasure" not in output
    assert outer.packets() == []


@pytest.fixture
def iodine(outer):
    """The client makes an interface, so it is run with all privileges in a namespace that is captured from outside."""
    if not os.path.exists("/dev/net/tun"):
        unavailable("this kernel has no tun devices")
    client = program("iodine")
    with server(outer, program("iodined"), "-f", "-c", "-P", "open-sesame", "-l", RESOLVER, "10.77.0.1/24", DOMAIN):
        yield lambda *options: [client, "-f", "-P", "open-sesame", *options, RESOLVER, DOMAIN]


def through_capture(outer, mode, policy, argv, patience):
    orders = {"policy": policy, "argv": argv, "patience": patience, "until": "Connection setup complete"}
    done = outer.plain(mode, "-m", "support.attached", input=json.dumps(orders), stdin=None)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_iodine_gets_a_session_where_it_may_look_up_anything(outer, mode, iodine):
    """Open DNS is open; what fails below fails for the policy."""
    told = through_capture(outer, mode, "allow-all", iodine("-r"), 60)
    assert "Connection setup complete" in told["output"]


@pytest.mark.parametrize("policy", CLOSED)
def test_r1_iodine_gets_no_session(outer, mode, iodine, policy):
    outer.packets()
    told = through_capture(outer, mode, CLOSED[policy], iodine(), 60)
    assert "setup complete" not in told["output"]
    assert told["answered"]
    assert {line.split()[1] for line in told["answered"]} == {"deny"}
    assert outer.packets() == []
    assert told["patient"], told["output"]


def test_r1_nor_with_types_of_record_that_it_is_told_to_use(outer, mode, iodine):
    for kind in ("NULL", "PRIVATE", "TXT", "SRV", "MX", "CNAME", "A"):
        outer.packets()
        told = through_capture(outer, mode, CLOSED["another domain"], iodine("-T", kind, "-r"), 12)
        assert "setup complete" not in told["output"]
        assert {line.split()[1] for line in told["answered"]} == {"deny"}
        assert outer.packets() == []
