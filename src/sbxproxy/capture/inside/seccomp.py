"""A system call filter in classic BPF, for what neither namespaces nor packet rules hold back.

* Socket families: AF_VSOCK reaches the hypervisor from any network namespace, and other families are kernel code that a sandboxed
  program has no need of. So there is a list of those that are allowed, and the rest are as if the kernel had none of them.
* io_uring opens sockets without the system call that is filtered here.
* Keyrings know no namespace that the sandbox has: the caller's session keyring would be the command's, and the kernel answers some
  requests for keys by running a program on the host, to look up a name for example.
* The terminal's TIOCSTI and TIOCLINUX type into it, and the shell outside would read that (CVE-2017-5226).
* A process group shared with processes outside must not be signalled, or slowed down, as a whole.
* System calls of another machine type (int 0x80, x32) have other numbers, under which all of that would pass.
"""

from __future__ import annotations

__all__ = ["FAMILIES", "group_filter", "machine_filter"]

import _socket as socket
import errno
import struct

FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""Netlink is there for programs that list their addresses; what it may do is a matter of capabilities."""


_MACHINES = {
    "x86_64": {
        "architecture": 0xC000003E,  # AUDIT_ARCH_…
        "socket": 41,
        "socketpair": 53,
        "ioctl": 16,
        "kill": 62,
        "setpriority": 141,
        "ioprio_set": 251,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
    },
    "aarch64": {
        "architecture": 0xC00000B7,
        "socket": 198,
        "socketpair": 199,
        "ioctl": 29,
        "kill": 129,
        "setpriority": 140,
        "ioprio_set": 30,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
    },
}
_IO_URING = (425, 426, 427)  # setup, enter, register; the same number everywhere
_KEYS = ("add_key", "request_key", "keyctl")
_X32 = 0x40000000
_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C
_PRIO_PGRP = 1
_IOPRIO_WHO_PGRP = 2

_NUMBER = 0  # offsets in struct seccomp_data
_ARCHITECTURE = 4
_ARGUMENTS = 16

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_Line = tuple[int, int, str | None, str | None]
"""Operation, operand, and where to go on if it is true and if it isn't; ``None`` is the next line."""


def machine_filter(machine: str) -> bytes:
    """Make the filter for a machine type as ``os.uname`` names it.

    Raises:
        LookupError: its system call numbers aren't known here.
    """
    numbers = _MACHINES[machine]
    lines: list[_Line | str] = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_EQUAL, numbers["architecture"], None, "foreign"),
        (_LOAD, _NUMBER, None, None),
        (_AT_LEAST, _X32, "foreign", None),
        (_EQUAL, numbers["socket"], "family", None),
        (_EQUAL, numbers["socketpair"], "family", None),
        (_EQUAL, numbers["ioctl"], "ioctl", None),
        *((_EQUAL, number, "foreign", None) for number in (*_IO_URING, *(numbers[name] for name in _KEYS))),
        (_RETURN, _ALLOW, None, None),
        # Arguments are 64 bits wide, but the kernel takes these as 32: the lower half (both machines are little-endian).
        "family",
        (_LOAD, _ARGUMENTS, None, None),
        *((_EQUAL, int(family), "allow", None) for family in FAMILIES),
        (_RETURN, _ERRNO | errno.EAFNOSUPPORT, None, None),
        "ioctl",
        (_LOAD, _ARGUMENTS + 8, None, None),
        (_EQUAL, _TIOCSTI, "forbidden", None),
        (_EQUAL, _TIOCLINUX, "forbidden", None),
        "allow",
        (_RETURN, _ALLOW, None, None),
        "forbidden",
        (_RETURN, _ERRNO | errno.EPERM, None, None),
        "foreign",
        (_RETURN, _ERRNO | errno.ENOSYS, None, None),
    ]
    return _assembled(lines)


def group_filter(machine: str) -> bytes:
    """Make what is to be installed after ``machine_filter`` where the command's process group isn't its own.

    Other groups than one's own are named by numbers, and those outside have none in the process namespace.

    Raises:
        LookupError: the machine's system call numbers aren't known here.
    """
    numbers = _MACHINES[machine]
    lines: list[_Line | str] = [
        (_LOAD, _NUMBER, None, None),
        (_EQUAL, numbers["kill"], "kill", None),
        (_EQUAL, numbers["setpriority"], "setpriority", None),
        (_EQUAL, numbers["ioprio_set"], "ioprio_set", None),
        (_RETURN, _ALLOW, None, None),
        "kill",
        (_LOAD, _ARGUMENTS, None, None),
        (_EQUAL, 0, "forbidden", "allow"),
        "setpriority",
        (_LOAD, _ARGUMENTS, None, None),
        (_EQUAL, _PRIO_PGRP, "forbidden", "allow"),
        "ioprio_set",
        (_LOAD, _ARGUMENTS, None, None),
        (_EQUAL, _IOPRIO_WHO_PGRP, "forbidden", "allow"),
        "allow",
        (_RETURN, _ALLOW, None, None),
        "forbidden",
        (_RETURN, _ERRNO | errno.EPERM, None, None),
    ]
    return _assembled(lines)


def _assembled(lines: list[_Line | str]) -> bytes:
    places: dict[str, int] = {}
    code: list[_Line] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(code)
        else:
            code.append(line)
    out = bytearray()
    for index, (operation, operand, true, false) in enumerate(code):
        jumps = [0 if label is None else places[label] - index - 1 for label in (true, false)]
        out += struct.pack("=HBBI", operation, *jumps, operand)
    return bytes(out)
