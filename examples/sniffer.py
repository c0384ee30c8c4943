"""A sniffer in fifteen lines, and its test without a socket."""

from sbxproxy.testing import check_sniffer
from sbxproxy.wire.result import Hint, Sniffed


def sniff_ssh(data: bytes) -> Sniffed | Hint:
    """Recognise SSH by its version line (RFC 4253 section 4.2)."""
    start = b"SSH-2.0-"
    if data.startswith(start):
        return Sniffed("ssh")
    return Hint.NEED_MORE if start.startswith(data) else Hint.NOT_MINE


check_sniffer(sniff_ssh, {b"SSH-2.0-OpenSSH_9.2\r\n": Sniffed("ssh"), b"GET / HTTP/1.1\r\n": Hint.NOT_MINE})
print("sniffer holds")
