"""The control socket: another terminal asks a running sandbox for its policy, or gives it another one.

One request and one answer a connection, each a line of JSON. The socket has mode 0600 and stands in a directory of mode 0700 that is
the user's own; the kernel tells who connects. Programs in the sandbox don't see the directory.
"""

from __future__ import annotations

__all__ = ["ControlError", "ask", "find", "running", "serve_control"]

import errno
import fcntl
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from sbxproxy.errors import ConfigurationError, PolicyError, SbxproxyError
from sbxproxy.net.listen import open_unix_listener
from sbxproxy.policy.model import Policy

if TYPE_CHECKING:
    from sbxproxy.sandbox import Sandbox

PATIENCE = 10.0
"""Seconds that one request may take, both ways."""

PAUSE = 0.005
"""Seconds between two looks whether the directory can be locked."""

MOST = 64 * 1024 * 1024
"""Bytes of a request: a policy with 100,000 domains and rules has some 20 million."""

_CREDENTIALS = struct.Struct("3i")


class ControlError(SbxproxyError):
    """The running sandbox refused, or there is none; the message says why."""


def _path(directory: Path, name: str) -> Path:
    return directory / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:64]}.sock"


async def serve_control(
    sandbox: Sandbox,
    directory: Path,
    *,
    say: Callable[[str], None],
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests about *sandbox* until cancelled.

    A second sandbox of the same name gets its process id behind the name.

    Args:
        sandbox: which.
        directory: see ``sbxproxy.cli.runtime``.
        say: told when the policy was changed this way.
        task_status: started once requests are answered.

    Raises:
        ConfigurationError: the socket can't be made.
    """
    with _open_directory(directory) as descriptor:
        with trio.move_on_after(PATIENCE):
            while not _lock(descriptor):  # noqa: ASYNC110 - others hold it for a moment
                await trio.sleep(PAUSE)
        _remove_stale(directory, descriptor)
        try:
            listener = open_unix_listener(_path(directory, sandbox.name))
        except ConfigurationError:
            listener = open_unix_listener(_path(directory, f"{sandbox.name}-{os.getpid()}"))
    await trio.serve_listeners(partial(_serve, sandbox, say), [listener], task_status=task_status)


# A socket refuses connections between bind(2) and listen(2) as it does when its process is gone, so whoever makes or removes one
# holds a lock (flock(2)) on the directory.


@contextmanager
def _open_directory(directory: Path) -> Iterator[int]:
    """Open it for locking; closing unlocks.

    Raises:
        ConfigurationError: it can't be opened.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"control socket: can't open {directory}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _remove_stale(directory: Path, descriptor: int) -> None:
    """Remove the sockets of processes that are gone, if the directory can be locked."""
    if not _lock(descriptor):
        return
    for path in directory.glob("*.sock"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # noqa: FBT003 - positional only
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()


async def _serve(sandbox: Sandbox, say: Callable[[str], None], stream: trio.SocketStream) -> None:
    async with stream:
        with trio.move_on_after(PATIENCE):
            try:
                answer = await _answer(sandbox, say, stream)
                await stream.send_all(json.dumps(answer).encode() + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


async def _answer(sandbox: Sandbox, say: Callable[[str], None], stream: trio.SocketStream) -> dict[str, Any]:
    peer = _CREDENTIALS.unpack(stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if peer[1] not in {os.geteuid(), 0}:
        return {"error": "this sandbox is another user's"}
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = await stream.receive_some()
        if not chunk or len(data) + len(chunk) > MOST:
            return {"error": "the request is cut short, or too long"}
        data += chunk
    try:
        request = json.loads(data)
        match request:
            case {"do": "show"}:
                return {"mode": sandbox.policy.mode.value, "policy": sandbox.policy.document(), "flows": len(sandbox.flows)}
            case {"do": "lint"}:
                from sbxproxy.policy.lint import lint  # few ask for it

                return {"findings": [finding.as_dict() for finding in lint(sandbox.policy)]}
            case {"do": "set", "policy": str(text)}:
                policy = await trio.to_thread.run_sync(Policy.from_json, text)
                changed = await sandbox.update_policy(policy)
                say(f"policy set by process {peer[0]}: {changed.mode}, {len(changed.cut)} flows cut, {changed.kept} kept")
                return {"mode": changed.mode, "cut": len(changed.cut), "kept": changed.kept}
            case _:
                return {"error": "not a request that is known"}
    except PolicyError as error:
        return {"error": "\n".join(map(str, error.problems))}
    except ValueError:
        return {"error": "the request is no JSON"}
    except RuntimeError:
        return {"error": "the sandbox is closed"}


# -- the other end


def running(directory: Path) -> list[str]:
    """Return the names that ``find`` knows, in order."""
    with _open_directory(directory) as descriptor:
        _remove_stale(directory, descriptor)
    return sorted(path.stem for path in directory.glob("*.sock"))


def find(directory: Path, name: str) -> Path:
    """Return the socket of the running sandbox *name*.

    Raises:
        ControlError: there is none.
    """
    path = _path(directory, name)
    if not path.exists():
        known = ", ".join(running(directory)) or "none"
        raise ControlError(f"no sandbox named {name!r} is running; running: {known}")
    return path


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request, and return the answer.

    Raises:
        ControlError: nobody answers, or the answer is an error.
    """
    try:
        try:
            data = _exchange(path, request)
        except ConnectionRefusedError:
            _settle(path.parent)
            if not path.exists():
                raise ControlError(f"{path.stem} is no longer running") from None
            data = _exchange(path, request)
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or 'no answer in time'}") from None
    try:
        answer = json.loads(data)
    except ValueError:
        raise ControlError(f"{path}: no answer") from None
    if not isinstance(answer, dict):
        raise ControlError(f"{path}: no answer")
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer


def _exchange(path: Path, request: dict[str, Any]) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        sock.sendall(json.dumps(request).encode() + b"\n")
        data = bytearray()
        while chunk := sock.recv(65536):
            data += chunk
        return bytes(data)


def _settle(directory: Path) -> None:
    """Wait for the socket that is just being made, and remove those of processes that are gone: what is left then answers."""
    deadline = time.monotonic() + PATIENCE
    with _open_directory(directory) as descriptor:
        while not _lock(descriptor) and time.monotonic() < deadline:
            time.sleep(PAUSE)
        _remove_stale(directory, descriptor)
