"""The bytes of netlink messages, and what is read from the kernel's answers."""

import errno
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.capture.inside import netlink
from sbxproxy.capture.inside.netlink import acknowledgements, attribute, message, nested

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are written down as of such a machine")


def test_attributes_are_padded_but_their_length_is_not():
    assert attribute(3, b"lo\0") == bytes.fromhex("0700 0300 6c6f0000")
    assert attribute(3, b"four") == bytes.fromhex("0800 0300") + b"four"
    assert nested(2, attribute(1, b"")) == bytes.fromhex("0800 0280 0400 0100")


def test_bringing_an_interface_up():
    assert netlink.set_up(1, 7) == bytes.fromhex("20000000 1000 0500 07000000 0000000000000000 01000000 01000000 01000000")


def test_an_address_without_detection_of_duplicates():
    assert netlink.add_address(1, "192.0.0.8", 2) == bytes.fromhex(
        "28000000 1400 0506 02000000 0000000002 20 02 00 010000000800 0100 c00000080800 0200 c0000008"
    )


def test_a_default_route():
    assert netlink.add_default_route(1, "192.0.0.8", 3) == bytes.fromhex(
        "2c000000 1800 0506 03000000 0000000002 00 00 00 fe 04 fd 01 000000000800 0400 010000000800 0700 c0000008"
    )
    assert netlink.add_default_route(1, "fd00::8", 3)[16:24] == bytes.fromhex("0a 00 00 00 fe 04 00 01")


def answer(number, sequence, *, flags=0x100, extra=b""):
    return message(2, flags, sequence, struct.pack("=i", -number) + message(16, 0, sequence, b"") + extra)


def test_acknowledgements_come_several_at_a_time():
    data = answer(0, 1) + message(3, 0, 0, b"") + answer(errno.EPERM, 2)
    assert list(acknowledgements(data)) == [(1, 0, ""), (2, errno.EPERM, "")]


def test_the_kernel_s_own_words_are_found():
    words = attribute(2, b"\0\0\0\0") + attribute(1, b"Interface is down\0")
    assert list(acknowledgements(answer(22, 1, flags=0x300, extra=words))) == [(1, 22, "Interface is down")]


def test_words_are_found_behind_a_request_that_is_echoed_whole():
    echoed = message(16, 0, 1, b"12345678")
    body = struct.pack("=i", -22) + echoed + attribute(1, b"no\0")
    assert list(acknowledgements(message(2, 0x200, 1, body))) == [(1, 22, "no")]


def test_every_prefix_of_an_answer_is_read_without_failing():
    data = answer(22, 1, flags=0x300, extra=attribute(1, b"words\0"))
    for length in range(len(data)):
        assert list(acknowledgements(data[:length])) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_failing(data):
    assert all(len(one) == 3 for one in acknowledgements(data))


def test_a_refusal_is_raised():
    """Asking for an interface that doesn't exist needs no privilege to be refused."""
    if not hasattr(socket, "AF_NETLINK"):
        pytest.skip("no netlink here")
    with pytest.raises(OSError):
        netlink.exchange(netlink.NETLINK_ROUTE, netlink.set_up(0x7FFFFFF0, 1), {1})
