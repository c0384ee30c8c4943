"""The filter of system calls, run by an interpreter of its instructions; the sandbox's own tests run it in the kernel."""

import errno
import socket
import struct

import pytest

from sbxproxy.capture.inside.seccomp import FAMILIES, group_filter, machine_filter

ALLOW = "allow"
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {"x86_64": {"socket": 41, "socketpair": 53, "ioctl": 16}, "aarch64": {"socket": 198, "socketpair": 199, "ioctl": 29}}


def run(machine, number, *arguments, architecture=None, program=machine_filter):
    data = struct.pack("=IIQ6Q", number, architecture or ARCHITECTURES[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", program(machine)))
    place = accumulator = 0
    while True:
        code, true, false, operand = program[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x15:
            place += true if accumulator == operand else false
        elif code == 0x35:
            place += true if accumulator >= operand else false
        else:
            assert code == 0x06
            return ALLOW if operand == 0x7FFF0000 else errno.errorcode[operand & 0xFFFF] if operand >> 16 == 5 else hex(operand)


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request):
    return request.param


@pytest.mark.parametrize("call", ["socket", "socketpair"])
@pytest.mark.parametrize("family", range(48))
def test_only_listed_families(machine, call, family):
    expected = ALLOW if family in FAMILIES else "EAFNOSUPPORT"
    assert run(machine, NUMBERS[machine][call], family) == expected


def test_the_upper_half_of_an_argument_changes_nothing(machine):
    """The kernel takes 32 bits, so a filter that compares 64 is passed by (CVE-2019-10063)."""
    assert run(machine, NUMBERS[machine]["socket"], 1 << 32 | 40) == "EAFNOSUPPORT"
    assert run(machine, NUMBERS[machine]["socket"], 1 << 32 | socket.AF_INET) == ALLOW
    assert run(machine, NUMBERS[machine]["ioctl"], 0, 1 << 32 | 0x5412) == "EPERM"


def test_nothing_is_typed_into_the_terminal(machine):
    ioctl = NUMBERS[machine]["ioctl"]
    assert run(machine, ioctl, 0, 0x5412) == run(machine, ioctl, 0, 0x541C) == "EPERM"
    assert run(machine, ioctl, 0, 0x5413) == ALLOW  # the window's size


@pytest.mark.parametrize("number", [425, 426, 427])
def test_no_io_uring(machine, number):
    assert run(machine, number) == "ENOSYS"


KEYS = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}


def test_no_keyrings(machine):
    """Neither the caller's, nor a key that a program on the host is run for (request-key(8))."""
    assert [run(machine, number, 0) for number in KEYS[machine]] == ["ENOSYS"] * 3


def test_other_machines_numbers_mean_nothing(machine):
    assert run(machine, 0, architecture=0x40000003) == "ENOSYS"  # i386
    assert run(machine, 0x40000000 + 41, 2) == "ENOSYS"  # x32


def test_other_calls_pass(machine):
    used = {*NUMBERS[machine].values(), *KEYS[machine], 425, 426, 427}
    assert {run(machine, number) for number in range(500) if number not in used} == {ALLOW}


GROUP = {
    "x86_64": {"kill": 62, "setpriority": 141, "ioprio_set": 251},
    "aarch64": {"kill": 129, "setpriority": 140, "ioprio_set": 30},
}


def test_a_shared_group_is_not_signalled_or_slowed_down(machine):
    def tried(call, *arguments):
        return run(machine, GROUP[machine][call], *arguments, program=group_filter)

    assert tried("kill", 0, 9) == tried("kill", 1 << 32, 9) == "EPERM"
    assert [tried("kill", number, 9) for number in (1, 77, 0xFFFFFFFF, 0xFFFFFFFE)] == [ALLOW] * 4
    assert [tried("setpriority", which, 0, 19) for which in range(3)] == [ALLOW, "EPERM", ALLOW]
    assert [tried("ioprio_set", which, 0, 0) for which in range(1, 4)] == [ALLOW, "EPERM", ALLOW]
    assert {run(machine, number, program=group_filter) for number in set(range(500)) - set(GROUP[machine].values())} == {ALLOW}


def test_an_unknown_machine_has_no_filter():
    for program in (machine_filter, group_filter):
        with pytest.raises(LookupError):
            program("vax")
