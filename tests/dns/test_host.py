"""The host's name servers, and whether it has IPv6."""

import errno
import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from sbxproxy.dns import host
from sbxproxy.dns.host import HostNameservers, has_ipv6, read_resolv_conf

LOCAL = (ip_address("127.0.0.1"), 53)


def servers(*texts):
    return tuple((ip_address(text), 53) for text in texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", servers("192.0.2.1", "2001:db8::1")),
        ("# nameserver 192.0.2.9\n; x\nsearch example.com\noptions edns0\n\tnameserver\t192.0.2.1 # x\n", servers("192.0.2.1")),
        ("nameserver fe80::1%eth0\nnameserver 127.1\nnameserver\nnameserver x\nnameserver 192.0.2.1\n", servers("192.0.2.1")),
        ("nameserver 192.0.2.1\n" * 5, servers("192.0.2.1")),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(9)), servers("192.0.2.0", "192.0.2.1", "192.0.2.2")),
        ("", (LOCAL,)),
    ],
)
def test_resolv_conf_is_read_as_the_c_library_reads_it(text, expected):
    assert read_resolv_conf(text) == expected


def test_a_changed_file_is_read_again_after_a_while(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(host, "time", SimpleNamespace(monotonic=lambda: now))
    path = tmp_path / "resolv.conf"
    find = HostNameservers(path)
    assert find() == (LOCAL,)
    path.write_text("nameserver 192.0.2.1\n")
    assert find() == (LOCAL,)
    now += host.CHECK_EVERY
    assert find() == servers("192.0.2.1")
    now += host.CHECK_EVERY
    assert find() == servers("192.0.2.1")
    path.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
    now += host.CHECK_EVERY
    assert find() == servers("192.0.2.1", "192.0.2.2")
    path.unlink()
    now += host.CHECK_EVERY
    assert find() == (LOCAL,)


def test_the_real_file_is_found():
    assert all(port == 53 for _, port in HostNameservers()())


def _probe(monkeypatch, *, connect=None, own="2001:db8::5"):
    class Probe:
        def __init__(self, family, kind):
            assert (family, kind) == (socket.AF_INET6, socket.SOCK_DGRAM)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, where):
            if connect:
                raise connect

        def getsockname(self):
            return (own, 1, 0, 0)

    names = SimpleNamespace(socket=Probe, AF_INET6=socket.AF_INET6, SOCK_DGRAM=socket.SOCK_DGRAM)
    monkeypatch.setattr(host, "socket", names)


@pytest.mark.parametrize(
    ("connect", "own", "expected"),
    [
        (None, "2001:db8::5", True),
        (None, "fe80::5", False),
        (OSError(errno.ENETUNREACH, "no"), "", False),
        (OSError(errno.EAFNOSUPPORT, "no"), "", False),
    ],
)
def test_ipv6_is_there_if_there_is_a_route(monkeypatch, connect, own, expected):
    _probe(monkeypatch, connect=connect, own=own)
    assert has_ipv6() is expected


def test_the_real_kernel_has_an_answer():
    assert has_ipv6() in {True, False}
