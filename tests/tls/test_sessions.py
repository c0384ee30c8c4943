"""Sessions of upstreams shorten the next handshake, and nothing else of it."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Address

import pytest
import trio

from sbxproxy.errors import UpstreamTlsError
from sbxproxy.hostname import Hostname
from sbxproxy.net.dial import dial
from sbxproxy.tls import verifying
from sbxproxy.tls.sessions import KEEP, MOST, Sessions
from sbxproxy.tls.upstream import UpstreamTls
from support.certs import Root
from support.tls_pairs import NAME

ROOT, OTHER_ROOT = Root(), Root("somebody else")
OTHER = Hostname("other.example.com")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def upstream(tmp_path) -> UpstreamTls:
    (tmp_path / "roots.pem").write_bytes(ROOT.pem)
    upstream = UpstreamTls(roots=tmp_path / "roots.pem")
    upstream.load()
    return upstream


def context(leaf, directory, *, version=ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    (directory / "leaf.pem").write_bytes(leaf.pem)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(directory / "leaf.pem")
    made.minimum_version = made.maximum_version = version
    return made


@asynccontextmanager
async def server(made: ssl.SSLContext):
    """Serve one byte to each connection; gives the address and a list of whether each resumed a session."""
    reused: list[bool] = []

    async def serve(stream) -> None:
        tls = trio.SSLStream(stream, made, server_side=True)
        try:
            await tls.do_handshake()
            reused.append(tls.session_reused)
            await tls.send_all(b"x")
            await tls.receive_some()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(tls)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1], reused
        nursery.cancel_scope.cancel()


async def visit(upstream, port, sessions, *, name=NAME, on_socket=True, read=True) -> None:
    stream, _ = await dial([IPv4Address("127.0.0.1")], port, connect=5, total=5)
    tls = await upstream.connect(stream, name, sock=stream.socket if on_socket else None, sessions=sessions)
    if read:
        assert await tls.receive_some() == b"x"
    await trio.aclose_forcefully(tls)


@pytest.mark.parametrize("on_socket", [False, True], ids=["memory", "socket"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_the_next_connection_resumes_and_each_session_is_used_once(version, on_socket, upstream, tmp_path):
    sessions = Sessions()
    async with server(context(ROOT.leaf(NAME), tmp_path, version=version)) as (port, reused):
        for _ in range(3):
            await visit(upstream, port, sessions, on_socket=on_socket)
            assert len(sessions) == 1
        assert sessions.take(NAME) is not None
        await visit(upstream, port, sessions, on_socket=on_socket)
    assert reused == [False, True, True, False]


async def test_c15_what_one_sandbox_was_given_is_not_another_s(upstream, tmp_path):
    """An upstream must not learn that two sandboxes are one operator's."""
    one, other = Sessions(), Sessions()
    async with server(context(ROOT.leaf(NAME), tmp_path)) as (port, reused):
        for sessions in (one, other, None, one):
            await visit(upstream, port, sessions)
    assert reused == [False, False, False, True]


async def test_t21_a_session_is_for_its_name_alone_and_the_name_is_verified_all_the_same(upstream, tmp_path):
    """What a server of one name handed out must not open a connection that passes for another's."""
    sessions = Sessions()
    async with server(context(ROOT.leaf(NAME), tmp_path)) as (port, _):
        await visit(upstream, port, sessions)
        with pytest.raises(UpstreamTlsError, match="another name"):
            await visit(upstream, port, sessions, name=OTHER)
        session = sessions.take(NAME)
        assert session is not None
        sessions.keep(OTHER, session)  # as if something had mixed them up
        with pytest.raises(UpstreamTlsError, match="another name"):
            await visit(upstream, port, sessions, name=OTHER)
        assert len(sessions) == 0


async def test_a_connection_that_is_not_verified_leaves_nothing(upstream, tmp_path):
    sessions = Sessions()
    async with server(context(OTHER_ROOT.leaf(NAME), tmp_path)) as (port, _):
        with pytest.raises(UpstreamTlsError):
            await visit(upstream, port, sessions)
    assert len(sessions) == 0


async def test_a_server_that_forgot_makes_a_whole_handshake_of_it(upstream, tmp_path):
    sessions = Sessions()
    async with server(context(ROOT.leaf(NAME), tmp_path)) as (port, _):
        await visit(upstream, port, sessions)
    async with server(context(ROOT.leaf(NAME), tmp_path)) as (port, reused):
        await visit(upstream, port, sessions)
    assert reused == [False]


async def test_another_server_with_a_bad_certificate_is_not_believed_for_a_session(upstream, tmp_path):
    sessions = Sessions()
    async with server(context(ROOT.leaf(NAME), tmp_path)) as (port, _):
        await visit(upstream, port, sessions)
    async with server(context(OTHER_ROOT.leaf(NAME), tmp_path)) as (port, _):
        with pytest.raises(UpstreamTlsError):
            await visit(upstream, port, sessions)
    assert len(sessions) == 0


async def test_a_session_does_not_outlive_its_certificate(upstream, tmp_path, monkeypatch):
    """Its chain isn't looked at again, so its time has to be."""
    sessions = Sessions()
    async with server(context(ROOT.leaf(NAME), tmp_path)) as (port, _):
        await visit(upstream, port, sessions)
        real = verifying.datetime

        class Later(real):
            @classmethod
            def now(cls, tz=None):
                return real.now(tz) + timedelta(days=100_000)

        monkeypatch.setattr(verifying, "datetime", Later)
        with pytest.raises(UpstreamTlsError, match="expired"):
            await visit(upstream, port, sessions)


def test_sessions_are_kept_for_a_while_and_not_without_bound():
    now = 0.0
    sessions = Sessions(clock=lambda: now)
    for number in range(2 * MOST):
        sessions.keep(Hostname(f"h{number}.example"), object())
    assert len(sessions) == MOST
    assert sessions.take(Hostname("h0.example")) is None
    now = KEEP - 1
    assert sessions.take(Hostname(f"h{2 * MOST - 1}.example")) is not None
    now = KEEP
    assert sessions.take(Hostname(f"h{2 * MOST - 2}.example")) is None
