"""Sandboxes leave nothing behind: no process, namespace, mount, descriptor or file, however they end."""

import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from support.captured import MODES, NOBODY, as_user, environment
from support.leftovers import Census, Report
from support.programs import require
from support.sandboxed import command


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


def leftovers(argv, *options, prefix=()):
    done = subprocess.run(
        [*prefix, *argv, "-m", "support.leftovers", "--json", *options],
        capture_output=True, text=True, env=environment(), cwd="/", timeout=110, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "options",
    [("--runs", "20"), ("--runs", "16", "--at-once", "8"), ("--runs", "8", "--at-once", "8", "--how", "program")],
    ids=["one after another", "at once", "programs at once"],
)
def test_x9_many_sandboxes_leave_nothing(mode, options):
    assert leftovers(as_user(mode), *options)["left"] == {}


@pytest.mark.parametrize("root", [True, False], ids=["with capabilities", "without"])
def test_x9_the_kernel_has_no_more_namespaces_afterwards(root):
    """By its own count: in a user namespace that allows six of each kind twenty sandboxes fit, one after another."""
    kinds = ("net", "mnt", "pid", "ipc")
    limits = "".join(f"echo 6 > /proc/sys/user/max_{kind}_namespaces && " for kind in kinds)
    who = ["--map-root-user"] if root else ["--map-current-user", "--keep-caps"]
    python = as_user("unprivileged")
    drop = "" if root else f"setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all {require('env')} "
    argv = [*python[:-1], require("unshare"), "--user", *who, "sh", "-c", f'{limits}exec {drop}"$0" "$@"', python[-1]]
    assert leftovers(argv, "--runs", "20")["left"] == {}


def sleeps(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    except OSError:
        return False


def test_the_census_sees_what_is_left():
    """Else nothing left would prove nothing."""
    with tempfile.TemporaryDirectory() as directory:
        before = Census.take([Path(directory)], "SBX_MARK=here")
        child = subprocess.Popen(
            [require("unshare"), "--user", "--net", "sleep", "60"], env={**os.environ, "SBX_MARK": "here"}, stdin=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 30
            while not sleeps(child.pid):  # while it still becomes that, it may show no variables
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert os.readlink(f"/proc/{child.pid}/ns/net") != os.readlink("/proc/self/ns/net")
            Path(directory, "file").touch()
            after = Census.take([Path(directory)], "SBX_MARK=here")
        finally:
            child.kill()
            child.communicate()
    left = Report(1, 1, "library", 0, 0.0, before, after, 0).left
    assert left["children"] == left["processes"] == [child.pid]
    assert {name.split(":")[0] for name in left["namespaces"]} == {"net", "user"}
    assert left["files"] == [f"{directory}/file"]
    assert left["descriptors"] == 1


def tree(pid):
    """The process and all that descend from it."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("whom", ["program", "everything but the command"])
def test_x9_a_killed_program_leaves_nothing_running_and_no_file_for_long(mode, whom, open_path):
    places = {name: open_path / name for name in ("TMPDIR", "XDG_RUNTIME_DIR")}
    for place in places.values():
        place.mkdir(mode=0o700)
        if mode == "unprivileged" and os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
    env = {**environment(), **{name: str(place) for name, place in places.items()}}
    script = "trap '' TERM HUP INT; setsid sh -c 'trap \"\" TERM HUP; sleep 3600' & echo up; sleep 3600; sleep 3600"
    run = command(mode, "run", "--quiet", "--deny-all", "--")
    process = subprocess.Popen([*run, "sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env, cwd="/")
    try:
        assert process.stdout.readline() == b"up\n"
        deadline = time.monotonic() + 30
        while len(family := tree(process.pid)) < 7 or sum(map(sleeps, family)) < 2:
            assert time.monotonic() < deadline, family  # the program, two helpers, two shells and their sleeps
            time.sleep(0.02)
        if whom == "program":
            process.kill()
        else:
            for pid in family:
                with suppress(FileNotFoundError, ProcessLookupError):  # it went with one before it
                    if b"sbxproxy" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
        process.wait(30)
        deadline = time.monotonic() + 20
        while left := {pid for pid in family if is_running(pid)}:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if whom == "program":  # one that sees its helpers die first may still tidy up
        assert [path.name for path in places["TMPDIR"].iterdir()] != []
    assert subprocess.run([*run, "true"], env=env, cwd="/", stdin=subprocess.DEVNULL).returncode == 0
    assert list(places["TMPDIR"].iterdir()) == []
    # A command that ends at once is gone before anybody could ask for its policy, so its control socket isn't made, nor others removed.
    listed = subprocess.run(command(mode, "policy", "list"), env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True)
    assert listed.stdout == b""
    assert list(places["XDG_RUNTIME_DIR"].rglob("*")) in ([], [places["XDG_RUNTIME_DIR"] / "sbxproxy"])
