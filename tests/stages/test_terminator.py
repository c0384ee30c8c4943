"""``TlsTerminator``: who it is towards the client, whom it believes upstream, and that nothing stays open when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.serialization import Encoding

from sbxproxy.errors import ClientProtocolError, UpstreamTlsError
from sbxproxy.hostname import Hostname
from sbxproxy.stages import TlsTerminator, check_terminator
from sbxproxy.testing import make_flow
from sbxproxy.tls import Authority, UpstreamTls
from sbxproxy.tls.stream import TlsStream
from support.certs import Root
from support.tls_pairs import NAME, client_context

OTHER = Hostname("other.example.com")
ROOT = Root()


@pytest.fixture
def terminator(tmp_path: Path) -> TlsTerminator:
    path = tmp_path / "roots.pem"
    path.write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    return TlsTerminator(Authority(), UpstreamTls(roots=path))


async def is_closed(far: trio.abc.Stream) -> bool:
    """Tell whether the other end is gone, once all that it sent is read."""
    with trio.fail_after(30):
        try:
            while await far.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        try:
            await far.send_all(b"x")
        except (trio.BrokenResourceError, trio.ClosedResourceError):  # the latter if it sent its own end: then the read told
            return True
    return False


def test_it_fits_its_own_slot(terminator: TlsTerminator) -> None:
    check_terminator(terminator)


async def test_a_client_talks_under_the_name_that_it_asked_for(terminator: TlsTerminator) -> None:
    near, far = trio.testing.memory_stream_pair()
    client = TlsStream(far, client_context(), server_side=False, server_name=NAME)
    served: list[trio.abc.Stream] = []

    async def serve() -> None:
        served.append(await terminator.accept(make_flow(NAME), near))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(client.do_handshake)
        await client.send_all(b"hello")
        assert await served[0].receive_some() == b"hello"
    await trio.aclose_forcefully(served[0])
    await trio.aclose_forcefully(client)


async def test_a_connection_without_a_server_name_is_closed(terminator: TlsTerminator) -> None:
    """There is no name to make a certificate for."""
    near, far = trio.testing.memory_stream_pair()
    with pytest.raises(ClientProtocolError) as caught:
        await terminator.accept(make_flow("1.2.3.4"), near)
    assert caught.value.reason == "no-sni"
    assert await is_closed(far)


@pytest.mark.parametrize("way", ["eof", "garbage"])
async def test_a_client_that_breaks_off_is_told_apart_and_closed(terminator: TlsTerminator, way: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    if way == "eof":
        await far.send_eof()
    else:
        await far.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with trio.fail_after(30), pytest.raises(ClientProtocolError) as caught:
        await terminator.accept(make_flow(NAME), near)
    assert caught.value.reason == "client-handshake"
    assert await is_closed(far)


@pytest.mark.parametrize(
    ("offered", "part"), [([b"h2"], "only HTTP/2"), ([b"acme-tls/1"], "offers protocols by ALPN")], ids=["http2", "other"]
)
async def test_a_client_that_speaks_no_http_1_is_told_apart(terminator: TlsTerminator, offered: list[bytes], part: str) -> None:
    """It may well trust the certificate, which it never saw."""
    near, far = trio.testing.memory_stream_pair()
    context = client_context()
    context.set_alpn_protos(offered)
    client = TlsStream(far, context, server_side=False, server_name=NAME)

    async def refused() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await client.do_handshake()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            with pytest.raises(ClientProtocolError, match=part) as caught:
                await terminator.accept(make_flow(NAME), near)
    assert caught.value.reason == "no-common-protocol"
    await trio.aclose_forcefully(client)


async def test_a_handshake_that_is_cancelled_leaves_nothing_open(
    terminator: TlsTerminator, autojump_clock: trio.testing.MockClock
) -> None:
    """The core gives the stream away, and has nothing left to close."""
    near, far = trio.testing.memory_stream_pair()
    start = trio.current_time()
    with trio.move_on_after(3) as scope:
        await terminator.accept(make_flow(NAME), near)
    assert scope.cancelled_caught
    assert trio.current_time() - start == pytest.approx(3)
    assert await is_closed(far)


@pytest.mark.parametrize("name", [NAME, OTHER])
async def test_u4_an_upstream_is_verified_and_closed_if_it_is_another(terminator: TlsTerminator, name: Hostname) -> None:
    near, far = trio.testing.memory_stream_pair()
    server = TlsStream(far, ROOT.leaf(name).context(), server_side=True)
    result: list[trio.abc.Stream | UpstreamTlsError] = []

    async def connect() -> None:
        try:
            result.append(await terminator.connect(make_flow(NAME), near, NAME))
        except UpstreamTlsError as error:
            result.append(error)

    async def serve() -> None:
        try:
            await server.do_handshake()
        except trio.BrokenResourceError:
            assert name == OTHER

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            nursery.start_soon(serve)
        (got,) = result
        if name == NAME:
            assert isinstance(got, trio.abc.Stream)
            await got.send_all(b"hello")
            assert await server.receive_some() == b"hello"
            await trio.aclose_forcefully(got)
        else:
            assert isinstance(got, UpstreamTlsError)
            assert await is_closed(far)
    await trio.aclose_forcefully(server)
