"""Which addresses are this host's own."""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from sbxproxy.net import host
from sbxproxy.net.host import _ask_routes, _can_bind, is_host_address


@pytest.fixture(autouse=True)
def _forget():
    host._kept.clear()
    yield
    host._kept.clear()


def own_addresses() -> list[str]:
    """Addresses of the interfaces, by other means than the code's."""
    with open("/proc/net/fib_trie") as trie:
        lines = trie.read().splitlines()
    found = {lines[n - 1].split()[-1] for n, line in enumerate(lines) if "/32 host LOCAL" in line}
    if os.path.exists("/proc/net/if_inet6"):
        with open("/proc/net/if_inet6") as table:
            found |= {str(IPv6Address(bytes.fromhex(line.split()[0]))) for line in table}
    return sorted(found)


def test_d4_every_address_of_every_interface_is_own():
    own = own_addresses()
    assert "127.0.0.1" in own
    for text in own:
        assert is_host_address(ip_address(text)), text


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.200.3.4", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
)
def test_d3_d4_loopback_and_unspecified_are_own_in_every_form(text):
    assert is_host_address(ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "198.51.100.7", "2001:4860:4860::8888", "203.0.113.255"])
def test_addresses_elsewhere_are_not_own(text):
    assert not is_host_address(ip_address(text))


def test_the_routing_table_knows_local_addresses_without_the_shortcuts():
    assert _ask_routes(IPv4Address("127.9.9.9")) is True
    assert _ask_routes(IPv4Address("198.51.100.7")) is False


def kernel_says(monkeypatch, reply):
    class Kernel:
        def __init__(self, *args):
            if args[0] != socket.AF_NETLINK:
                raise AssertionError("not asked")

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def connect(self, name):
            pass

        def send(self, data):
            pass

        def recv(self, size):
            if isinstance(reply, Exception):
                raise reply
            return reply

    monkeypatch.setattr(socket, "socket", Kernel)
    return _ask_routes(IPv4Address("198.51.100.7"))


def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (message(24, bytes([2, 32, 0, 0, 255, 0, 0, 2, 0, 0, 0, 0])), True),  # local
        (message(24, bytes([2, 32, 0, 0, 255, 0, 0, 4, 0, 0, 0, 0])), True),  # anycast
        (message(24, bytes([2, 32, 0, 0, 255, 0, 0, 1, 0, 0, 0, 0])), False),  # unicast
        (message(2, struct.pack("=i", -errno.ENETUNREACH)), False),
        (message(2, struct.pack("=i", -errno.EPERM)), None),
        (message(2, struct.pack("=i", 0)), None),
        (message(3, bytes(12)), None),
        (message(24, bytes(4)), None),
        (b"", None),
        (BlockingIOError(), None),
        (PermissionError(), None),
    ],
)
def test_the_kernel_s_answer_is_read_and_anything_odd_is_no_answer(monkeypatch, reply, answer):
    assert kernel_says(monkeypatch, reply) is answer


@pytest.mark.parametrize(("answer", "own"), [(None, True), (False, False), (True, True)])
def test_without_a_clear_answer_the_address_counts_as_own(monkeypatch, answer, own):
    monkeypatch.setattr(host, "_ask_routes", lambda address: answer)
    monkeypatch.setattr(host, "_can_bind", lambda address: True)
    assert is_host_address(IPv4Address("198.51.100.7")) is own


def test_where_routes_cannot_be_asked_binding_tells(monkeypatch):
    assert _can_bind(IPv4Address("127.0.0.1"))
    assert not _can_bind(IPv4Address("198.51.100.7"))
    assert not _can_bind(IPv6Address("2001:db8::7"))
    monkeypatch.setattr(host.sys, "platform", "darwin")
    assert not is_host_address(IPv4Address("198.51.100.7"))


def test_no_socket_to_be_had_means_own(monkeypatch):
    def none_left(*args):
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(socket, "socket", none_left)
    assert is_host_address(IPv4Address("198.51.100.7"))


def test_answers_are_kept_for_a_moment_and_few_of_them(monkeypatch):
    asked = []
    now = 100.0
    monkeypatch.setattr(host, "_ask_routes", lambda address: bool(asked.append(address)))
    monkeypatch.setattr(host.time, "monotonic", lambda: now)
    for _ in range(3):
        is_host_address(IPv4Address("198.51.100.7"))
    assert len(asked) == 1
    now += 1.0
    is_host_address(IPv4Address("198.51.100.7"))
    assert len(asked) == 2
    for number in range(3000):
        is_host_address(IPv4Address(0xC6336400 + number))
        assert len(host._kept) <= host.MOST_KEPT
