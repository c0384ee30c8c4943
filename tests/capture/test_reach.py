"""Less trodden ways to the host, and to what guards the sandbox: as root and as an unprivileged user."""

import ctypes
import json
import os
import platform
import subprocess
import textwrap

import pytest

from support.captured import MODES, ROOT, as_user, confine

REACH = str(ROOT / "tests" / "support" / "reach.py")
REFUSED = {"EPERM", "EACCES"}
ABSENT = {"ENOENT", "ESRCH"}
NO_CALL = {"ENOSYS"}
NOT_DONE = {"refused", "ENOENT"}

EXPECTED = {
    **dict.fromkeys(["host_namespace", "pidfd_of_the_proxy", "slow_the_proxy_down"], ABSENT),
    "nsenter_host": {"False"},
    "nsenter_init": {"False"},
    **dict.fromkeys(["namespace_by_pidfd", "parent_of_the_network_namespace"], REFUSED),
    "kill_everything": {"signalled", "ESRCH"},  # nobody else is there
    "kill_init": {"alive"},
    **dict.fromkeys(
        ["init_descriptor", "init_memory_by_call", "init_compare", "init_root", "init_working_directory", "init_map_files"],
        REFUSED,
    ),
    "init_oom_score": REFUSED | {"written"},  # of a process that only its own sandbox depends on
    **dict.fromkeys(["loopback_down", "loopback_address", "loopback_name"], REFUSED),
    **dict.fromkeys(["add_route", "delete_route", "add_rule", "add_link", "add_qdisc", "flush_connections"], REFUSED),
    **dict.fromkeys(["add_security_association", "destroy_socket"], REFUSED | {"EPROTONOSUPPORT", "EOPNOTSUPP", "ENOENT"}),
    **dict.fromkeys(["list_rules", "delete_chain"], REFUSED),
    **dict.fromkeys(["transparent_socket", "marked_socket", "repaired_socket", "forced_buffer", "tun_device"], REFUSED),
    **dict.fromkeys(["nft_program", "nft_program_in_user_namespace", "way_out_in_own_namespaces"], NOT_DONE),
    **dict.fromkeys(["session_key", "add_key", "request_key"], NO_CALL),
    **dict.fromkeys(["shared_memory", "message_queue"], ABSENT | NO_CALL),
    "message_queue_by_path": {"ENOENT"},
    **dict.fromkeys(["load_program", "watch_everything", "open_by_handle", "kernel_memory"], REFUSED),
    **dict.fromkeys(["sysrq", "forwarding"], REFUSED | {"EROFS", "ENOENT"}),
    **dict.fromkeys(["host_name", "clock"], REFUSED),
    "set_user_id_program": {"1"},
}

# What the host has: a key in the caller's session keyring, shared memory, and a message queue that has a path.
PREPARED = textwrap.dedent("""
    import ctypes, json, os, platform, sys
    libc = ctypes.CDLL(None, use_errno=True)
    x86 = platform.machine() == "x86_64"
    def call(number, *arguments):
        return libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    call(250 if x86 else 219, 1, b"sbx-test")  # a session keyring of its own
    key = call(248 if x86 else 217, b"user", b"sbx-canary", b"canary", 6, -3)
    shared = call(29 if x86 else 194, int(sys.argv[1]), 4096, 0o1600)
    queue = call(240 if x86 else 180, sys.argv[2].encode(), os.O_RDWR | os.O_CREAT, 0o600, 0)
    print(json.dumps([key > 0, shared >= 0, queue >= 0]), file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "support.captured"])
""")

_RUNS = {}


@pytest.fixture(params=MODES)
def told(request, monkeypatch):
    mode = request.param
    if mode not in _RUNS:
        shared, queue = os.getpid() | 0x5B000000, f"sbx-test-{os.getpid()}-{mode}"
        prepared = []

        def prepare(argv, **options):
            """Run the driver as it is, but with these things there."""
            assert argv[-2:] == ["-m", "support.captured"]
            done = real([*argv[:-2], "-c", PREPARED, str(shared), queue], **options)
            prepared.extend(json.loads(done.stderr.splitlines()[0]))
            return done

        real = subprocess.run
        monkeypatch.setattr(
            subprocess, "run", lambda argv, **options: prepare(argv, **options) if "input" in options else real(argv, **options)
        )
        try:
            variables = {"SHARED_MEMORY": str(shared), "QUEUE": queue}
            _RUNS[mode] = confine(mode, [as_user(mode)[-1], REACH], environment=variables), prepared
        finally:
            remove(shared, queue)
    return _RUNS[mode]


def remove(shared, queue):
    libc = ctypes.CDLL(None, use_errno=True)
    x86 = platform.machine() == "x86_64"
    number = libc.syscall(ctypes.c_long(29 if x86 else 194), ctypes.c_long(shared), ctypes.c_long(0), ctypes.c_long(0))
    if number >= 0:
        libc.syscall(ctypes.c_long(31 if x86 else 195), ctypes.c_long(number), ctypes.c_long(0), None)
    libc.syscall(ctypes.c_long(241 if x86 else 181), queue.encode())


@pytest.mark.parametrize("attempt", EXPECTED)
def test_no_way_to_the_host(told, attempt):
    seen, _ = told
    assert seen.error == ""
    assert seen.code == 0
    assert json.loads(seen.output)[attempt] in EXPECTED[attempt]


def test_every_attempt_has_an_expectation(told):
    assert set(json.loads(told[0].output)) == set(EXPECTED)


def test_what_was_reached_for_was_there(told):
    """Else not to find it would prove nothing."""
    key, shared, _queue = told[1]
    assert key
    assert shared


def test_nothing_was_sent_for_it(told):
    seen, _ = told
    assert seen.connections == []
    assert seen.queries == []
    assert seen.facts["host_connections"] == 0


def test_who_takes_the_first_process_s_limits_ends_its_own_sandbox():
    """That is a process of the same user, so it may; and without it nothing runs."""
    code = "import resource, time; resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)); time.sleep(0.1)"
    seen = confine("unprivileged", [as_user("unprivileged")[-1], "-c", code])
    assert seen.code in {125, -1}
