"""What a confined program tries, and what it meets: as root and as an unprivileged user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.captured import ESCAPES, NOBODY, USER_MODES, as_user, confine
from support.programs import takes_root, unavailable

REFUSED = {"EPERM", "EACCES"}

EXPECTED = {
    # Families of sockets that know no network namespace, or that no program here needs.
    **{
        key: {"EAFNOSUPPORT"}
        for key in [f"family_{name}" for name in "vsock packet alg bluetooth tipc can key xdp rds smc vsock_pair".split()]
    },
    "raw_icmp": REFUSED,
    "raw_icmp6": REFUSED,
    "icmp_datagram": REFUSED,
    # At once, so that programs fall back.
    **{key: {"EPERM"} for key in "udp_quic udp_ntp6 udp_metadata udp_multicast udp_multicast6 udp_broadcast udplite".split()},
    # Captured, whatever they asked for.
    **{key: {"hello"} for key in "tcp4 tcp6 tcp_metadata tcp_dns tcp_dns_loopback mptcp tcp_fast_open".split()},
    **{key: {"answer to q"} for key in "dns4 dns4_connected dns6 dns_loopback".split()},
    "tcp_host_loopback": {"ECONNREFUSED"},
    "tcp_proxy_port": {"ECONNREFUSED"},
    "own_server_on_loopback": {"own"},
    # The namespaces themselves.
    "setns_of_init": REFUSED,
    "setns_of_self": REFUSED,
    "unshare_network": REFUSED,
    "mount_tmpfs": REFUSED,
    "unmount_mask": REFUSED,
    "unmount_mask_in_user_namespace": REFUSED | {"EINVAL"},
    "flush_rules": REFUSED,
    "flush_rules_in_user_namespace": REFUSED,
    "nested_network": {"ENETUNREACH", *REFUSED},
    # Other processes.
    "ptrace_init": REFUSED,
    "ptrace_proxy": {"ESRCH"},
    "kill_proxy": {"ESRCH"},
    "proxy_environment": {"ENOENT"},
    "init_environment": REFUSED,
    "init_memory": REFUSED,
    "init_descriptors": REFUSED,
    "foreign_processes": {"0"},
    # Sockets and files of the host.
    "abstract_socket": {"ECONNREFUSED"},
    "masked_directory": {"ENOENT"},
    "masked_socket": {"ECONNREFUSED", *REFUSED},
    "kept_in_mask": {"kept"},
    "bound_file": {"ours"},
    "write_bound_file": {"EROFS"},
    "inherited_descriptors": {"0,1,2"},
    # Around the filter of system calls.
    "io_uring": {"ENOSYS"},
    "x32": {"ENOSYS"},
    "int_0x80": {"ENOSYS"},
    "type_into_terminal": {"EPERM"},
    # The running kernel.
    "core_pattern": {"EROFS", "EACCES"},
    "core_pattern_in_fresh_proc": {"EROFS", *REFUSED},
    "uevent_helper": {"EROFS", "EACCES"},
    "control_groups": {"none"},
    "control_groups_afresh": {"ENOSPC", *REFUSED},
    "control_groups_afresh_by_nobody": {"ENOSPC", *REFUSED},
    # Other users.
    "file_capabilities_for_others": REFUSED,
    "another_user": REFUSED | {"EINVAL"},
    "another_user_in_user_namespace": REFUSED,
    "give_away": REFUSED | {"EINVAL"},
    "capabilities": {",".join(["0" * 16] * 5 + ["1"])},
}
ROOT = {
    # What it takes to make user namespaces of its own, and where it counts for root's own files only.
    "capabilities": {",".join(["0" * 16, *["0000000080000000"] * 3, "0" * 16, "1"])},
}
OVER_FILES = {
    "capabilities": {",".join(["0" * 16, *["00000000800000fb"] * 3, "0" * 16, "1"])},
    "file_capabilities_for_others": {"set"},
    "another_user": {"changed"},
    "give_away": {"given"},
}
IN_A_SANDBOX_OF_ROOT = {
    # The kernel mounts no other /proc than that of the outer sandbox, which shows who else is in there, the inner proxy among them.
    "proxy_environment": REFUSED,
    "foreign_processes": {str(number) for number in range(20)},
}


@pytest.fixture(
    params=[(mode, depth) for mode in (*USER_MODES, "root over files") for depth in (1, 2)],
    ids=lambda kind: f"{kind[0]}-{kind[1]}",
    scope="module",
)
def run(request):
    """All attempts in one sandbox of each kind, and in one in a sandbox; what they met, and what they should."""
    mode, depth = request.param
    expected = dict(EXPECTED)
    if mode in {"root", "root over files"}:
        expected |= ROOT
    if mode == "root over files" and depth == 1:
        expected |= OVER_FILES
    if mode.startswith("root") and depth > 1:
        expected |= IN_A_SANDBOX_OF_ROOT
    if mode == "root" and depth > 1:
        expected["file_capabilities_for_others"] = {"set"}  # in there the file can't be made another's
    return confine(mode, [interpreter(mode), str(ESCAPES)], depth=depth), expected


def interpreter(mode):
    return as_user(mode)[-1]


@pytest.mark.parametrize("attempt", EXPECTED)
def test_no_way_out(run, attempt):
    seen, expected = run
    assert seen.error == ""
    told = json.loads(seen.output)
    assert told[attempt] in expected[attempt]


def test_every_attempt_has_an_expectation(run):
    assert set(json.loads(run[0].output)) == set(EXPECTED)


def test_what_was_captured_came_with_its_destination(run):
    """And nothing else arrived: in particular nothing at the host's own server."""
    expected = {
        ("203.0.113.4", 443), ("2001:db8::6", 8443), ("169.254.169.254", 80), ("8.8.8.8", 53), ("127.0.0.53", 53),
        ("203.0.113.62", 443), ("203.0.113.63", 443),
    }  # fmt: skip
    seen, _ = run
    assert set(seen.connections) in (expected, expected - {("203.0.113.62", 443)})
    assert seen.queries == ["q"] * 4
    assert seen.facts["host_connections"] == 0


def test_the_sandbox_interpreter_is_the_one_meant(run):
    assert run[0].code == 0
    assert sys.executable


def test_control_groups_given_to_the_user_are_read_only():
    """A desktop's users own groups, of programs outside too; ``cgroup.kill`` knows no process namespaces."""
    takes_root()
    mounted = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tops = [top for _, top, kind, *_ in mounted if kind == "cgroup2" and os.access(top, os.W_OK)]
    if not tops:
        unavailable("there is no cgroup2 here that can be written")
    group = Path(tops[0], f"sbxproxy-test-{os.getpid()}")
    group.mkdir()
    try:
        os.chown(group / "cgroup.procs", NOBODY, NOBODY)
        free = subprocess.run([*as_user("unprivileged"), "-c", f"open('{group}/cgroup.procs', 'w')"], check=False, cwd="/")
        seen = confine("unprivileged", ["sh", "-c", f"(: > {group}/cgroup.procs) 2>&1"])
    finally:
        group.rmdir()
    assert free.returncode == 0
    assert "Read-only" in seen.output
