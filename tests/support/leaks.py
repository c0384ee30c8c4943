"""Try to get something, anything, onto the host's network; print what each attempt met, as JSON by name.

Run in a sandbox it should do nothing; run outside of one it shows that a capture would have seen it.
"""

import json
import os
import signal
import socket
import struct
import sys
import time

MARK = b"canary"
PATIENCE = float(os.environ.get("LEAKS_PATIENCE", "10"))
"""Seconds for an answer by UDP."""

ATTEMPTS = {}


def attempt(target):
    """Keep a function by its name; *target* is the address that its packets go to."""

    def keep(function):
        function.target = target
        ATTEMPTS[function.__name__] = function
        return function

    return keep


def hello(name):
    """A TLS ClientHello with a server name (RFC 8446, RFC 6066)."""

    def extension(kind, body):
        return struct.pack("!HH", kind, len(body)) + body

    entry = b"\0" + struct.pack("!H", len(name)) + name
    extensions = extension(0, struct.pack("!H", len(entry)) + entry) + extension(10, b"\0\2\0\x1d") + extension(13, b"\0\2\4\3")
    extensions += extension(43, b"\2\3\4") + extension(51, b"\0\x24\0\x1d\0\x20" + os.urandom(32))
    body = b"\3\3" + os.urandom(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack("!H", len(message)) + message


def query(name, kind=1):
    """A DNS query (RFC 1035)."""
    labels = b"".join(bytes((len(label),)) + label for label in name.split(b"."))
    return os.urandom(2) + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0" + struct.pack("!HH", kind, 1)


def tcp(address, port, data, patience=20):
    def go():
        with socket.create_connection((address, port), timeout=patience) as sock:
            sock.sendall(data)
            return f"{len(sock.recv(4096))} bytes"

    go.target = address
    return go


def udp(address, port, data, *, connected=False, answer=False, options=()):
    def go():
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            for option in options:
                sock.setsockopt(*option)
            if connected:
                sock.connect((address, port))
                sock.send(data)
            else:
                sock.sendto(data, (address, port))
            return f"code {sock.recv(4096)[3] & 15}" if answer else "sent"

    go.target = address
    return go


def framed(data):
    return struct.pack("!H", len(data)) + data


QUIC = b"\xc0\0\0\0\1\x08" + MARK + b"12\0\0\x44\x96" + os.urandom(1200)
DNS = query(b"canary.tunnel.example")

ATTEMPTS |= {
    "tcp4": tcp("198.18.0.4", 8080, MARK),
    "tcp6": tcp("2a00::6", 8080, MARK),
    "http": tcp("1.2.3.4", 80, b"GET / HTTP/1.1\r\nHost: canary.example\r\n\r\n"),
    "tls4": tcp("1.2.3.5", 443, hello(b"canary.example")),
    "tls6": tcp("2a00::5", 443, hello(b"canary.example")),
    "ssh": tcp("1.2.3.6", 22, b"SSH-2.0-canary\r\n"),
    "metadata": tcp("169.254.169.254", 80, b"GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"),
    "host_address": tcp("192.88.97.7", 8080, MARK),
    "dot": tcp("8.8.8.8", 853, hello(b"dns.google")),
    "dot6": tcp("2001:4860:4860::8888", 853, hello(b"dns.google")),
    "doh": tcp("1.1.1.1", 443, hello(b"cloudflare-dns.com")),
    "doh6": tcp("2606:4700:4700::1111", 443, hello(b"cloudflare-dns.com")),
    "dns_udp": udp("8.8.4.4", 53, DNS, answer=True),
    "dns_udp_connected": udp("9.9.9.9", 53, DNS, connected=True, answer=True),
    "dns_udp6": udp("2620:fe::fe", 53, DNS, answer=True),
    "dns_txt": udp("8.8.4.4", 53, query(b"canary.tunnel.example", 16), answer=True),
    "dns_null": udp("8.8.4.4", 53, query(b"canary.tunnel.example", 10), answer=True),
    "dns_any": udp("8.8.4.4", 53, query(b"canary.tunnel.example", 255), answer=True),
    "dns_tcp": tcp("8.8.4.4", 53, framed(DNS)),
    "dns_tcp6": tcp("2620:fe::9", 53, framed(DNS)),
    "dns_host_resolver": udp("127.0.0.53", 53, DNS, answer=True),
    "not_dns_on_53": udp("8.8.4.4", 53, MARK),
    "quic4": udp("1.2.3.7", 443, QUIC),
    "quic6": udp("2a00::7", 443, QUIC, connected=True),
    "doq": udp("8.8.8.8", 853, QUIC),
    "ntp": udp("1.2.3.8", 123, b"\x1b" + bytes(47)),
    "wireguard": udp("1.2.3.9", 51820, MARK),
    "stun6": udp("2a00::8", 3478, MARK),
    "mdns": udp("224.0.0.251", 5353, DNS),
    "mdns6": udp("ff02::fb", 5353, DNS),
    "broadcast": udp("255.255.255.255", 67, MARK, options=[(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)]),
    "udp_bound_to_lo": udp("1.2.3.10", 9999, MARK, options=[(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")]),
    "udp_low_ttl": udp("1.2.3.11", 33434, MARK, options=[(socket.IPPROTO_IP, socket.IP_TTL, 1)]),
    "udp_marked": udp("1.2.3.13", 9999, MARK, options=[(socket.SOL_SOCKET, 36, 0x1234)]),
}  # fmt: skip


@attempt("9.9.9.9")
def look_up():
    return str(socket.getaddrinfo("canary.look-up.example", 443))


@attempt("9.9.9.9")
def reverse_look_up():
    return socket.gethostbyaddr("1.2.3.14")[0]


@attempt("1.2.3.15")
def udp_from_chosen_source():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        source = struct.pack("i4s4s", 1, socket.inet_aton("127.0.0.1"), bytes(4))
        sock.sendmsg([MARK], [(socket.IPPROTO_IP, 8, source)], 0, ("1.2.3.15", 9999))  # IP_PKTINFO
    return "sent"


@attempt("1.2.3.16")
def udp_many_at_once():
    """By segmentation offload one call makes several packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, 103, 100)  # UDP_SEGMENT
        sock.sendto(MARK * 100, ("1.2.3.16", 9999))
    return "sent"


@attempt("1.2.3.17")
def udp_large():
    return udp("1.2.3.17", 9999, MARK * 8000)()


@attempt("1.2.3.18")
def udplite():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136) as sock:
        sock.sendto(MARK, ("1.2.3.18", 9999))
    return "sent"


@attempt("1.2.3.19")
def sctp():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132) as sock:
        sock.settimeout(1)
        sock.connect(("1.2.3.19", 9999))
    return "connected"


@attempt("1.2.3.20")
def ping():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.sendto(b"\x08\0\0\0\0\0\0\0" + MARK, ("1.2.3.20", 0))
    return "sent"


@attempt("2a00::20")
def ping6():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6) as sock:
        sock.sendto(b"\x80\0\0\0\0\0\0\0" + MARK, ("2a00::20", 0))
    return "sent"


@attempt("1.2.3.21")
def raw_icmp():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(b"\x08\0\xf7\xff\0\0\0\0" + MARK, ("1.2.3.21", 0))
    return "sent"


@attempt("1.2.3.22")
def raw_ip():
    """A UDP datagram in an IP header of one's own making."""
    datagram = struct.pack("!HHHH", 5353, 53, 8 + len(DNS), 0) + DNS
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, bytes(4), socket.inet_aton("1.2.3.22"))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(head + datagram, ("1.2.3.22", 0))
    return "sent"


@attempt("1.2.3.23")
def gre():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 47) as sock:
        sock.sendto(bytes(4) + MARK, ("1.2.3.23", 0))
    return "sent"


@attempt("1.2.3.24")
def packet():
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 26, 1, 0, 64, 253, 0, socket.inet_aton("9.9.9.9"), socket.inet_aton("1.2.3.24"))
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sock:
        sock.sendto(head + MARK, ("lo", 0x0800))
    return "sent"


@attempt("1.2.3.25")
def mptcp():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:
        sock.settimeout(20)
        sock.connect(("1.2.3.25", 443))
        sock.sendall(MARK)
        return f"{len(sock.recv(100))} bytes"


@attempt("1.2.3.26")
def tcp_fast_open():
    with socket.socket() as sock:
        sock.sendto(MARK, 0x20000000, ("1.2.3.26", 443))
        return f"{len(sock.recv(100))} bytes"


@attempt("1.2.3.27")
def tcp_from_chosen_port():
    with socket.socket() as sock:
        sock.settimeout(20)
        sock.bind(("0.0.0.0", 12345))
        sock.connect(("1.2.3.27", 443))
        sock.sendall(MARK)
        return f"{len(sock.recv(100))} bytes"


@attempt("1.2.3.28")
def tcp_urgent():
    with socket.create_connection(("1.2.3.28", 443), timeout=20) as sock:
        sock.send(MARK, socket.MSG_OOB)
        return f"{len(sock.recv(100))} bytes"


def main():
    signal.alarm(80)
    told = {}
    if len(sys.argv) > 1:  # what is allowed, dialled at an address that has nothing to do with it
        ATTEMPTS["allowed"] = tcp("1.2.3.30", 443, hello(sys.argv[1].encode()), 2)  # nobody answers there
    for name, function in ATTEMPTS.items():
        started = time.monotonic()
        try:
            outcome = str(function())
        except OSError as error:
            outcome = type(error).__name__
        told[name] = [outcome, round(time.monotonic() - started, 2)]
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
