"""Launching: nothing runs unserved, it ends as the command ends, and it leaves nothing."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sbxproxy.capture import CaptureUnavailable, Exited, Plan, Stopped, User, launch, starting
from sbxproxy.errors import ConfigurationError
from support.captured import MODES, NOBODY, as_user, confine, environment
from support.programs import takes_root, unavailable


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


@pytest.fixture
def python(mode):
    return as_user(mode)[-1]


@pytest.fixture
def here():
    """Tests that confine from this very process need what the process has."""
    from sbxproxy.capture import probe

    found = trio.run(probe)
    if not found.ok:
        unavailable(f"{found.step}: {found.reason}")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["true"], 0),
    ],
    ids=["exit", "term", "kill", "absent", "not-executable", "true"],
)
def test_it_ends_as_the_command_ends(mode, argv, code):
    assert confine(mode, argv).code == code


def test_without_go_nothing_is_executed(mode):
    """The proxy may fail between making the sandbox and serving it."""
    seen = confine(mode, ["sh", "-c", "echo executed"], go=False)
    assert (seen.code, seen.output) == (-1, "")


def test_signals_reach_the_command(mode, python):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(9)); print('x', end='', flush=True); time.sleep(60)"
    assert confine(mode, [python, "-c", code], signals=[15]).code == 9


def test_signals_have_their_default_effect_at_first(mode, python):
    """Python ignores SIGPIPE, and the helper all that may be meant for the group."""
    code = "import signal; print([s.name for s in map(signal.Signals, (1, 2, 3, 10, 12, 15, 20)) if signal.getsignal(s) == signal.SIG_IGN])"
    assert confine(mode, [python, "-c", code]).output == "[]\n"


def test_what_the_command_leaves_behind_ends_with_it(mode):
    seen = confine(mode, ["sh", "-c", "setsid sh -c 'sleep 1234567' >/dev/null 2>&1 & echo started"])
    assert seen.output == "started\n"
    assert "1234567" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_a_working_directory_under_a_mask_is_not_what_was_there(mode):
    """The process stands in it before it is masked; that must not be a way to what lies below."""
    seen = confine(mode, ["sh", "-c", "ls; pwd"], directory="{scratch}/masked")
    assert seen.output.splitlines()[:1] == ["kept"]


def test_an_absent_working_directory_executes_nothing(mode):
    seen = confine(mode, ["sh", "-c", "echo executed"], directory="/nonexistent")
    assert seen.output == ""
    assert "working directory" in seen.error


def test_a_large_environment_fits(mode):
    seen = confine(mode, ["sh", "-c", "echo ${#LARGE}"], environment={"LARGE": "x" * 100_000, "MORE": "y" * 100_000})
    assert seen.output == "100000\n"


@pytest.mark.parametrize("depth", [2, 3])
def test_a_sandbox_in_a_sandbox(mode, depth):
    """User 0 can make a user namespace for it, though it has no other power."""
    seen = confine(mode, ["sh", "-c", "id -u; id -g; echo inner"], depth=depth)
    user = "0" if mode == "root" else str(os.geteuid() or NOBODY)
    assert (seen.code, seen.output.split()) == (0, [user, user, "inner"])


def test_when_the_proxy_is_killed_the_sandbox_is_gone(mode):
    code = (
        "import os, sys, trio\nfrom pathlib import Path\nfrom sbxproxy.capture import Plan, launch\n"
        "async def main():\n"
        "    confined = await launch(Plan(argv=['sleep', '7654321'], environment=os.environ, directory=Path('/')))\n"
        "    await confined.go()\n"
        "    print(confined.pid, flush=True)\n"
        "    await trio.sleep_forever()\n"
        "trio.run(main)"
    )
    proxy = subprocess.Popen([*as_user(mode), "-c", code], env=environment(), stdout=subprocess.PIPE, cwd="/")
    pid = int(proxy.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    proxy.kill()
    proxy.wait()
    proxy.stdout.close()
    with _patience():
        while Path(f"/proc/{pid}").exists():
            os.sched_yield()


class _patience:  # noqa: N801
    def __enter__(self):
        signal.alarm(30)

    def __exit__(self, *_):
        signal.alarm(0)


def plan(*argv, **options):
    return Plan(argv=argv, environment={"PATH": os.environ["PATH"]}, **options)


async def test_nothing_is_left_after_many_runs(here):
    async def once():
        async with await launch(plan("true")) as confined:
            helper = confined._helper.process.pid
            await confined.go()
            assert await confined.wait() == 0
        return helper

    await once()
    descriptors = os.listdir("/proc/self/fd")
    mounts = Path("/proc/self/mountinfo").read_text()
    helpers = [await once() for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]


async def test_closing_ends_a_running_command(here):
    confined = await launch(plan("sleep", "60"))
    await confined.go()
    pid = confined.pid
    assert Path(f"/proc/{pid}").exists()
    await confined.aclose()
    await confined.aclose()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(trio.ClosedResourceError):
        confined.signal(15)


async def test_a_killed_helper_takes_the_sandbox_along(here):
    async with await launch(plan("sleep", "60")) as confined:
        await confined.go()
        confined._helper.process.kill()
        with trio.fail_after(30):
            assert await confined.wait() == 137
            while Path(f"/proc/{confined.pid}").exists():
                await trio.sleep(0.01)


async def test_stopping_is_told_and_it_can_be_continued(here):
    async with await launch(plan("sh", "-c", "kill -STOP $$; exit 4")) as confined:
        await confined.go()
        with trio.fail_after(30):
            assert await confined.next_change() == Stopped(signal.SIGSTOP)
            confined.resume()
            assert await confined.next_change() == Exited(4)
            assert await confined.next_change() == Exited(4)
        assert repr(confined) == "<Confined exited 4>"


async def test_cancelled_while_it_is_made_nothing_stays(here):
    with trio.move_on_after(0.02) as scope:
        async with await launch(plan("sleep", "60")):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_step_that_fails_names_itself(here):
    with pytest.raises(CaptureUnavailable, match="mounts: No such file"):
        await launch(plan("true", binds={Path("/etc/hosts"): Path("/nonexistent")}))


async def test_root_can_run_it_as_somebody_else(root, here):
    read, write = os.pipe()
    who = plan(
        "sh",
        "-c",
        "id -u; id -g; grep CapEff /proc/self/status",
        user=User(uid=65534, gid=65534),
        directory=Path("/"),
        stdout=write,
    )
    async with await launch(who) as confined:
        os.close(write)
        await confined.go()
        assert await confined.wait() == 0
    with open(read) as file:
        assert file.read().split() == ["65534", "65534", "CapEff:", "0000000000000000"]


@pytest.mark.parametrize(("uid", "groups"), [(1, ["2", "3", "4"]), (0, ["2", "65534"])], ids=["another", "root"])
async def test_groups_of_the_user_that_root_chose(root, here, uid, groups):
    """They decide on files in any case; user 0 sees but one of them by its number."""
    read, write = os.pipe()
    account = User(uid=uid, gid=2, groups=[3, 4])
    async with await launch(
        plan("sh", "-c", "id -u; id -G; stat -c %u /", user=account, directory=Path("/"), stdout=write)
    ) as confined:
        os.close(write)
        await confined.go()
        assert await confined.wait() == 0
    with open(read) as file:
        assert file.read().split() == [str(uid), *groups, "0"]


def test_in_a_user_namespace_made_before(mode):
    """A container's root may not choose groups, and has but some users."""
    argv = ["unshare", "--map-root-user", *as_user(mode)[-1:], "-m", "support.captured"]
    seen = confine(mode, ["sh", "-c", "id -u; cat /proc/self/uid_map"], start=argv)
    assert (seen.code, seen.output.split()) == (0, ["0", "0", "0", "1"])


NO_MORE_USER_NAMESPACES = """
import os, sys
open("/proc/sys/user/max_user_namespaces", "w").write("0")
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_root_needs_no_user_namespace(mode):
    """Where none is to be had the command has no capability at all, and makes no sandbox of its own."""
    python = as_user(mode)[-1]
    start = ["unshare", "--map-root-user", python, "-c", NO_MORE_USER_NAMESPACES, python, "-m", "support.captured"]
    seen = confine(mode, ["grep", "CapEff", "/proc/self/status"], start=start)
    assert (seen.code, seen.output.split()) == (0, ["CapEff:", "0" * 16])


def test_only_root_keeps_rights_over_files(monkeypatch):
    with pytest.raises(ConfigurationError, match="only root"):
        plan("true", over_files=True, user=User(uid=1, gid=1))
    monkeypatch.setattr("os.geteuid", lambda: 1)
    with pytest.raises(ConfigurationError, match="only root"):
        plan("true", over_files=True)


async def test_rights_over_files_are_not_kept_where_they_would_be_more(here, monkeypatch, tmp_path):
    """In a user namespace that the sandbox's own ones belong to they could be rights over those."""
    takes_root()
    executable = tmp_path / "python"
    executable.write_text(f'#!/bin/sh\nexec unshare -Ur setpriv --bounding-set=-setgid {sys.executable} "$@"\n')
    executable.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(executable))
    with pytest.raises(CaptureUnavailable, match="rights over files"):
        await launch(plan("true", over_files=True))


def test_there_must_be_a_command():
    with pytest.raises(ConfigurationError, match="no command"):
        plan()


async def test_any_kind_of_string_will_do(here):
    class Text(str):
        __slots__ = ()

    read, write = os.pipe()
    given = Plan(argv=[Text("sh"), "-c", Text("echo $A")], environment={Text("A"): Text("caf\u00e9 \udcff")}, stdout=write)
    async with await launch(given) as confined:
        os.close(write)
        await confined.go()
        assert await confined.wait() == 0
    with open(read, "rb") as file:
        assert file.read() == "caf\u00e9 ".encode() + b"\xff\n"


def test_the_environment_is_not_shown():
    """It may hold credentials."""
    assert "canary" not in repr(Plan(argv=["x"], environment={"A": "canary"}))


def test_the_helper_loads_nothing_but_itself_and_what_is_quick():
    """The command waits for it, and it must not depend on what else is installed."""
    code = starting._CODE.replace("main()\n", "print(sorted(sys.modules))\n")
    source = str(Path(starting.__file__).parents[2])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, source], capture_output=True, text=True)
    loaded = set(ast.literal_eval(done.stdout))
    ours = {name for name in loaded if name.partition(".")[0] == "sbxproxy"}
    assert "sbxproxy.capture.inside.init" in ours
    assert {name for name in ours if not name.startswith("sbxproxy.capture.inside")} == {"sbxproxy", "sbxproxy.capture"}
    assert {name for name in loaded - ours if name.partition(".")[0] not in sys.stdlib_module_names} <= {"__main__"}
    assert loaded.isdisjoint({"collections", "contextlib", "enum", "json", "re", "signal", "socket", "typing"})


async def test_what_fails_late_is_told_although_the_user_can_read_nothing(here, tmp_path):
    """No module can be loaded any more then: interpreters are at home in places that are closed to others."""
    takes_root()
    who = plan("true", user=User(uid=65534, gid=65534), directory=tmp_path)
    with pytest.raises(CaptureUnavailable, match="working directory: Permission denied"):
        await launch(who)
