"""Where the program begins: ``main`` takes its orders from a file, and carries them out step by step.

The order matters. The command's process is made last, when nothing is left that it could use or that could fail: mounts, network,
listeners, user, capabilities. Only then are the listeners handed over, and only on the proxy's word is the command executed.
"""

from __future__ import annotations

__all__ = ["main"]

import _signal as signal  # type: ignore[import-not-found]
import errno
import marshal
import os
import select
import sys

from sbxproxy.capture.inside.control import FAILURE, Control
from sbxproxy.capture.inside.init import KILLED, Command, exit_code, run_command
from sbxproxy.capture.inside.mounts import arrange, fresh_proc, protect_kernel
from sbxproxy.capture.inside.namespaces import enter_network, forbid_cgroup_namespaces, leave_host
from sbxproxy.capture.inside.network import capture_gateway, capture_here
from sbxproxy.capture.inside.privileges import NESTING, OVER_FILES, Account, OwnNamespace, give_up
from sbxproxy.capture.inside.seccomp import machine_filter
from sbxproxy.capture.inside.steps import StepError, passing_over, step
from sbxproxy.capture.inside.syscalls import die_with_parent, forbid_new_privileges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Orders = dict[str, Any]

_FOR_THE_PROXY = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that may be meant for the whole process group; what the command gets of them is the proxy's decision."""


def main() -> NoReturn:
    """Do what the orders say: descriptors of the control socket and of the orders are the program's arguments."""
    code = FAILURE
    control = None
    try:
        control = Control(int(sys.argv[1]))
        die_with_parent(signal.SIGKILL)
        with open(int(sys.argv[2]), "rb") as file:
            file.seek(0)
            orders: Orders = marshal.load(file)  # noqa: S302 - from the proxy, which runs by the same interpreter
        if orders["do"] == "run":
            code = _confine(control, orders)
        else:
            _attach(control, orders)
            code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the proxy must hear of it
        if control is not None:
            control.failed(error)
    finally:
        os._exit(code)


def _attach(control: Control, orders: Orders) -> None:
    enter_network(orders["namespace"])
    interface = orders["interface"]
    control.sockets(capture_here() if interface is None else capture_gateway(interface))


def _confine(control: Control, orders: Orders) -> int:
    try:
        rules = machine_filter(os.uname().machine)
    except LookupError:
        raise StepError("system call filter", f"not known for {os.uname().machine}") from None
    ignored = frozenset(
        number
        for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}  # which Python ignores by itself
        if signal.getsignal(number) == signal.SIG_IGN
    )
    command = Command(orders["argv"], orders["environment"], foreground=orders["foreground"], ignored=ignored, rules=rules)
    for number in _FOR_THE_PROXY:
        signal.signal(number, signal.SIG_IGN)
    has_user_namespace = leave_host()
    user = None if orders["user"] is None else Account(*orders["user"])
    own = None if has_user_namespace else OwnNamespace.if_possible(user, over_files=orders["over_files"])
    with step("fork"):
        child = os.fork()
    if child == 0:
        _be_first(control, orders, command, user, own, has_user_namespace=has_user_namespace)
    try:
        if own is not None:
            own.serve()
        give_up(user)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return _watch(control, child)


def _watch(control: Control, child: int) -> int:
    """Wait for the sandbox's first process, or for the end of the proxy, which is the end of all."""
    poll = select.poll()
    process = os.pidfd_open(child)
    poll.register(process, select.POLLIN)
    poll.register(control, 0)  # an end is always reported; what the proxy says is not for us
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if process in ready:
            return exit_code(os.waitpid(child, 0)[1])
        with passing_over(OSError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)  # when it has ended, so has all that was in there
        return KILLED


def _be_first(
    control: Control,
    orders: Orders,
    command: Command,
    user: Account | None,
    own: OwnNamespace | None,
    *,
    has_user_namespace: bool,
) -> NoReturn:
    code = FAILURE
    try:
        is_root = os.geteuid() == 0
        arrange(orders["masks"], orders["keep"], orders["binds"])
        if not fresh_proc() and not has_user_namespace:
            raise StepError("/proc", "the kernel refuses to mount a new one")
        with step("/proc"):
            sysctls = os.open("/proc/sys", os.O_PATH | os.O_CLOEXEC)  # before it is read-only
        protect_kernel(is_root=is_root)
        sockets = capture_here()
        keep = NESTING
        if own is not None and own.enter():
            has_user_namespace = True
            if orders["over_files"]:
                keep = OVER_FILES
            if user is not None and user.uid == 0:
                user = None  # already
        if has_user_namespace:
            forbid_cgroup_namespaces(sysctls)
        os.close(sysctls)
        if orders["over_files"] and keep != OVER_FILES:
            raise StepError("privileges", "rights over files take a user namespace made by root", errno.EPERM)
        give_up(user, keep if has_user_namespace else 0)
        with step("working directory"):
            os.chdir(orders["directory"])  # again by its path: the one we have may be under a mask
        with step("no new privileges"):
            forbid_new_privileges()
        control.sockets(sockets)
        if control.receive() == b"G":
            code = run_command(control, command)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the proxy must hear of it
        control.failed(error)
    finally:
        os._exit(code)
