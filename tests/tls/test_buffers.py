"""``Buffers``: what goes in and what comes out, with nobody waiting for anything."""

from __future__ import annotations

import random

import pytest
from OpenSSL import SSL

from sbxproxy.tls.buffers import SLICE, Buffers
from support.certs import Leaf, Root
from support.tls_pairs import NAME, client_context


class End:
    """One end of a connection: OpenSSL, and the buffers that it works between."""

    def __init__(self, context: SSL.Context, *, server_side: bool) -> None:
        self.connection = SSL.Connection(context, None)
        (self.connection.set_accept_state if server_side else self.connection.set_connect_state)()
        self.buffers = Buffers(self.connection)
        self.shaken = False

    def shake(self) -> bytes:
        """Go on with the handshake; returns what it makes for the peer."""
        try:
            self.connection.do_handshake()
            self.shaken = True
        except SSL.WantReadError:
            pass
        return self.buffers.take()

    def say(self, data: bytes) -> bytes:
        self.buffers.write(memoryview(data))
        return self.buffers.take()

    def end(self) -> bytes:
        self.connection.shutdown()
        return self.buffers.take()


@pytest.fixture(scope="module")
def leaf() -> Leaf:
    return Root().leaf(NAME)


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["tls1.2", "tls1.3"])
def ends(request, leaf) -> tuple[End, End]:
    """A client and a server through their handshake; the server's tickets have been read."""
    client = End(client_context(tls=request.param), server_side=False)
    server = End(leaf.context(tls=request.param), server_side=True)
    while not (client.shaken and server.shaken):
        if flight := client.shake():
            server.buffers.feed(flight)
        if flight := server.shake():
            client.buffers.feed(flight)
    assert client.buffers.read(1) is None
    return client, server


def test_what_was_not_sent_yet_is_neither_an_end_nor_an_error(ends):
    client, server = ends
    record = server.say(b"hello")
    for number in range(len(record)):
        assert client.buffers.read(100) is None
        client.buffers.feed(record[number : number + 1])
    assert client.buffers.read(100) == b"hello"
    assert client.buffers.read(100) is None


def test_many_records_come_in_one_read(ends):
    """A bulk transfer isn't cut into a step of the event loop per record."""
    client, server = ends
    data = random.Random(1).randbytes(50_000)
    client.buffers.feed(server.say(data))
    assert client.buffers.read(65_536) == data


def test_a_read_gives_no_more_than_is_asked_for_and_the_rest_later(ends):
    client, server = ends
    client.buffers.feed(server.say(b"y" * 50_000))
    assert [len(client.buffers.read(limit)) for limit in (10, 40_000, 65_536)] == [10, 40_000, 9_990]
    assert client.buffers.read(1) is None


@pytest.mark.parametrize("seed", range(8))
def test_however_the_ciphertext_is_cut_all_of_it_arrives(ends, seed):
    """The guess whether another record is there may be wrong, and costs no data then."""
    client, server = ends
    dice = random.Random(seed)
    data = dice.randbytes(100_000)
    ciphertext = b"".join(server.say(data[start : start + 7000]) for start in range(0, len(data), 7000))
    got = b""
    while ciphertext:
        size = dice.choice((1, 22, 23, 500, 7022, 30_000))
        client.buffers.feed(ciphertext[:size])
        ciphertext = ciphertext[size:]
        while (plaintext := client.buffers.read(dice.choice((1, 6999, 7000, 65_536)))) is not None:
            assert plaintext
            got += plaintext
    assert got == data


def test_what_came_before_a_close_notify_is_given_and_then_the_end_for_ever(ends):
    client, server = ends
    client.buffers.feed(server.say(b"a" * 20_000) + server.end())
    assert client.buffers.read(65_536) == b"a" * 20_000
    for _again in range(3):
        assert client.buffers.read(65_536) == b""
    client.buffers.feed(b"not even TLS")
    assert client.buffers.read(65_536) == b""


def test_what_came_before_a_damaged_record_is_given_and_then_the_same_error_for_ever(ends):
    """OpenSSL would have other words the second time, or none."""
    client, server = ends
    good, bad, after = server.say(b"good " * 4000), server.say(b"bad"), server.say(b"after")
    client.buffers.feed(good + bad[:-1] + bytes([bad[-1] ^ 1]) + after)
    assert client.buffers.read(65_536) == b"good " * 4000
    errors = []
    for _again in range(3):
        with pytest.raises(SSL.Error) as caught:
            client.buffers.read(65_536)
        errors.append(caught.value)
    assert errors[0] is errors[1] is errors[2]
    assert "bad record mac" in repr(errors[0]) or "decryption failed" in repr(errors[0])


def test_all_that_was_made_is_taken_however_much_it_is(ends):
    client, server = ends
    assert server.buffers.take() == b""
    ciphertext = server.say(bytes(3 * SLICE))
    assert len(ciphertext) > 3 * SLICE
    assert server.buffers.take() == b""
    client.buffers.feed(ciphertext)
    assert client.buffers.read(4 * SLICE) == bytes(3 * SLICE)


def test_what_is_held_goes_out_in_front_of_the_next_and_not_by_itself(ends):
    client, server = ends
    server.buffers.held = server.say(b"first, ")
    assert server.buffers.take() == b""
    client.buffers.feed(server.say(b"second"))
    assert server.buffers.held == b""
    assert client.buffers.read(100) == b"first, second"


def test_nothing_can_be_written_before_the_handshake(leaf):
    """It would wait for the peer; here that is an error, and nothing of it is kept for later."""
    server = End(leaf.context(), server_side=True)
    with pytest.raises(SSL.WantReadError):
        server.buffers.write(memoryview(b"x"))
    assert server.buffers.take() == b""
