"""PostgreSQL's way into TLS, through a sandbox, with both ends in the test's hands."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy import Limits
from sbxproxy.connection.postgres import offer_tls, request_tls
from sbxproxy.errors import ClientProtocolError, UpstreamError
from sbxproxy.net.peek import peekable
from sbxproxy.testing.hello import client_hello
from sbxproxy.wire.postgres import GSSENC_REQUEST, SSL_REQUEST
from support.talk import until_end
from support.wire_box import ALERT_ACCESS_DENIED, Box, open_box

NAME = "db.example.com"
ADDRESS = "1.1.0.1"
ALLOW = {"allow": [NAME]}
NAMES = {NAME: ADDRESS, "evil.example": "1.1.0.2"}
SET = [{"transform": [{"headers": {"authorization": "Bearer canary"}}]}]
HELLO = client_hello(NAME, alpn=())
DIRECT = client_hello(NAME, alpn=(b"postgresql",))
STARTUP = struct.pack(">II", 23, 196608) + b"user\0someone\0\0"
CANCEL = struct.pack(">IIII", 16, 80877102, 7, 8)
ALERT_INTERNAL_ERROR = bytes.fromhex("15030300020250")
TARGETS = [NAME, "1.1.0.9"]


async def hear(stream: Any, count: int) -> bytes:
    heard = b""
    with trio.fail_after(30):
        while len(heard) < count:
            chunk = await stream.receive_some(count - len(heard))
            assert chunk, f"ended after {heard!r}"
            heard += chunk
    return heard


async def upstream_of(box: Box, number: int = 0) -> Any:
    with trio.fail_after(30):
        while len(box.wires.upstreams) <= number:
            await trio.sleep(0)
    return box.wires.upstreams[number]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("gssapi", [False, True])
@pytest.mark.parametrize("policy", [ALLOW, {"allow": {NAME: SET}}])
async def test_p6_p12_c9_an_allowed_name_gets_through_both_negotiations(target: str, gssapi: bool, policy: object) -> None:
    """To the name's address at the port asked for; the hello and what follows pass verbatim, rules or not."""
    async with open_box(policy, NAMES) as box:
        client = box.open(target, 6432)
        if gssapi:
            await client.send_all(GSSENC_REQUEST)
            assert await hear(client, 1) == b"N"
        await client.send_all(SSL_REQUEST)
        assert await hear(client, 1) == b"S"
        await client.send_all(HELLO[:50])
        await box.settle()
        assert box.wires.dialled == []
        await client.send_all(HELLO[50:])
        server = await upstream_of(box)
        assert await hear(server, 8) == SSL_REQUEST
        await box.settle()
        await server.send_all(b"S")
        assert await hear(server, len(HELLO)) == HELLO
        await server.send_all(b"server's own")
        assert await hear(client, 12) == b"server's own"
        await client.send_all(b"client's own")
        assert await hear(server, 12) == b"client's own"
        assert box.wires.dialled == [((ADDRESS,), 6432)]
        await client.send_eof()
        await server.send_eof()
        await box.settle()
        (closed,) = box.closed
        assert (closed.wire, closed.server_name, closed.reason, closed.ended) == ("postgres-tls", NAME, "domain-allowed", "eof")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "first", [STARTUP, CANCEL, STARTUP.replace(b"\0\x03\0\0", b"\0\x03\x27\x0f"), STARTUP.replace(b"\0\x03\0\0", b"\0\x02\0\0")]
)
@pytest.mark.parametrize("gssapi", [False, True])
async def test_p4_p5_p8_plain_text_is_refused_in_postgres_own_words(target: str, first: bytes, gssapi: bool) -> None:
    """FATAL, a code, and a hint naming the line that would allow it; the server never hears of it."""
    async with open_box(ALLOW, NAMES) as box:
        client = box.open(target, 5432)
        if gssapi:
            await client.send_all(GSSENC_REQUEST)
            assert await hear(client, 1) == b"N"
        await client.send_all(first)
        answer, _ = await until_end(client)
        assert answer[:1] == b"E"
        assert int.from_bytes(answer[1:5], "big") == len(answer) - 1
        fields = answer[5:].split(b"\0")
        assert {b"SFATAL", b"VFATAL", b"C28000"} <= set(fields)
        assert b"[postgres-plaintext]" in answer
        hint = next(field for field in fields if field.startswith(b"H"))
        assert b"sslmode=require" in hint
        assert b'"subnets": {"allow": ["1.1.0.' in hint
        await client.aclose()
        await box.settle()
        assert (box.closed[0].wire, box.closed[0].reason, box.wires.dialled) == ("postgres", "postgres-plaintext", [])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (client_hello("evil.example"), {NAME: "sni-mismatch", "1.1.0.9": "domain-not-allowed"}),
        (client_hello(None), "no-sni"),
        (STARTUP, "bad-client-hello"),
        (SSL_REQUEST, "bad-client-hello"),
        (GSSENC_REQUEST, "bad-client-hello"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad-client-hello"),
        (HELLO[:5] + b"\xff" * 40, "bad-client-hello"),
    ],
)
async def test_p11_p12_the_hello_is_judged_as_https_is(target: str, hello: bytes, reason: Any) -> None:
    """And told so inside the handshake, which is all that a client listens for after its promise."""
    async with open_box(ALLOW, NAMES) as box:
        client = box.open(target, 5432)
        await client.send_all(SSL_REQUEST)
        assert await hear(client, 1) == b"S"
        await client.send_all(hello)
        answer, _ = await until_end(client)
        assert answer == ALERT_ACCESS_DENIED
        await client.aclose()
        await box.settle()
        assert box.closed[0].reason == (reason if isinstance(reason, str) else reason[target])
        assert (box.closed[0].wire, box.wires.dialled) == ("postgres-tls", [])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "said",
    [
        SSL_REQUEST + b"Q",
        SSL_REQUEST + HELLO,
        SSL_REQUEST + STARTUP,
        GSSENC_REQUEST + SSL_REQUEST,
        GSSENC_REQUEST + b"\0",
    ],
)
async def test_p1_nothing_may_stand_behind_a_request(target: str, said: bytes) -> None:
    """It would be plain text where the other end looks for what TLS protects; it gets no answer at all."""
    async with open_box(ALLOW, NAMES) as box:
        assert await box.say(target, said, 5432) == b""
        assert (box.closed[0].reason, box.wires.dialled) == ("bad-startup", [])


async def test_p6_gssapi_is_refused_once_only() -> None:
    async with open_box(ALLOW, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(GSSENC_REQUEST)
        assert await hear(client, 1) == b"N"
        await client.send_all(GSSENC_REQUEST)
        assert (await until_end(client))[0] == b""
        await client.aclose()
        await box.settle()
        assert (box.closed[0].reason, box.wires.dialled) == ("bad-startup", [])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "said", [struct.pack(">II", 9, 80877103), struct.pack(">II", 8, 1234 << 16 | 5681), struct.pack(">II", 9, 80877104)]
)
async def test_p3_requests_of_other_lengths_are_refused_as_malformed(target: str, said: bytes) -> None:
    async with open_box(ALLOW, NAMES) as box:
        answer = await box.say(target, said + b"\0", 5432)
        assert answer[:1] == b"E"
        assert b"C08P01\0" in answer
        assert (box.closed[0].reason, box.wires.dialled) == ("bad-startup", [])


@pytest.mark.parametrize("answer", [b"N", b"E", b"EFATAL", b"G", b"SS", b"S\x16\x03", b"HTTP/1.1 400", b"\0"])
async def test_p2_p10_p13_a_server_that_does_not_agree_ends_it(answer: bytes) -> None:
    """With an alert, since the client has its promise; not a byte of the client's ever goes out in plain text."""
    async with open_box({"allow": {NAME: SET}}, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(SSL_REQUEST)
        assert await hear(client, 1) == b"S"
        await client.send_all(HELLO)
        server = await upstream_of(box)
        assert await hear(server, 8) == SSL_REQUEST
        await server.send_all(answer)
        assert (await until_end(client))[0] == ALERT_INTERNAL_ERROR
        assert (await until_end(server))[0] == b""
        await client.aclose()
        await box.settle()
        reason = "upstream-no-tls" if answer == b"N" else "upstream-postgres"
        assert (box.closed[0].decision, box.closed[0].reason) == ("error", reason)


async def test_p10_a_server_that_says_nothing_is_given_the_time_of_a_handshake(autojump_clock: trio.testing.MockClock) -> None:
    async with open_box(ALLOW, NAMES, limits=Limits(handshake=7)) as box:
        began = trio.current_time()
        client = box.open(NAME, 5432)
        await client.send_all(SSL_REQUEST)
        assert await hear(client, 1) == b"S"
        await client.send_all(HELLO)
        assert (await until_end(client))[0] == ALERT_INTERNAL_ERROR
        assert trio.current_time() - began == pytest.approx(7, abs=1.1)
        await client.aclose()
        await trio.sleep(2)
        assert box.closed[0].reason == "upstream-postgres"


async def test_p10_a_server_that_closes_ends_it() -> None:
    async with open_box(ALLOW, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(SSL_REQUEST)
        await hear(client, 1)
        await client.send_all(HELLO)
        server = await upstream_of(box)
        await server.aclose()
        assert (await until_end(client))[0] == ALERT_INTERNAL_ERROR


@pytest.mark.parametrize("said", [[b"\0\0\0\x08"], [SSL_REQUEST, b""], [GSSENC_REQUEST], [SSL_REQUEST, HELLO[:30]]])
async def test_p9_a_slow_start_up_has_one_deadline_in_all(said: list[bytes], autojump_clock: trio.testing.MockClock) -> None:
    """A byte, or an answer, now and then doesn't push it."""
    async with open_box(ALLOW, NAMES, limits=Limits(first_bytes=8)) as box:
        began = trio.current_time()
        client = box.open(NAME, 5432)
        for part in said:
            await trio.sleep(3)
            await client.send_all(part)
        await until_end(client)
        assert trio.current_time() - began == pytest.approx(8, abs=1.1)
        await client.aclose()
        await trio.sleep(2)
        assert (box.closed[0].reason, box.wires.dialled) == ("first-bytes-timeout", [])


@pytest.mark.parametrize(
    "policy", ["allow-all", {"subnets": {"allow": ["1.1.0.0/24"]}}, {"allow": {NAME: SET}, "subnets": {"allow": ["1.1.0.0/24"]}}]
)
@pytest.mark.parametrize("said", [STARTUP, CANCEL, SSL_REQUEST, GSSENC_REQUEST, SSL_REQUEST + HELLO, DIRECT])
@pytest.mark.parametrize("target", TARGETS)
async def test_p4_p8_by_range_and_in_allow_all_every_byte_passes_from_the_first(policy: object, said: bytes, target: str) -> None:
    """No answer of our own."""
    names = {NAME: ADDRESS}
    async with open_box(policy, names) as box:
        client = box.open(target, 5432)
        await client.send_all(said)
        server = await upstream_of(box)
        assert await hear(server, len(said)) == said
        await box.settle()
        await server.send_all(b"N")
        assert await hear(client, 1) == b"N"


async def test_p7_direct_tls_passes_verbatim_without_a_preamble() -> None:
    async with open_box(ALLOW, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(DIRECT)
        assert await hear(await upstream_of(box), len(DIRECT)) == DIRECT
        assert len(box.wires.upstreams) == 1


async def test_p7_c9_past_rules_the_server_must_show_first_that_it_is_postgres() -> None:
    """The word is the client's; without proof it would get any HTTPS client past forwarding and inspection."""
    async with open_box({"allow": {NAME: SET}}, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(DIRECT)
        server, witness = await upstream_of(box), await upstream_of(box, 1)
        assert await hear(witness, 8) == SSL_REQUEST
        await witness.send_all(b"S")
        assert (await until_end(witness))[0] == b""
        assert await hear(server, len(DIRECT)) == DIRECT
        assert box.wires.dialled == [((ADDRESS,), 5432)] * 2


async def test_p7_c9_a_web_server_does_not_show_it() -> None:
    async with open_box({"allow": {NAME: SET}}, NAMES) as box:
        client = box.open(NAME, 443)
        await client.send_all(DIRECT)
        server, witness = await upstream_of(box), await upstream_of(box, 1)
        assert await hear(witness, 8) == SSL_REQUEST
        await witness.send_all(b"\x15\x03\x01\0\x02\x02\x46")
        assert (await until_end(client))[0] == ALERT_INTERNAL_ERROR
        assert (await until_end(server))[0] == b""
        await client.aclose()
        await box.settle()
        assert box.closed[0].reason == "upstream-postgres"


async def test_p7_rules_that_come_later_cut_what_was_never_proven() -> None:
    """A session after the preamble stays: its server has answered as PostgreSQL does."""
    async with open_box(ALLOW, NAMES) as box:
        direct = box.open(NAME, 5432)
        await direct.send_all(DIRECT)
        await hear(await upstream_of(box), len(DIRECT))
        told = box.open(NAME, 5432)
        await told.send_all(SSL_REQUEST)
        await hear(told, 1)
        await told.send_all(HELLO)
        server = await upstream_of(box, 1)
        await hear(server, 8)
        await box.settle()
        await server.send_all(b"S")
        await hear(server, len(HELLO))
        changed = await box.sandbox.update_policy({"allow": {NAME: SET}})
        assert (len(changed.cut), changed.kept) == (1, 1)
        await told.send_all(b"still there")
        assert await hear(server, 11) == b"still there"
        changed = await box.sandbox.update_policy({"allow": ["other.example"]})
        assert (len(changed.cut), changed.kept) == (1, 0)
        assert (await until_end(server))[0] == b""


@pytest.mark.parametrize("policy", ["deny-all", {"allow": ["other.example"]}])
@pytest.mark.parametrize("said", [STARTUP, CANCEL])
async def test_p4_a_target_that_is_denied_is_told_so_in_postgres_own_words(policy: object, said: bytes) -> None:
    async with open_box(policy, NAMES) as box:
        answer = await box.say(NAME, said, 5432)
        assert answer[:1] == b"E"
        assert b"C28000\0" in answer
        assert box.wires.dialled == []
        assert box.closed[0].decision == "deny"


@pytest.mark.parametrize("policy", ["deny-all", {"allow": ["other.example"]}])
async def test_p4_a_denied_target_is_told_inside_the_handshake_to_who_asks_for_tls(policy: object) -> None:
    """libpq shows the alert, but hides the text of an error that comes in place of the promise."""
    async with open_box(policy, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(SSL_REQUEST)
        assert await hear(client, 1) == b"S"
        await client.send_all(HELLO)
        assert (await until_end(client))[0] == ALERT_ACCESS_DENIED
        assert box.wires.dialled == []
        await client.aclose()
        await box.settle()
        assert (box.closed[0].wire, box.closed[0].server_name) == ("postgres-tls", NAME)


async def test_p4_a_denied_client_that_waits_for_its_server_is_not_kept_waiting(autojump_clock: trio.testing.MockClock) -> None:
    async with open_box("deny-all", NAMES) as box:
        began = trio.current_time()
        client = box.open(NAME, 22)
        await until_end(client)
        assert trio.current_time() - began < 1


async def test_a_policy_that_opens_up_meanwhile_still_asks_the_server_for_what_was_promised() -> None:
    """The client waits for TLS by then, whatever allows it in the end."""
    async with open_box(ALLOW, NAMES) as box:
        client = box.open("1.1.0.9", 5432)
        await client.send_all(SSL_REQUEST)
        await hear(client, 1)
        await box.sandbox.update_policy("allow-all")
        await client.send_all(HELLO)
        server = await upstream_of(box)
        assert await hear(server, 8) == SSL_REQUEST
        await box.settle()
        await server.send_all(b"S")
        assert await hear(server, len(HELLO)) == HELLO
        assert box.wires.dialled == [(("1.1.0.9",), 5432)]


async def test_a_policy_that_closes_meanwhile_denies() -> None:
    async with open_box(ALLOW, NAMES) as box:
        client = box.open(NAME, 5432)
        await client.send_all(SSL_REQUEST)
        await hear(client, 1)
        await box.sandbox.update_policy("deny-all")
        await client.send_all(HELLO)
        assert (await until_end(client))[0] == ALERT_ACCESS_DENIED
        assert box.wires.dialled == []


async def test_listening_for_an_hour_is_within_the_idle_rules(autojump_clock: trio.testing.MockClock) -> None:
    """LISTEN waits without a byte for what may never come; only the operator's idle limit ends it."""
    for idle, stays in ((None, True), (7200.0, True), (1800.0, False)):
        async with open_box(ALLOW, NAMES, limits=Limits(idle=idle)) as box:
            began = trio.current_time()
            client = box.open(NAME, 5432)
            await client.send_all(SSL_REQUEST)
            await hear(client, 1)
            await client.send_all(HELLO)
            server = await upstream_of(box)
            await hear(server, 8)
            await box.settle()
            await server.send_all(b"S")
            await hear(server, len(HELLO))
            if stays:
                await trio.sleep(3600)
                await server.send_all(b"notification")
                assert await hear(client, 12) == b"notification"
                assert trio.current_time() - began == pytest.approx(3600, abs=5)
            else:
                await until_end(client)
                assert trio.current_time() - began == pytest.approx(1800, abs=40)
                await trio.sleep(2)
                assert box.closed[0].ended == "idle"


# -- the two halves alone


class Scripted(trio.abc.Stream):
    """A peer that sends *parts*, one a read, and notes what it hears."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = [*parts]
        self.heard = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.parts:
            return b""
        part = self.parts.pop(0)
        if max_bytes is not None and len(part) > max_bytes:
            self.parts.insert(0, part[max_bytes:])
            part = part[:max_bytes]
        return part

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.heard += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@given(
    st.lists(
        st.sampled_from([SSL_REQUEST, GSSENC_REQUEST, STARTUP, CANCEL, HELLO, b"", b"\0", b"\0\0\0\x08", b"junk"]), max_size=5
    ),
    st.data(),
)
def test_p1_p6_any_conversation_gets_at_most_one_no_and_one_yes(said: list[bytes], data: st.DataObject) -> None:
    """However it is cut; and a promise is the last thing that is said."""
    whole = b"".join(said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True) if start < end]
    peer = Scripted(*parts)
    client = peekable(peer)

    async def main() -> bool | None:
        try:
            return await offer_tls(client)
        except ClientProtocolError:
            return None

    promised = trio.run(main)
    assert peer.heard in {b"", b"N", b"S", b"NS"}
    assert peer.heard.endswith(b"S") is (promised is True)
    if promised:
        assert client.peeked == b""
        assert whole.startswith(SSL_REQUEST if peer.heard == b"S" else GSSENC_REQUEST + SSL_REQUEST)
    if promised is False:
        assert len(client.peeked) >= 8


@pytest.mark.parametrize("end", range(8))
@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
async def test_p9_a_request_that_ends_early_gets_no_answer(request_: bytes, end: int) -> None:
    peer = Scripted(request_[:end])
    with pytest.raises(ClientProtocolError) as caught:
        await offer_tls(peekable(peer))
    assert (caught.value.reason, peer.heard) == ("bad-startup", b"")


@given(st.binary(max_size=6), st.integers(1, 6))
def test_p2_only_a_single_s_is_agreement(answer: bytes, size: int) -> None:
    """As far as it can be told: what comes in a later segment is for the client's TLS to choke on."""
    parts = [answer[at : at + size] for at in range(0, len(answer), size)]

    async def main() -> bool:
        upstream = peekable(Scripted(*parts))
        try:
            await request_tls(upstream, 5)
        except UpstreamError:
            return False
        assert upstream.peeked == b""
        return True

    assert trio.run(main) is bool(parts and parts[0] == b"S")
