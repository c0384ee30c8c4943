"""The rules: their bytes, their order, and how nft reads them."""

import struct
import subprocess

from sbxproxy.capture.inside.nft import Ports, sandbox_rules, transaction
from support.captured import ROOT, as_user
from support.daemons import find_program

PORTS = Ports(tcp=40001, dns=40002)
OWN = ("192.0.0.8", "fd00::8")


def messages(data):
    while data:
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
        yield kind, flags, sequence, data[16:length]
        data = data[length:]


def test_a_transaction_begins_and_ends_as_one():
    data, sequences = transaction(sandbox_rules(PORTS, OWN))
    found = list(messages(data))
    assert [found[0][0], found[-1][0]] == [0x10, 0x11]
    assert found[0][3] == found[-1][3] == bytes.fromhex("00 00 000a")
    assert {sequence for _, flags, sequence, _ in found if flags & 4} == sequences
    assert len(found) == len(sequences) + 2


def test_the_table_must_be_new_and_rules_keep_their_order():
    """A second capture of the same namespace would mix its ports with the first's; prepended rules would be upside down."""
    for kind, flags, _, _ in messages(transaction(sandbox_rules(PORTS, OWN))[0]):
        if kind == 0xA00:
            assert flags & 0x200
        if kind == 0xA06:
            assert flags & 0x800


def test_the_bytes_of_a_redirection():
    _, payload = sandbox_rules(PORTS, OWN)[2]
    assert payload == bytes.fromhex(
        "0d000100" + b"sbxproxy\0".hex() + "000000"
        "0d000200" + b"redirect\0".hex() + "000000"
        "fc000480"
        # meta load l4proto => reg 1; cmp eq reg 1 0x11
        "24000180" "09000100 6d657461 00000000" "14000280" "08000200 00000010" "08000100 00000001"
        "2c000180" "08000100 636d7000" "20000280" "08000100 00000001" "08000200 00000000" "0c000380" "05000100 11000000"
        # payload load 2b @ transport header + 2 => reg 1; cmp eq reg 1 0x3500
        "34000180" "0c000100 7061796c 6f616400" "24000280"
        "08000100 00000001" "08000200 00000002" "08000300 00000002" "08000400 00000002"
        "2c000180" "08000100 636d7000" "20000280" "08000100 00000001" "08000200 00000000" "0c000380" "06000100 00350000"
        # immediate reg 1; redir proto_min reg 1
        "2c000180" "0e000100" + b"immediate\0".hex() + "0000" "18000280" "08000100 00000001" "0c000280" "06000100 9c420000"
        "1c000180" "0a000100" + b"redir\0".hex() + "0000" "0c000280" "08000100 00000001"
    )  # fmt: skip


def test_everything_else_is_dropped_by_the_chain_s_policy():
    """So that a protocol which no rule thinks of doesn't get out."""
    chain = next(payload for kind, payload in sandbox_rules(PORTS, OWN) if kind == 0xA03 and b"guard\0" in payload)
    assert bytes.fromhex("0800 0500 00000000") in chain


LISTED = """
import os, subprocess, sys
from sbxproxy.capture.inside.netlink import exchange
from sbxproxy.capture.inside.nft import *
CODE
exchange(12, *transaction(rules))
print(subprocess.run([sys.argv[1], "list", "ruleset"], capture_output=True, text=True, check=True).stdout)
"""


def listed(rules):
    [python] = as_user("root")
    program = find_program("nft")
    code = LISTED.replace("CODE", rules)
    done = subprocess.run(
        ["unshare", "-n", python, "-c", code, program], capture_output=True, text=True, cwd=ROOT / "src", timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def test_nft_reads_the_sandbox_s_rules_as_they_are_meant():
    assert listed("rules = sandbox_rules(Ports(40001, 40002), ('192.0.0.8', 'fd00::8'))") == [
        "table inet sbxproxy {",
        "chain redirect {",
        "type nat hook output priority -100; policy accept;",
        "udp dport 53 redirect to :40002",
        "tcp dport 53 redirect to :40001",
        "ip daddr 127.0.0.0/8 return",
        "ip6 daddr ::1 return",
        "ip daddr 192.0.0.8 return",
        "ip6 daddr fd00::8 return",
        "meta l4proto tcp redirect to :40001",
        "}",
        "chain guard {",
        "type filter hook output priority filter; policy drop;",
        "ct status dnat accept",
        "tcp dport 40001 reject with tcp reset",
        "udp dport 40002 drop",
        "ip daddr 127.0.0.0/8 accept",
        "ip6 daddr ::1 accept",
        "ip daddr 192.0.0.8 accept",
        "ip6 daddr fd00::8 accept",
        "meta l4proto tcp reject with tcp reset",
        "meta l4proto udp reject with icmpx admin-prohibited",
        "}",
        "}",
    ]


def test_nft_reads_the_gateway_s_rules_as_they_are_meant():
    assert listed("rules = gateway_rules(Ports(40001, 40002), 'guest0')") == [
        "table inet sbxproxy {",
        "chain redirect {",
        "type nat hook prerouting priority dstnat; policy accept;",
        'iifname "guest0" udp dport 53 redirect to :40002',
        'iifname "guest0" meta l4proto tcp redirect to :40001',
        "}",
        "chain guard {",
        "type filter hook prerouting priority dstnat + 10; policy accept;",
        'iifname "guest0" ct status dnat accept',
        'iifname "guest0" icmpv6 type nd-neighbor-solicit accept',
        'iifname "guest0" icmpv6 type nd-neighbor-advert accept',
        'iifname "guest0" meta l4proto tcp reject with tcp reset',
        'iifname "guest0" meta l4proto udp reject with icmpx admin-prohibited',
        'iifname "guest0" drop',
        "}",
        "chain forward {",
        "type filter hook forward priority filter; policy drop;",
        "}",
        "}",
    ]
