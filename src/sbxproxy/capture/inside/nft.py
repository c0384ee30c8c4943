"""The rules of a captured network namespace, as one nf_tables transaction: all of them are in force, or none.

No ``nft`` program is needed. Rules are lists of small expressions that load a value into a register, compare it, and act; names and
numbers are those of ``linux/netfilter/nf_tables.h``. Attributes are in network byte order, with one exception: what ``ct status``
loads is in the machine's own.
"""

from __future__ import annotations

__all__ = ["TABLE", "Ports", "gateway_rules", "sandbox_rules", "transaction"]

import _socket as socket
import struct

from sbxproxy.capture.inside.netlink import ACK, APPEND, CREATE, EXCLUSIVE, REQUEST, attribute, message, nested

TABLE = "sbxproxy"

_BATCH_BEGIN = 0x10
_BATCH_END = 0x11
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE = _SUBSYSTEM << 8 | 0
_NEW_CHAIN = _SUBSYSTEM << 8 | 3
_NEW_RULE = _SUBSYSTEM << 8 | 6
_INET = 1  # NFPROTO_INET: IPv4 and IPv6

_PREROUTING = 0
_FORWARD = 2
_OUTPUT = 3

_DROP = 0
_ACCEPT = 1
_RETURN = -5

_REGISTER = 1
_VERDICT = 0
_META_IIFNAME = 6
_META_NFPROTO = 15
_META_L4PROTO = 16
_NETWORK_HEADER = 1
_TRANSPORT_HEADER = 2
_CT_STATUS = 2
_IPS_DST_NAT = 0x20
_REJECT_TCP_RESET = 1
_REJECT_ICMPX = 2
_ADMIN_PROHIBITED = 3

_TCP = socket.IPPROTO_TCP
_UDP = socket.IPPROTO_UDP
_DNS = 53
_NFPROTO = {socket.AF_INET: 2, socket.AF_INET6: 10}
_DESTINATION = {socket.AF_INET: 16, socket.AF_INET6: 24}
"""Where the destination address is in the network header."""

Step = tuple[int, bytes]


class Ports:
    """Where the proxy listens: for all of TCP, and for DNS over UDP."""

    __slots__ = ("dns", "tcp")

    def __init__(self, tcp: int, dns: int) -> None:
        self.tcp = tcp
        self.dns = dns


def _number(value: int) -> bytes:
    return struct.pack("!I", value & 0xFFFFFFFF)


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, _string(name)), nested(2, *attributes))


def _equal(value: bytes) -> bytes:
    return _expression("cmp", attribute(1, _number(_REGISTER)), attribute(2, _number(0)), nested(3, attribute(1, value)))


def _meta(key: int, value: bytes) -> bytes:
    return _expression("meta", attribute(2, _number(key)), attribute(1, _number(_REGISTER))) + _equal(value)


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        attribute(1, _number(_REGISTER)),
        attribute(2, _number(base)),
        attribute(3, _number(offset)),
        attribute(4, _number(length)),
    )


def _masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        attribute(1, _number(_REGISTER)),
        attribute(2, _number(_REGISTER)),
        attribute(3, _number(len(mask))),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def _protocol(number: int) -> bytes:
    return _meta(_META_L4PROTO, bytes((number,)))


def _port(protocol: int, port: int) -> bytes:
    return _protocol(protocol) + _payload(_TRANSPORT_HEADER, 2, 2) + _equal(struct.pack("!H", port))


def _to(address: str, bits: int | None = None) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    rule = _meta(_META_NFPROTO, bytes((_NFPROTO[family],))) + _payload(_NETWORK_HEADER, _DESTINATION[family], len(packed))
    if bits is not None:
        size = 8 * len(packed)
        rule += _masked(((1 << size) - (1 << size - bits)).to_bytes(len(packed), "big"))
    return rule + _equal(packed)


def _from_interface(name: str) -> bytes:
    return _meta(_META_IIFNAME, name.encode().ljust(16, b"\0"))


def _redirected() -> bytes:
    """Match packets of connections whose destination was rewritten, in both directions."""
    bit = struct.pack("=I", _IPS_DST_NAT)
    not_zero = _expression("cmp", attribute(1, _number(_REGISTER)), attribute(2, _number(1)), nested(3, attribute(1, bytes(4))))
    return _expression("ct", attribute(2, _number(_CT_STATUS)), attribute(1, _number(_REGISTER))) + _masked(bit) + not_zero


def _verdict(code: int) -> bytes:
    return _expression("immediate", attribute(1, _number(_VERDICT)), nested(2, nested(2, attribute(1, _number(code)))))


def _redirect(port: int) -> bytes:
    value = nested(2, attribute(1, struct.pack("!H", port)))
    return _expression("immediate", attribute(1, _number(_REGISTER)), value) + _expression(
        "redir", attribute(1, _number(_REGISTER))
    )


def _reset() -> bytes:
    return _expression("reject", attribute(1, _number(_REJECT_TCP_RESET)), attribute(2, b"\0"))


def _prohibited() -> bytes:
    return _expression("reject", attribute(1, _number(_REJECT_ICMPX)), attribute(2, bytes((_ADMIN_PROHIBITED,))))


def _table() -> Step:
    return _NEW_TABLE, attribute(1, _string(TABLE))


def _chain(name: str, kind: str, hook: int, priority: int, policy: int) -> Step:
    return _NEW_CHAIN, (
        attribute(1, _string(TABLE))
        + attribute(3, _string(name))
        + nested(4, attribute(1, _number(hook)), attribute(2, _number(priority)))
        + attribute(5, _number(policy))
        + attribute(7, _string(kind))
    )


def _rule(chain: str, *expressions: bytes) -> Step:
    return _NEW_RULE, attribute(1, _string(TABLE)) + attribute(2, _string(chain)) + nested(4, *expressions)


def sandbox_rules(ports: Ports, own: tuple[str, ...]) -> list[Step]:
    """Make the rules for a namespace in which the program itself runs.

    All TCP goes to the proxy, and DNS by UDP; everything else that would leave is refused at once, so that programs fall back
    instead of waiting. The program's own servers, on loopback and on the addresses *own*, are its own business.
    """
    home = [_to("127.0.0.0", 8), _to("::1"), *map(_to, own)]
    return [
        _table(),
        _chain("redirect", "nat", _OUTPUT, -100, _ACCEPT),
        # Ahead of loopback, where many systems say that their resolver is.
        _rule("redirect", _port(_UDP, _DNS), _redirect(ports.dns)),
        _rule("redirect", _port(_TCP, _DNS), _redirect(ports.tcp)),
        *(_rule("redirect", address, _verdict(_RETURN)) for address in home),
        _rule("redirect", _protocol(_TCP), _redirect(ports.tcp)),
        _chain("guard", "filter", _OUTPUT, 0, _DROP),
        _rule("guard", _redirected(), _verdict(_ACCEPT)),
        # A connection made to the proxy's own port has no destination of its own.
        _rule("guard", _port(_TCP, ports.tcp), _reset()),
        _rule("guard", _port(_UDP, ports.dns), _verdict(_DROP)),
        *(_rule("guard", address, _verdict(_ACCEPT)) for address in home),
        _rule("guard", _protocol(_TCP), _reset()),
        _rule("guard", _protocol(_UDP), _prohibited()),
    ]


def gateway_rules(ports: Ports, interface: str) -> list[Step]:
    """Make the rules for a namespace that receives a guest's packets by *interface*, and has no other way out to send them to.

    The refusals stand in prerouting: without forwarding, other packets vanish before any later hook, and a guest that isn't told
    waits. Neighbour discovery is let through, without which IPv6 has no neighbours.
    """
    guest = _from_interface(interface)
    icmpv6 = _protocol(socket.IPPROTO_ICMPV6) + _payload(_TRANSPORT_HEADER, 0, 1)
    return [
        _table(),
        _chain("redirect", "nat", _PREROUTING, -100, _ACCEPT),
        _rule("redirect", guest, _port(_UDP, _DNS), _redirect(ports.dns)),
        _rule("redirect", guest, _protocol(_TCP), _redirect(ports.tcp)),
        _chain("guard", "filter", _PREROUTING, -90, _ACCEPT),
        _rule("guard", guest, _redirected(), _verdict(_ACCEPT)),
        *(_rule("guard", guest, icmpv6, _equal(bytes((kind,))), _verdict(_ACCEPT)) for kind in (135, 136)),
        _rule("guard", guest, _protocol(_TCP), _reset()),
        _rule("guard", guest, _protocol(_UDP), _prohibited()),
        _rule("guard", guest, _verdict(_DROP)),
        _chain("forward", "filter", _FORWARD, 0, _DROP),
    ]


def transaction(steps: list[Step]) -> tuple[bytes, set[int]]:
    """Encode *steps* as one transaction, which fails as a whole if the table is there already.

    Returns:
        The datagram, and the numbers of the messages that will be acknowledged.
    """
    header = struct.pack("!BBH", _INET, 0, 0)
    boundary = struct.pack("!BBH", 0, 0, _SUBSYSTEM)
    parts = [message(_BATCH_BEGIN, REQUEST, 0, boundary)]
    for sequence, (kind, payload) in enumerate(steps, 1):
        # Without APPEND a rule would go before those already there.
        flags = REQUEST | ACK | CREATE | {_NEW_TABLE: EXCLUSIVE, _NEW_RULE: APPEND}.get(kind, 0)
        parts.append(message(kind, flags, sequence, header + payload))
    parts.append(message(_BATCH_END, REQUEST, len(steps) + 1, boundary))
    return b"".join(parts), set(range(1, len(steps) + 1))
