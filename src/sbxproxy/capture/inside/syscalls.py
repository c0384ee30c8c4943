"""The system calls that Python 3.11 doesn't offer, by way of the C library.

Each raises ``OSError`` with the name of what it was about as its ``filename``.
"""

from __future__ import annotations

__all__ = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_ADMIN",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "die_with_parent",
    "drop_capabilities",
    "effective_capabilities",
    "empty_bounding_set",
    "forbid_new_privileges",
    "hide_memory",
    "install_filter",
    "mount",
    "setns",
    "unshare",
]

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_SETFCAP = 31

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _checked(result: int, about: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones (unshare(2))."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter a namespace of that kind (setns(2))."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount, or change a mount (mount(2))."""
    strings = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    options = None if data is None else os.fsencode(data)
    _checked(_libc.mount(*strings, ctypes.c_ulong(flags), options), target)


def _prctl(option: int, second: int = 0, third: int = 0) -> int:
    # It is variadic, and the kernel looks at whole registers: without a type the upper half is whatever was there.
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(second), ctypes.c_ulong(third), zero, zero))


def die_with_parent(number: int) -> None:
    """Get signal *number* when the thread that started this process ends. Lost with any change of user or capabilities."""
    _checked(_prctl(_PR_SET_PDEATHSIG, number), "PR_SET_PDEATHSIG")


def hide_memory() -> None:
    """Forbid others of this user to trace this process, and to look into its memory, environment and descriptors."""
    _checked(_prctl(_PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")


def forbid_new_privileges() -> None:
    """Make set-user-id bits and file capabilities mean nothing to this process and all it will start."""
    _checked(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")


def install_filter(program: bytes) -> None:
    """Pass every system call through the BPF *program* (8 bytes an instruction) from now on (seccomp(2))."""
    buffer = ctypes.create_string_buffer(program, len(program))
    prog = _Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_char_p))
    _checked(_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(prog)), "PR_SET_SECCOMP")


def effective_capabilities() -> int:
    """Return the effective capabilities as a bit mask (capget(2))."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = (_CapabilitySets * 2)()
    _checked(_libc.capget(ctypes.byref(header), ctypes.byref(sets)), "capget")
    return int(sets[0].effective) | int(sets[1].effective) << 32


def empty_bounding_set(keep: int = 0) -> None:
    """Make capabilities outside the mask *keep* impossible to gain for this process and all it will start (capabilities(7))."""
    for number in range(64):
        left = _prctl(_PR_CAPBSET_READ, number)
        if left < 0:  # beyond the last that this kernel knows
            break
        if left and not keep >> number & 1:  # a second drop would be refused
            _checked(_prctl(_PR_CAPBSET_DROP, number), "PR_CAPBSET_DROP")


def drop_capabilities(keep: int = 0) -> None:
    """Give up every capability that is held, but those in the mask *keep*."""
    _checked(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL), "PR_CAP_AMBIENT")
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = (_CapabilitySets * 2)()
    for index in range(2):
        sets[index].effective = sets[index].permitted = keep >> 32 * index & 0xFFFFFFFF
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(sets)), "capset")
