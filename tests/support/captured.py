"""Confine programs as root and as an unprivileged user, and tell what they met.

The proxy's side is a program of its own here, run as the user in question: see ``main``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.programs import takes_root, unavailable

MODES = ("root", "unprivileged")
USER_MODES = (*MODES, "root --user")
"""Of the command, which root may run as another user."""

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]
ESCAPES = Path(__file__).with_name("escapes.py")


def as_user(mode: str) -> list[str]:
    """Return the beginning of a command line that runs Python as the user that *mode* stands for.

    Of "root --user" that is the proxy's user, root. The last item is an interpreter that the command's user can run.
    """
    if mode == "root --user":
        return [*as_user("root")[:-1], as_user("unprivileged")[-1]]
    if mode in {"root", "root over files"}:
        takes_root()
        return [sys.executable]
    if os.geteuid() != 0:
        return [sys.executable]
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        unavailable("setpriv is not installed")
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        # A virtual environment's interpreter may be a link into somebody's home.
        check = [
            *become,
            "sh",
            "-c",
            'exec "$0" -c "import sys, json; sys.exit(sys.version_info[:2] != tuple(json.loads(sys.argv[1])))" "$1"',
        ]
        version = json.dumps(sys.version_info[:2])
        if subprocess.run([*check, python, version], capture_output=True, cwd="/").returncode == 0:
            return [*become, python]
    unavailable("no interpreter of this version can be run by another user")


def environment() -> dict[str, str]:
    # The path goes along from one interpreter to the next, which may be another that has no packages of its own.
    ours = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), sysconfig.get_path("purelib")])
    path = os.environ.get("SBX_TEST_PATH", ours)
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONPATH": path,
        "SBX_TEST_PATH": path,
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass
class Seen:
    """What a run of a confined command came to."""

    code: int
    output: str
    connections: list[tuple[str, int]]
    queries: list[str]
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def confine(mode: str, argv: list[str], *, depth: int = 1, start: Sequence[str] = (), **options: Any) -> Seen:
    """Run *argv* confined in *mode*, in as many sandboxes as *depth* says; ``options`` are the innermost driver's.

    *start* is a command line that starts the driver, instead of Python itself.
    """
    if mode == "root over files" and depth == 1:
        options["over_files"] = True
    if mode == "root --user" and depth == 1:
        options["user"] = NOBODY
    if depth > 1:
        inner = [as_user(mode)[-1], "-m", "support.captured", json.dumps({"argv": argv, **options})]
        outer = confine(mode, inner, depth=depth - 1)
        assert outer.code == 0, (outer.error, outer.output)
        return _seen(outer.output)
    with tempfile.TemporaryDirectory(prefix="sbx-capture-") as directory:
        os.chmod(directory, 0o777)
        orders = json.dumps({"argv": argv, "scratch": directory, **options})
        done = subprocess.run(
            [*as_user(mode)[:-1], *(start or [*as_user(mode)[-1:], "-m", "support.captured"])],
            cwd=directory, env=environment(), capture_output=True, text=True, timeout=100, input=orders,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return _seen(done.stdout)


def _seen(output: str) -> Seen:
    told = json.loads(output)
    told["connections"] = [tuple(one) for one in told["connections"]]
    return Seen(**told)


def main() -> None:
    import trio

    orders = json.loads(sys.argv[1]) if len(sys.argv) > 1 else json.load(sys.stdin)
    if "scratch" not in orders:  # in a sandbox
        _be_process(400)
        orders["scratch"] = f"{os.environ['SCRATCH']}/inner"
        os.mkdir(orders["scratch"])
    print(json.dumps(trio.run(_drive, orders)))


def _be_process(number: int) -> None:
    """Go on as a process of that number or a higher one, which means nobody in a sandbox that has just begun."""
    while os.getpid() < number:
        child = os.fork()
        if child >= number:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        elif child:
            os.waitpid(child, 0)
        elif os.getpid() < number:
            os._exit(0)


async def _drive(orders: dict[str, Any]) -> dict[str, Any]:
    import trio

    from sbxproxy.capture import CaptureUnavailable, Plan, User, launch, original_destination
    from sbxproxy.errors import ClientProtocolError

    scratch = Path(orders["scratch"])
    connections: list[tuple[str, int]] = []
    queries: list[str] = []
    result: dict[str, Any] = {"code": -1, "output": "", "connections": connections, "queries": queries, "error": "", "facts": {}}

    async def serve(stream):
        try:
            address, port = original_destination(stream.socket)
        except ClientProtocolError:
            connections.append(("direct", 0))
            return
        connections.append((str(address), port))
        with trio.move_on_after(10):
            await stream.receive_some(4096)
            await stream.send_all(b"hello")
            await stream.aclose()

    async def answer(sock):
        while True:
            data, peer = await sock.recvfrom(4096)
            queries.append(data.decode(errors="replace"))
            await sock.sendto(b"answer to " + data, peer)

    # What the host has, and the command must not reach.
    host = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0sbx-test-{os.getpid()}")
    abstract.listen()
    masked = scratch / "masked"
    masked.mkdir()
    unix = []
    for path in (masked / "s", scratch / "single"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        unix.append(sock)
    (masked / "kept").write_text("kept")
    (scratch / "theirs").write_text("theirs")
    (scratch / "ours").write_text("ours")
    (scratch / "foreign").write_text("foreign")
    if os.geteuid() == 0 and os.stat("/").st_uid == 0:
        with contextlib.suppress(OSError):  # in a sandbox
            os.chown(scratch / "foreign", NOBODY, NOBODY)
    inherited = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(inherited, True)

    read, write = os.pipe()
    environ = {
        **environment(),
        "HOST_PORT": str(host.getsockname()[1]),
        "HOST_PID": str(os.getpid()),
        "ABSTRACT": f"sbx-test-{os.getpid()}",
        "SCRATCH": str(scratch),
        **orders.get("environment", {}),
    }
    directory = Path(orders.get("directory", scratch).replace("{scratch}", str(scratch)) if "directory" in orders else scratch)
    plan = Plan(
        argv=orders["argv"], environment=environ, directory=directory, stdout=write, stdin=os.open(os.devnull, os.O_RDONLY),
        masks=[masked, scratch / "single", scratch / "absent"], keep=[masked / "kept"], binds={scratch / "theirs": scratch / "ours"},
        over_files=orders.get("over_files", False),
        user=User(uid=orders["user"], gid=orders["user"], groups=[orders["user"] - 1]) if "user" in orders else None,
    )  # fmt: skip
    try:
        with trio.fail_after(80):
            async with await launch(plan) as confined, trio.open_nursery() as nursery:
                os.close(write)
                await nursery.start(trio.serve_listeners, serve, confined.listeners)
                for sock in confined.dns:
                    nursery.start_soon(answer, sock)
                if orders.get("go", True):
                    await confined.go()
                    for number in orders.get("signals", ()):
                        await trio.to_thread.run_sync(os.read, read, 1)
                        confined.signal(number)
                    result["code"] = await confined.wait()
                    result["facts"]["pid"] = confined.pid
                nursery.cancel_scope.cancel()
            result["output"] = await trio.to_thread.run_sync(lambda: open(read, "rb").read().decode(errors="replace"))
    except* CaptureUnavailable as group:
        result["error"] = str(group.exceptions[0])
    result["facts"]["host_connections"] = _pending(host)
    return result


def _pending(server: socket.socket) -> int:
    server.settimeout(0)
    try:
        server.accept()
    except BlockingIOError:
        return 0
    return 1


if __name__ == "__main__":
    main()
