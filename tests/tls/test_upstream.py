"""Verified connections to upstreams: whom they believe, whom they don't, and what they say about it."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
import ssl
import subprocess
import sys
import textwrap
from datetime import timedelta

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from sbxproxy.errors import ConfigurationError, UpstreamTlsError
from sbxproxy.hostname import Hostname
from sbxproxy.tls.stream import TlsStream
from sbxproxy.tls.upstream import UpstreamTls
from support.certs import DAY, Leaf, Root
from support.tls_pairs import NAME, Recorder, memory_pair

ROOT = Root()
OTHER_ROOT = Root("somebody else")
INTERMEDIATE = Root("intermediate", issuer=ROOT)
NOT_AN_AUTHORITY = Root("a customer", issuer=ROOT, ca=False)


@pytest.fixture
def upstream_tls(tmp_path) -> UpstreamTls:
    (tmp_path / "roots.pem").write_bytes(ROOT.pem)
    return UpstreamTls(roots=tmp_path / "roots.pem")


async def connect(
    upstream_tls: UpstreamTls, context: SSL.Context, name: Hostname = NAME
) -> tuple[TlsStream, TlsStream, Recorder]:
    """Connect to a server with *context*; return our end, its end and our transport."""
    ours, theirs = memory_pair()
    transport = Recorder(ours)
    server = TlsStream(theirs, context, server_side=True, require_close_notify=False)
    ends: list[TlsStream] = []
    failed: BaseException | None = None

    async def serve() -> None:
        try:
            await server.do_handshake()
        except trio.BrokenResourceError:
            await server.aclose()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            ends.append(await upstream_tls.connect(transport, name))
    except* UpstreamTlsError as group:
        failed = group.exceptions[0]
        assert transport.closes, "whoever fails closes"
        got = b""
        try:
            got = await server.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        assert got == b"", "no application byte went out"
    if failed is not None:  # older Python wraps what is raised in ``except*`` once more
        raise failed
    return ends[0], server, transport


GOOD = {
    "plain": ROOT.leaf(NAME),
    "through an intermediate": INTERMEDIATE.leaf(NAME),
    "one of many": ROOT.leaf("example.com", "*.example.org", NAME),
    "wildcard": ROOT.leaf("*.example.com"),
    "other case": ROOT.leaf("API.Example.COM"),
    "rsa": ROOT.leaf(NAME, rsa_bits=2048),
    "no extended key usage": ROOT.leaf(NAME, usage=None),
    "odd names beside a good one": ROOT.leaf("*", "*.com", "127.0.0.1", "a*.example.com", NAME),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("tls", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_u1_good_certificates_are_accepted(upstream_tls, case, tls):
    """Without these the table of bad ones would prove nothing."""
    stream, server, _ = await connect(upstream_tls, GOOD[case].context(tls=tls))
    await stream.send_all(b"request")
    assert await server.receive_some() == b"request"
    assert stream.alpn == b"http/1.1"


async def test_a_name_with_an_underscore_is_verified_like_any_other(upstream_tls):
    name = Hostname("my_bucket.example.com")
    for pattern in (name, "*.example.com"):
        await connect(upstream_tls, ROOT.leaf(pattern).context(), name)


BAD: dict[str, tuple[Leaf, str]] = {
    "self-signed": (ROOT.leaf(NAME, cn=NAME, self_signed=True), "upstream-certificate-unknown-ca"),
    "unknown authority": (OTHER_ROOT.leaf(NAME), "upstream-certificate-unknown-ca"),
    "signed by a namesake of a known authority": (Root().leaf(NAME), "upstream-certificate-invalid"),
    "intermediate left out": (
        dataclasses.replace(INTERMEDIATE.leaf(NAME), chain=()),
        "upstream-certificate-unknown-ca",
    ),
    "issued by a customer": (NOT_AN_AUTHORITY.leaf(NAME), "upstream-certificate-invalid"),
    "expired": (ROOT.leaf(NAME, start=-3 * DAY, end=-DAY), "upstream-certificate-expired"),
    "expired a moment ago": (
        ROOT.leaf(NAME, end=timedelta(seconds=-2)),
        "upstream-certificate-expired",
    ),
    "not yet valid": (ROOT.leaf(NAME, start=DAY, end=2 * DAY), "upstream-certificate-not-yet-valid"),
    "for clients": (
        ROOT.leaf(NAME, usage=ExtendedKeyUsageOID.CLIENT_AUTH),
        "upstream-certificate-invalid",
    ),
    "for signing code": (
        ROOT.leaf(NAME, usage=ExtendedKeyUsageOID.CODE_SIGNING),
        "upstream-certificate-invalid",
    ),
    "unknown critical extension": (
        ROOT.leaf(NAME, critical_unknown=True),
        "upstream-certificate-invalid",
    ),
    "other name": (ROOT.leaf("www.example.com"), "upstream-certificate-name"),
    "parent": (ROOT.leaf("example.com"), "upstream-certificate-name"),
    "child": (ROOT.leaf("x.api.example.com"), "upstream-certificate-name"),
    "look-alike": (ROOT.leaf("evil-api.example.com"), "upstream-certificate-name"),
    "prefix": (ROOT.leaf("api.example.com.evil.test"), "upstream-certificate-name"),
    "common name only": (ROOT.leaf(cn=NAME), "upstream-certificate-name"),
    "common name beside another": (ROOT.leaf("www.example.com", cn=NAME), "upstream-certificate-name"),
    "star": (ROOT.leaf("*"), "upstream-certificate-name"),
    "star dot com": (ROOT.leaf("*.com"), "upstream-certificate-name"),
    "star too high": (ROOT.leaf("*.*.com"), "upstream-certificate-name"),
    "star below": (ROOT.leaf("*.api.example.com"), "upstream-certificate-name"),
    "star in the middle": (ROOT.leaf("api.*.com"), "upstream-certificate-name"),
    "part of a label": (ROOT.leaf("a*.example.com"), "upstream-certificate-name"),
    "end of a label": (ROOT.leaf("*i.example.com"), "upstream-certificate-name"),
    "address as a name": (ROOT.leaf("127.0.0.1"), "upstream-certificate-name"),
    "address": (
        ROOT.leaf(san=[x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]),
        "upstream-certificate-name",
    ),
    "uri": (
        ROOT.leaf(san=[x509.UniformResourceIdentifier(f"https://{NAME}/")]),
        "upstream-certificate-name",
    ),
    "mail address": (ROOT.leaf(san=[x509.RFC822Name(f"root@{NAME}")]), "upstream-certificate-name"),
    "nul in the name": (ROOT.leaf(f"{NAME}\0.evil.test"), "upstream-certificate-name"),
    "empty name": (ROOT.leaf(""), "upstream-certificate-name"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("tls", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_u1_bad_certificates_are_refused(upstream_tls, case, tls):
    """Each with its reason, in fixed words: what a certificate says is the attacker's choice."""
    leaf, reason = BAD[case]
    with pytest.raises(UpstreamTlsError) as caught:
        await connect(upstream_tls, leaf.context(tls=tls))
    assert caught.value.reason == reason
    assert caught.value.status == 502
    for text in ("example", "evil", "test root", "somebody"):
        assert text not in str(caught.value)


async def test_u1_a_weak_key_is_refused(upstream_tls):
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")
    leaf = ROOT.leaf(NAME, rsa_bits=1024)
    context.use_certificate(leaf.certificate)
    context.use_privatekey(leaf.key)
    with pytest.raises(UpstreamTlsError) as caught:
        await connect(upstream_tls, context)
    assert caught.value.reason == "upstream-certificate-invalid"


async def test_u5_the_name_sent_is_the_name_verified(upstream_tls):
    stream, server, _ = await connect(upstream_tls, ROOT.leaf(NAME).context())
    assert stream.server_name == NAME
    assert server._connection.get_servername() == NAME.encode()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_u2_old_versions_are_refused(upstream_tls, version, tmp_path):
    """A server that has nothing better, by the standard library's OpenSSL, which can still be talked into it."""
    (tmp_path / "leaf.pem").write_bytes(ROOT.leaf(NAME).pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    context.load_cert_chain(tmp_path / "leaf.pem")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            context.wrap_socket(theirs, server_side=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, serve)
        with pytest.raises(UpstreamTlsError) as caught:
            await upstream_tls.connect(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), NAME)
    assert caught.value.reason == "upstream-tls-version"


SERVER_HELLO_1_1 = (
    b"\x16\3\2\0\x2a" + b"\2\0\0\x26" + b"\3\2" + bytes(32) + b"\0" + b"\xc0\x13" + b"\0"
)  # TLS 1.1 whatever the client said, with a suite of that time (RFC 4346, 7.4.1.3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (SERVER_HELLO_1_1, "upstream-tls-version"),
        (b"\x15\3\1\0\2\2\x46", "upstream-tls-version"),  # alert protocol_version
        (b"\x15\3\3\0\2\2\x28", "upstream-tls"),  # alert handshake_failure
        (b"\x15\3\3\0\2\2\x70", "upstream-tls"),  # alert unrecognized_name
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "upstream-tls"),
        (b"SSH-2.0-OpenSSH\r\n", "upstream-tls"),
        (b"\x16\3\3\0\4\x0e\0\0\0", "upstream-tls"),  # a ServerHelloDone out of the blue
        (b"", "upstream-tls"),
    ],
)
async def test_u2_what_is_no_acceptable_tls_is_refused(upstream_tls, answer, reason):
    ours, theirs = memory_pair()
    transport = Recorder(ours)
    if answer:
        await theirs.send_all(answer)
    await theirs.send_stream.aclose()
    with pytest.raises(UpstreamTlsError) as caught:
        await upstream_tls.connect(transport, NAME)
    assert caught.value.reason == reason
    assert transport.closes


async def test_every_cut_of_the_servers_flight_is_an_error(upstream_tls):
    """Wherever an upstream goes away in its handshake, the outcome is the same error and never a hang or a stream."""
    ours, theirs = memory_pair()
    record = Recorder(theirs)
    server = TlsStream(record, ROOT.leaf(NAME).context(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await upstream_tls.connect(ours, NAME)
    flight = b"".join(record.sent)
    for length in range(0, len(flight), 13):
        ours, theirs = memory_pair()
        await theirs.send_all(flight[:length])
        await theirs.send_stream.aclose()
        with pytest.raises(UpstreamTlsError):
            await upstream_tls.connect(ours, NAME)


async def test_an_upstream_without_http1_is_an_error(upstream_tls):
    """It says so with alert 120 if it is honest, and OpenSSL refuses a protocol that was not offered if it isn't."""
    for choice in (b"h2", b"http/1.0"):
        with pytest.raises(UpstreamTlsError) as caught:
            await connect(upstream_tls, ROOT.leaf(NAME).context(alpn=choice))
        assert caught.value.reason == "upstream-tls"


async def test_an_upstream_that_ignores_alpn_is_fine(upstream_tls):
    stream, _, _ = await connect(upstream_tls, ROOT.leaf(NAME).context(alpn=None))
    assert stream.alpn == b""


async def test_cancelling_closes_the_transport(upstream_tls, autojump_clock):
    ours, _theirs = memory_pair()
    transport = Recorder(ours)
    with trio.move_on_after(15) as scope:
        await upstream_tls.connect(transport, NAME)
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline < 1
    assert transport.closes == 1


async def test_a_cut_answer_can_be_told_from_a_finished_one(upstream_tls):
    for polite in (True, False):
        stream, server, _ = await connect(upstream_tls, ROOT.leaf(NAME).context())
        await server.send_all(b"some of it")
        await (server.aclose() if polite else server.transport.aclose())
        assert await stream.receive_some() == b"some of it"
        assert await stream.receive_some() == b""
        assert stream.truncated is not polite


async def test_the_context_is_made_once(upstream_tls):
    upstream_tls.load()
    context = upstream_tls._context
    upstream_tls.load()
    await connect(upstream_tls, ROOT.leaf(NAME).context())
    assert upstream_tls._context is context


async def test_u7_extra_roots_are_believed_as_well(tmp_path):
    """A company's own authority beside the others, not in their place."""
    for name, root in {"roots.pem": ROOT, "extra.pem": OTHER_ROOT}.items():
        (tmp_path / name).write_bytes(root.pem)
    upstream_tls = UpstreamTls(roots=tmp_path / "roots.pem", extra_roots=[tmp_path / "extra.pem"])
    for root in (ROOT, OTHER_ROOT):
        await connect(upstream_tls, root.leaf(NAME).context())
    with pytest.raises(UpstreamTlsError):
        await connect(upstream_tls, Root("third").leaf(NAME).context())


async def test_u7_the_systems_roots_are_the_default_and_the_environment_is_not_asked(tmp_path, monkeypatch):
    """The proxy may have been started by somebody who has other ideas of whom to believe."""
    (tmp_path / "roots.pem").write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(UpstreamTlsError) as caught:
        await connect(UpstreamTls(), ROOT.leaf(NAME).context())
    assert caught.value.reason == "upstream-certificate-unknown-ca"


@pytest.mark.parametrize("which", ["roots", "extra_roots"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "No such file"),
        (b"", "no usable PEM certificate"),
        (b"not a certificate\n", "no usable PEM certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no usable PEM certificate"),
    ],
)
async def test_u7_a_faulty_roots_file_is_an_error_that_names_it(tmp_path, which, content, fault):
    """At start, and never by believing nobody or somebody else."""
    good, path = tmp_path / "good.pem", tmp_path / "private.pem"
    good.write_bytes(ROOT.pem)
    if content is not None:
        path.write_bytes(content)
    upstream_tls = UpstreamTls(roots=path) if which == "roots" else UpstreamTls(roots=good, extra_roots=[path])
    with pytest.raises(ConfigurationError, match=fault) as caught:
        upstream_tls.load()
    assert str(path) in str(caught.value)
    transport = Recorder(memory_pair()[0])
    with pytest.raises(ConfigurationError):
        await upstream_tls.connect(transport, NAME)
    assert transport.closes == 1


def test_u7_a_directory_is_no_roots_file(tmp_path):
    with pytest.raises(ConfigurationError, match="Is a directory"):
        UpstreamTls(roots=tmp_path).load()


def test_c13_session_keys_are_logged_nowhere(tmp_path):
    """``SSLKEYLOGFILE`` would hand all traffic, credentials included, to whoever set it."""
    script = textwrap.dedent("""
        import sys, trio
        from pathlib import Path
        from support.certs import Root
        from support.tls_pairs import NAME, memory_pair
        from sbxproxy.tls import Authority, TlsStream, UpstreamTls

        async def main() -> None:
            authority = Authority()
            Path(sys.argv[1]).write_bytes(authority.certificate_pem)
            ours, theirs = memory_pair()
            server = TlsStream(theirs, authority.server_context(NAME), server_side=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.do_handshake)
                await UpstreamTls(roots=Path(sys.argv[1])).connect(ours, NAME)
            print("connected")

        trio.run(main)
    """)
    log = tmp_path / "keys"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "ca.pem")],
        env={"SSLKEYLOGFILE": str(log), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "connected\n", done.stderr
    assert not log.exists()
