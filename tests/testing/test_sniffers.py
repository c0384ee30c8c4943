"""The sniffer check passes the built-in ones and an author's sample, and catches each way to be wrong."""

from __future__ import annotations

import pytest

from sbxproxy.testing import check_sniffer, client_hello
from sbxproxy.wire.postgres import sniff_postgres
from sbxproxy.wire.result import Hint, Sniffed
from sbxproxy.wire.sniff import sniff_http
from sbxproxy.wire.tls import sniff_tls

BANNER = b"SSH-2.0-OpenSSH_9.9\r\n"


def sniff_ssh(data: bytes) -> Sniffed | Hint:
    """A whole sniffer in a few lines: RFC 4253 section 4.2."""
    start = b"SSH-"
    if data[: len(start)] != start[: len(data)]:
        return Hint.NOT_MINE
    if len(data) < len(start):
        return Hint.NEED_MORE
    return Sniffed("ssh")


SAMPLES = {BANNER: Sniffed("ssh"), b"SS": Hint.NEED_MORE, b"GET / HTTP/1.1\r\n\r\n": Hint.NOT_MINE, b"\0": Hint.NOT_MINE}


def test_an_authors_sniffer_passes():
    check_sniffer(sniff_ssh, SAMPLES)


def test_the_built_in_ones_pass():
    hello = client_hello("api.example.com", alpn=[b"h2"], record_size=64)
    tls = Sniffed("tls", b"api.example.com", (b"h2",))
    check_sniffer(sniff_tls, {hello: tls, hello[:-1]: Hint.NEED_MORE, BANNER: Hint.NOT_MINE})
    check_sniffer(sniff_http, {b"GET / HTTP/1.1\r\n": Sniffed("http"), b"PO": Hint.NEED_MORE, hello: Hint.NOT_MINE})
    check_sniffer(sniff_postgres, {BANNER: Hint.NOT_MINE})


def wrong_answer(data: bytes) -> Sniffed | Hint:
    answer = sniff_ssh(data)
    return Sniffed("tls") if isinstance(answer, Sniffed) else answer


def one_segment(data: bytes) -> Sniffed | Hint:
    """Takes a short first segment for another protocol: the answer depends on how TCP cut the bytes."""
    return Sniffed("ssh") if data.startswith(b"SSH-") else Hint.NOT_MINE


def changes_its_mind(data: bytes) -> Sniffed | Hint:
    return sniff_ssh(data) if b"\xff" not in data else Hint.NOT_MINE


def raises(data: bytes) -> Sniffed | Hint:
    if sniff_ssh(data) is Hint.NOT_MINE:
        data.decode("ascii")
    return sniff_ssh(data)


def returns_none(data: bytes) -> Sniffed | Hint | None:
    answer = sniff_ssh(data)
    return None if answer is Hint.NOT_MINE else answer


def text_name(data: bytes) -> Sniffed | Hint:
    answer = sniff_ssh(data)
    return Sniffed("ssh", "api.example.com") if isinstance(answer, Sniffed) else answer


def no_wire(data: bytes) -> Sniffed | Hint:
    answer = sniff_ssh(data)
    return Sniffed("") if isinstance(answer, Sniffed) else answer


def list_of_alpn(data: bytes) -> Sniffed | Hint:
    answer = sniff_ssh(data)
    return Sniffed("ssh", alpn=[]) if isinstance(answer, Sniffed) else answer


class Remembers:
    """Answers by what it was asked before."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data: bytes) -> Sniffed | Hint:
        self.calls += 1
        return sniff_ssh(data) if self.calls < 500 else Hint.NOT_MINE


@pytest.mark.parametrize(
    ("sniffer", "complaint"),
    [
        (wrong_answer, "instead of"),
        (one_segment, "when more bytes had come"),
        (changes_its_mind, "when more bytes had come"),
        (raises, "raised UnicodeDecodeError"),
        (returns_none, "NoneType"),
        (text_name, "server_name"),
        (no_wire, "name the protocol"),
        (list_of_alpn, "alpn"),
        (Remembers(), "answered"),
    ],
)
def test_a_bad_one_is_caught(sniffer, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_sniffer(sniffer, SAMPLES)


def test_a_sniffer_that_remembers_is_caught_by_asking_again():
    seen = set()

    def sniffer(data: bytes) -> Sniffed | Hint:
        again = data in seen
        seen.add(data)
        return Hint.NOT_MINE if again else sniff_ssh(data)

    with pytest.raises(AssertionError, match="at first and"):
        check_sniffer(sniffer, {BANNER: Sniffed("ssh")}, mutations=0)


@pytest.mark.parametrize("samples", [{}, {b"": Hint.NEED_MORE}])
def test_samples_that_check_nothing_are_refused(samples):
    with pytest.raises(ValueError, match="sample"):
        check_sniffer(sniff_ssh, samples)


def test_what_does_not_fit_the_slot_is_a_type_error():
    async def sniffer(data):
        return Hint.NOT_MINE

    with pytest.raises(TypeError, match="plain function"):
        check_sniffer(sniffer, SAMPLES)
