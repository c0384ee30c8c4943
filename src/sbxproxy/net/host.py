"""Tells whether an address is one of this host's own.

The kernel's routing table is asked, which costs one datagram to the kernel itself and sends nothing: an
interface list misses whole local ranges (127.0.0.0/8, a ``local`` route), and the source address chosen for a
connected UDP socket is another one for an interface's second address. Whatever stays unclear counts as own.
"""

from __future__ import annotations

__all__ = ["is_host_address"]

import errno
import socket
import struct
import sys
import time

from sbxproxy.address import IPAddress, forms

KEEP = 1.0
"""Seconds that an answer is reused; an address new on an interface is noticed that much later."""

MOST_KEPT = 1024

_kept: dict[IPAddress, tuple[float, bool]] = {}


def is_host_address(address: IPAddress) -> bool:
    """Tell whether connecting to *address*, or to an IPv4 address inside it, would reach this very host.

    It means the network namespace of this process. True is also the answer where the kernel does not give a
    clear one.
    """
    now = time.monotonic()
    kept = _kept.get(address)
    if kept is not None and now < kept[0]:
        return kept[1]
    own = any(_is_own(form) for form in forms(address))
    if len(_kept) >= MOST_KEPT:
        _kept.clear()
    _kept[address] = (now + KEEP, own)
    return own


def _is_own(address: IPAddress) -> bool:
    if address.is_unspecified or address.is_loopback:  # 0.0.0.0 connects to this host too
        return True
    answer = _ask_routes(address) if sys.platform == "linux" else None
    return _can_bind(address) if answer is None else answer


# From linux/netlink.h and linux/rtnetlink.h.
_NLMSG_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTATTR = struct.Struct("=HH")  # length, type
_NLMSG_ERROR = 2
_RTM_NEWROUTE = 24
_RTM_GETROUTE = 26
_NLM_F_REQUEST = 1
_RTA_DST = 1
_RTN_LOCAL = 2
_RTN_ANYCAST = 4

_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


def _ask_routes(address: IPAddress) -> bool | None:
    """Ask how a packet to *address* would be routed (RTM_GETROUTE); ``None`` if there is no clear answer."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    body = _RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _RTATTR.pack(_RTATTR.size + len(packed), _RTA_DST) + packed
    header = _NLMSG_HEADER.pack(_NLMSG_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as kernel:
            kernel.connect((0, 0))  # so that only the kernel's answer is received
            kernel.send(header + body)
            reply = kernel.recv(8192)  # the kernel has answered by the time that send returns
    except OSError:
        return None
    if len(reply) < _NLMSG_HEADER.size + 4:
        return None
    _, kind, _, _, _ = _NLMSG_HEADER.unpack_from(reply)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, _NLMSG_HEADER.size)
        return False if -code in _NO_ROUTE else None
    if kind != _RTM_NEWROUTE or len(reply) < _NLMSG_HEADER.size + _RTMSG.size:
        return None
    return reply[_NLMSG_HEADER.size + 7] in {_RTN_LOCAL, _RTN_ANYCAST}


def _can_bind(address: IPAddress) -> bool:
    """Tell whether a socket may be bound to *address*; only "not mine" from the kernel is a no."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True
