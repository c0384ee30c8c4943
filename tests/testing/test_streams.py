"""Terminators and handlers: real ones pass, and each way to leak or to hang is caught."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from sbxproxy.errors import ClientProtocolError, UpstreamTlsError
from sbxproxy.net import relay
from sbxproxy.stages import TlsTerminator
from sbxproxy.testing import check_handler, check_terminator
from sbxproxy.tls import Authority, TlsStream, UpstreamTls

NAME = "api.example.com"


@pytest.fixture
def authority():
    return Authority(name="sandbox")


@pytest.fixture
def trust(authority, tmp_path):
    roots = tmp_path / "roots.pem"
    roots.write_bytes(authority.certificate_pem)
    trust = UpstreamTls(roots=roots)
    trust.load()  # in a thread it would take all the time that a jumping clock has
    return trust


async def test_the_built_in_terminator_passes_with_real_peers(authority, trust):
    async def client(stream):
        return await trust.connect(stream, NAME)

    async def upstream(stream):
        tls = TlsStream(stream, authority.server_context(NAME), server_side=True)
        await tls.do_handshake()
        return tls

    await check_terminator(TlsTerminator(authority, trust), client=client, upstream=upstream)


class Bent:
    """A terminator whose two methods are the built-in ones', bent by *how*."""

    def __init__(self, how, authority, trust):
        self.how = how
        self.good = TlsTerminator(authority, trust)

    async def accept(self, flow, client):
        return await self.run("accept", client, ClientProtocolError("client-handshake", "no"), self.good.accept, flow, client)

    async def connect(self, flow, upstream, name):
        return await self.run("connect", upstream, UpstreamTlsError("no"), self.good.connect, flow, upstream, name)

    async def run(self, label, stream, error, good, *args):
        if not self.how.startswith(label):
            return await good(*args)
        match self.how.removeprefix(label):
            case " passes anything":
                return stream
            case " raises its own":
                await trio.aclose_forcefully(stream)
                raise KeyError(NAME)
            case " leaves it open":
                raise error
            case " leaves it open when cancelled":
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
                await trio.aclose_forcefully(stream)
                raise error
            case " hangs":
                with trio.CancelScope() as scope:
                    await trio.sleep_forever()
                assert scope


@pytest.mark.parametrize("label", ["accept", "connect"])
@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        (" passes anything", "made no handshake"),
        (" raises its own", "not KeyError"),
        (" leaves it open", "raised and left the stream open"),
        (" leaves it open when cancelled", "cancelled and left the stream open"),
        (" hangs", "longer than 30 s"),
    ],
)
async def test_a_bad_terminator_is_caught(*, label, how, complaint, authority, trust, autojump_clock):
    with pytest.raises(AssertionError, match=rf"terminator\.{label} .*{complaint}"):
        await check_terminator(Bent(label + how, authority, trust))


async def test_a_terminator_that_loses_bytes_is_caught(authority, trust):
    class Lossy(trio.abc.Stream):
        def __init__(self, inner):
            self.inner = inner

        async def send_all(self, data):
            await self.inner.send_all(data)

        async def wait_send_all_might_not_block(self): ...

        async def receive_some(self, max_bytes=None):
            return (await self.inner.receive_some(max_bytes))[:-1]

        async def aclose(self):
            await self.inner.aclose()

    class Terminator(Bent):
        async def accept(self, flow, client):
            return Lossy(await self.good.accept(flow, client))

    async def client(stream):
        return await trust.connect(stream, NAME)

    with pytest.raises(AssertionError, match="lost or changed"):
        await check_terminator(Terminator("", authority, trust), client=client)


async def test_a_real_peer_that_is_refused_is_reported(authority, trust):
    async def client(stream):
        raise OSError("the client's own trouble")

    with pytest.raises(AssertionError, match="real peer failed with"):
        await check_terminator(TlsTerminator(authority, trust), client=client)


async def test_a_peer_that_gets_too_little_is_reported(authority, trust):
    async def client(stream):
        return await trust.connect(stream, NAME)

    class Terminator(Bent):
        async def accept(self, flow, client):
            stream = await self.good.accept(flow, client)
            await stream.aclose()
            near, _far = trio.testing.memory_stream_pair()
            return near

    with pytest.raises(AssertionError, match="ended early"):
        await check_terminator(Terminator("", authority, trust), client=client)


async def test_half_a_terminator_is_a_type_error():
    class Half:
        async def accept(self, flow, client): ...

    with pytest.raises(TypeError, match="connect"):
        await check_terminator(Half())


# -- handlers


def handler(function):
    class Sample:
        async def handle(self, flow, client, upstream):
            await function(flow, client, upstream)

    return Sample()


async def copy_both(flow, client, upstream):
    await relay(client, upstream, idle=None, linger=1, count=SimpleNamespace(bytes_up=0, bytes_down=0))


async def echo(flow, client, upstream):
    async for chunk in client:
        await client.send_all(chunk)


async def test_a_relay_and_an_echo_are_handlers(autojump_clock):
    async def talk(client, upstream):
        await client.send_all(b"question")
        assert await upstream.receive_some() == b"question"
        await upstream.send_all(b"answer")
        assert await client.receive_some() == b"answer"

    await check_handler(handler(copy_both), talk=talk)


async def test_a_handler_that_ignores_the_clients_end_is_caught(autojump_clock):
    async def deaf(flow, client, upstream):
        async for _ in client:
            pass
        await trio.sleep_forever()

    with pytest.raises(AssertionError, match="both ends are closed, took longer"):
        await check_handler(handler(deaf))


async def test_a_handler_that_waits_for_the_other_end_too_is_caught(autojump_clock):
    """The client has left and the upstream waits to be told: nothing would ever end it."""

    async def patient(flow, client, upstream):
        async for _ in client:
            pass
        async for _ in upstream:
            pass

    with pytest.raises(AssertionError, match="the client has closed, took longer"):
        await check_handler(handler(patient))


async def test_a_handler_that_writes_to_the_flow_is_caught(autojump_clock):
    async def counts(flow, client, upstream):
        flow.bytes_up += 1
        await copy_both(flow, client, upstream)

    with pytest.raises(AssertionError, match="wrote to the flow: bytes_up"):
        await check_handler(handler(counts))


async def test_a_handler_that_shields_itself_is_caught(autojump_clock):
    """A revoked flow must end at once; this one would go on for a minute."""

    async def stubborn(flow, client, upstream):
        with trio.move_on_after(60, shield=True):
            await copy_both(flow, client, upstream)
            return

    with pytest.raises(AssertionError, match="when cancelled, took longer"):
        await check_handler(handler(stubborn))


async def test_what_is_said_is_held_against_the_authors_script(autojump_clock):
    async def talk(client, upstream):
        await client.send_all(b"question")
        assert await upstream.receive_some() == b"question"

    with pytest.raises(AssertionError, match="conversation with the handler failed"):
        await check_handler(handler(echo_and_close), talk=talk)


async def echo_and_close(flow, client, upstream):
    with trio.move_on_after(1):
        await echo(flow, client, upstream)
    await upstream.aclose()


async def test_a_handler_may_raise_when_an_end_breaks_but_not_in_conversation(autojump_clock):
    async def brittle(flow, client, upstream):
        await copy_both(flow, client, upstream)
        raise ConnectionResetError

    await check_handler(handler(brittle))

    async def talk(client, upstream):
        await client.send_eof()
        await upstream.send_eof()

    with pytest.raises(AssertionError, match="handler raised ConnectionResetError"):
        await check_handler(handler(brittle), talk=talk)


async def test_a_plain_function_is_no_handler():
    with pytest.raises(TypeError, match="async def handle"):
        await check_handler(lambda flow, client, upstream: None)
