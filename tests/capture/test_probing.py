"""The probe, and what it advises."""

import errno
import subprocess
import sys

import pytest
import trio

from sbxproxy.capture import CaptureUnavailable, Probe, probe
from sbxproxy.capture.unavailable import remedy
from support.captured import MODES, as_user, environment
from support.programs import require, takes_root


@pytest.mark.parametrize("mode", MODES)
def test_it_works_here(mode):
    code = "import trio; from sbxproxy.capture import probe; print(trio.run(probe).ok)"
    done = subprocess.run([*as_user(mode), "-c", code], env=environment(), cwd="/", capture_output=True, timeout=60)
    assert done.stdout == b"True\n", done.stderr


LIMITED = """
import subprocess, sys
open("/proc/sys/user/max_net_namespaces", "w").write("0")
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""


async def test_a_limit_of_the_kernel_is_named_with_its_remedy():
    """In a user namespace of its own the limit can be set without touching anybody else's."""
    code = "import trio; from sbxproxy.capture import probe; print(trio.run(probe))"
    argv = ["unshare", "-Ur", sys.executable, "-c", LIMITED, sys.executable, "-c", code]
    done = await trio.run_process(argv, env=environment(), capture_stdout=True, capture_stderr=True, check=False)
    assert b"No space left" in done.stdout, done.stderr
    assert b"max_net_namespaces" in done.stdout


async def test_a_root_that_can_not_map_itself_is_told_so():
    """Its user namespaces work up to there, so nothing that the machine forbids would be the reason."""
    takes_root()
    code = "import trio; from sbxproxy.capture import probe; print(trio.run(probe))"
    argv = [require("setpriv"), "--bounding-set=-all", "--inh-caps=-all", *as_user("root"), "-c", code]
    done = await trio.run_process(argv, env=environment(), capture_stdout=True, capture_stderr=True, check=False)
    assert b"mapping user 0" in done.stdout, done.stderr
    assert b"CAP_SETFCAP" in done.stdout
    assert b"sysctl" not in done.stdout


async def test_a_step_that_fails_is_told(monkeypatch):
    monkeypatch.setattr("sys.executable", "")
    found = await probe()
    assert (found.ok, found.step) == (False, "start")
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    assert await probe() == Probe(ok=False, step="start", reason="No such file or directory")


async def test_another_system_is_told(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Linux only" in (await probe()).reason


@pytest.mark.parametrize(
    ("step", "number", "part"),
    [
        ("user namespace", errno.ENOSPC, "max_user_namespaces"),
        ("user namespace", errno.EPERM, "unprivileged_userns_clone"),
        ("user namespace: mapping", errno.EPERM, "CAP_SYS_ADMIN"),
        ("user namespace: mapping user 0", errno.EPERM, "CAP_SETFCAP"),
        ("user namespace", errno.EINVAL, "kernel"),
        ("mounts", errno.EACCES, "AppArmor"),
        ("nf_tables", errno.EPERM, "CAP_NET_ADMIN"),
        ("nf_tables", errno.ENOENT, "nft_redir"),
        ("network namespace", errno.EPERM, "root"),
    ],
)
def test_remedies(step, number, part):
    assert part in remedy(step, number)
    assert part in str(CaptureUnavailable(step, "reason", number))


def test_no_remedy_is_made_up():
    assert remedy("network", errno.EIO) == ""
    assert str(CaptureUnavailable("network", "odd")) == "can't capture: network: odd"
