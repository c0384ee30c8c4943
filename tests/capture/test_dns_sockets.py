"""DNS as sockets see it: an answer comes from the address that was asked, whichever that is."""

import json

import pytest

from support.captured import MODES, as_user
from support.sandboxed import run_python

RESOLVERS = [
    "8.8.8.8", "1.1.1.1", "127.0.0.53", "127.0.0.1", "127.0.0.11", "169.254.169.253", "10.0.0.2", "100.100.100.200", "192.0.0.8",
    "2001:4860:4860::8888", "2620:fe::fe", "fd00:ec2::253", "fd73:6278:7072:6f78::8", "::1",
]  # fmt: skip
"""Public ones, those of systemd, Docker and clouds, and the sandbox's own addresses."""

ASK = """
import json, os, select, socket, struct, sys
resolvers = json.loads(sys.argv[1])
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def query():
    return os.urandom(2) + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\5where\\7example\\0\\0\\1\\0\\1"
told = {}
for address in resolvers:
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sent = query()
        sock.connect((address, 53))
        sock.send(sent)
        data, peer = sock.recvfrom(4096)
        told["connected " + address] = [peer[:2], data[:2] == sent[:2]]
        sock.connect((address, 53))  # again, as some C libraries do for each query
        sock.send(sent)
        told["connected again " + address] = [sock.recvfrom(4096)[1][:2], True]
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sent = query()
        sock.sendto(sent, (address, 53))
        data, ancillary, flags, peer = sock.recvmsg(4096, 256)
        told["unconnected " + address] = [peer[:2], data[:2] == sent[:2]]
    if family(address) == socket.AF_INET:  # a socket for both families
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(sent, ("::ffff:" + address, 53))
            told["mapped " + address] = [sock.recvfrom(4096)[1][:2], True]
    with socket.create_connection((address, 53), 10) as sock:
        sock.sendall(struct.pack("!H", len(sent)) + sent)
        data = sock.recv(4096)
        told["tcp " + address] = [sock.getpeername()[:2], data[2:4] == sent[:2]]

# One socket asks them all before it reads any answer.
for kind in (socket.AF_INET, socket.AF_INET6):
    asked = [address for address in resolvers if family(address) == kind]
    with socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        pending = {}
        for address in asked:
            sent = query()
            pending[sent[:2]] = address
            sock.sendto(sent, (address, 53))
        answered = []
        for _ in asked:
            data, peer = sock.recvfrom(4096)
            answered.append(pending.pop(data[:2], "?") == peer[0])
        told["all at once %d" % kind] = answered

# Many sockets to one resolver, from a port of the client's choice too.
socks = []
for port in [0] * 200 + [53, 5353, 40000]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    try:
        sock.bind(("0.0.0.0", port))
    except PermissionError:
        continue
    socks.append(sock)
sent = {}
for sock in socks:
    sent[sock] = query()
    sock.sendto(sent[sock], ("9.9.9.9", 53))
told["many"] = [sock.recvfrom(4096) for sock in socks]
told["many"] = [[list(peer), data[:2] == sent[sock][:2]] for sock, (data, peer) in zip(socks, told["many"])]
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module", params=MODES)
def told(request):
    as_user(request.param)
    done = run_python(request.param, "--deny-all", ASK, json.dumps(RESOLVERS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("address", RESOLVERS)
def test_r2_the_answer_comes_from_the_address_that_was_asked(told, address):
    """A socket that is connected gets no others, and C libraries drop those from elsewhere."""
    for how in ("connected", "connected again", "unconnected", "tcp"):
        assert told[f"{how} {address}"] == [[address, 53], True]
    if "." in address:
        assert told[f"mapped {address}"] == [[f"::ffff:{address}", 53], True]


def test_answers_to_questions_at_once_are_not_mixed_up(told):
    assert all(told["all at once 2"] + told["all at once 10"])
    assert len(told["many"]) >= 202
    assert {json.dumps(one) for one in told["many"]} == {json.dumps([["9.9.9.9", 53], True])}
