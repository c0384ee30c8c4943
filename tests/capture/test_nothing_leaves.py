"""A packet capture of the host's network while a sandboxed program tries everything: what isn't allowed sends no packet at all."""

import json
import socket
import struct

import dns.message
import pytest

from support import leaks
from support.captured import MODES, ROOT, as_user, environment
from support.outer import HOST, HOST6, RESOLVER, open_outer
from support.resolver import Resolver

LEAKS = str(ROOT / "tests" / "support" / "leaks.py")
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


@pytest.fixture
def outer():
    with (
        open_outer(("SOCK_DGRAM", RESOLVER, 53), ("SOCK_STREAM", "1.2.3.4", 443)) as found,
        Resolver(found.sockets[0], {"good.example.": "1.2.3.4"}),
    ):
        yield found


def attempts(outer, mode, *options, allowed=()):
    outer.packets()
    done = outer.run(mode, *options, "--quiet", "--", as_user(mode)[-1], LEAKS, *allowed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert set(leaks.ATTEMPTS) <= set(told)
    return told, outer.packets()


def at_once(told):
    return {name: seconds for name, (_, seconds) in told.items() if seconds > 8}


def test_the_capture_sees_each_attempt_where_nothing_holds_it(outer, mode):
    """Else an empty capture would prove nothing."""
    done = outer.plain(mode, LEAKS, env={**environment(), "LEAKS_PATIENCE": "0.2"})
    told = json.loads(done.stdout)
    seen = {packet.destination for packet in outer.packets()}
    sent = {name for name, (outcome, _) in told.items() if outcome not in {"PermissionError", "OSError"}}
    assert not {name for name in sent if leaks.ATTEMPTS[name].target not in seen}
    kept_back = {"sctp", "packet", "raw_ip", "raw_icmp", "gre", "udp_marked", "ping", "ping6"}
    assert set(told) - sent <= (kept_back if mode == "unprivileged" else {"sctp", "ping", "ping6"})


def test_r1_deny_all_sends_not_one_packet(outer, mode):
    told, packets = attempts(outer, mode, "--deny-all")
    assert packets == []
    assert at_once(told) == {}
    assert told["dns_udp"][0] == told["dns_txt"][0] == told["dns_null"][0] == "code 3"
    assert told["quic4"][0] == told["quic6"][0] == told["doq"][0] == told["ntp"][0] == "PermissionError"
    assert not {name for name, (outcome, _) in told.items() if outcome == "sent"} - {"not_dns_on_53"}


def test_r2_of_what_is_not_allowed_nothing_is_sent_beside_what_is(outer, mode):
    """Only the allowed name is asked for, and only at the host's own resolver; only its address is dialled."""
    told, packets = attempts(outer, mode, "--allow", "good.example", allowed=["good.example"])
    outgoing = [packet for packet in packets if packet.source in {HOST, HOST6}]
    assert {(packet.protocol, packet.destination, packet.port) for packet in outgoing} == {
        (UDP, RESOLVER, 53),
        (TCP, "1.2.3.4", 443),
    }
    assert {question(packet) for packet in outgoing if packet.protocol == UDP} == {"good.example."}
    assert [packet for packet in packets if leaks.MARK in packet.payload] == []
    assert at_once({name: value for name, value in told.items() if name != "allowed"}) == {}


def test_r2_where_all_is_allowed_only_tcp_and_the_hosts_own_queries_are_sent(outer, mode):
    """And of TCP nothing to the host, to private networks and to cloud metadata."""
    told, packets = attempts(outer, mode, "--allow-all")
    outgoing = [packet for packet in packets if packet.source in {HOST, HOST6}]
    assert {packet.protocol for packet in packets} == {TCP, UDP}
    assert {(packet.destination, packet.port) for packet in outgoing if packet.protocol == UDP} == {(RESOLVER, 53)}
    dialled = {packet.destination for packet in outgoing if packet.protocol == TCP}
    assert {"1.2.3.4", "1.2.3.5", "1.2.3.6", "2a00::5", "2a00::6", "8.8.8.8", "1.1.1.1", "1.2.3.25", "1.2.3.28"} <= dialled
    assert not {"169.254.169.254", "198.18.0.4", HOST, HOST6, "127.0.0.1", "127.0.0.53"} & dialled
    for name in ("quic4", "quic6", "doq", "ntp", "mdns", "ping", "udplite"):
        assert told[name][0] == "PermissionError"


def question(packet):
    return dns.message.from_wire(packet.payload[8:]).question[0].name.to_text()


def test_the_capture_tells_what_a_packet_is(outer):
    outer.plain("root", "-c", "import socket; socket.socket(2, 2).sendto(b'canary', ('5.6.7.8', 1234))")
    (packet, *_) = [packet for packet in outer.packets() if packet.protocol == UDP]
    assert (packet.destination, packet.port, packet.payload[8:]) == ("5.6.7.8", 1234, b"canary")
    assert struct.unpack_from("!H", packet.payload)[0] == packet.source_port


@pytest.mark.parametrize("updated", [False, True], ids=["from the start", "by an update"])
def test_r1_deny_all_by_the_library_sends_not_one_packet(outer, mode, updated):
    """No command line between: proxy, sandbox and command are an embedder's, and so is the update of its policy."""
    orders = {"policy": "deny-all", "argv": [as_user(mode)[-1], LEAKS]}
    if updated:
        orders |= {"policy": {"allow": ["never-asked.example"]}, "then": "deny-all"}
    outer.packets()
    done = outer.plain(mode, "-m", "support.embedded", input=json.dumps(orders), stdin=None)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [code for code, _ in found["outputs"]] == [0] * (1 + updated)
    told = json.loads(found["outputs"][-1][1])
    assert at_once(told) == {}
    assert told["dns_udp"][0] == told["dns_udp6"][0] == told["dns_host_resolver"][0] == "code 3"
    assert not {name for name, (outcome, _) in told.items() if outcome == "sent"} - {"not_dns_on_53"}
    assert {tuple(answer[2:]) for answer in found["dns"]} == {("deny", "deny-all"), ("deny", "dns-not-supported")}
    assert {answer[1] for answer in found["dns"]} == {"NXDOMAIN", "REFUSED"}
    assert {decision for decision, _ in found["flows"]} == {"deny"}
    assert outer.packets() == []
