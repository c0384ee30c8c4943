"""The sandbox's own authority: what it issues, whom it refuses, and that real clients agree."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import ssl
import struct
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from OpenSSL import SSL

from sbxproxy.hostname import Hostname
from sbxproxy.tls.authority import Authority, Founding
from sbxproxy.tls.stream import TlsStream
from sbxproxy.tls.trust import bundle_pem, trust_environment
from support.certs import Root
from support.tls_pairs import NAME, Recorder, client_context, handshake_both, memory_pair, tls_pair

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Clock:
    """A time of day that tests turn by hand."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now


async def served(authority: Authority, name: Hostname = NAME) -> x509.Certificate:
    """The certificate that a client of *name* is shown."""
    client, server = memory_pair()
    one = TlsStream(client, client_context(), server_side=False, server_name=name)
    other = TlsStream(server, authority.server_context(name), server_side=True)
    await handshake_both(one, other)
    certificate = one.peer_certificate
    assert certificate is not None
    return certificate


def own(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.certificate_pem)


def extension(certificate: x509.Certificate, kind):
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


async def test_c14_the_authority_is_one_that_strict_clients_accept():
    clock = Clock()
    certificate = own(Authority(name="job-42", clock=clock))
    assert extension(certificate, x509.BasicConstraints) == (
        x509.BasicConstraints(ca=True, path_length=0),
        True,
    )
    usage, critical = extension(certificate, x509.KeyUsage)
    assert critical
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
    identifier, _ = extension(certificate, x509.SubjectKeyIdentifier)
    assert extension(certificate, x509.AuthorityKeyIdentifier)[0].key_identifier == identifier.digest
    assert certificate.not_valid_before_utc == clock.now - HOUR
    assert certificate.not_valid_after_utc == clock.now + 30 * DAY
    assert "job-42" in certificate.subject.rfc4514_string()


async def test_a_leaf_has_what_strict_clients_want():
    clock = Clock()
    authority = Authority(clock=clock)
    leaf, root = await served(authority), own(authority)
    assert extension(leaf, x509.SubjectAlternativeName) == (
        x509.SubjectAlternativeName([x509.DNSName(NAME)]),
        False,
    )
    assert extension(leaf, x509.BasicConstraints) == (x509.BasicConstraints(ca=False, path_length=None), True)
    usage, critical = extension(leaf, x509.KeyUsage)
    assert critical
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert list(extension(leaf, x509.ExtendedKeyUsage)[0]) == [ExtendedKeyUsageOID.SERVER_AUTH]
    identifier, _ = extension(root, x509.SubjectKeyIdentifier)
    assert extension(leaf, x509.AuthorityKeyIdentifier)[0].key_identifier == identifier.digest
    assert extension(leaf, x509.SubjectKeyIdentifier)[0] == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())
    assert leaf.issuer == root.subject
    leaf.verify_directly_issued_by(root)
    PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName(NAME)).verify(leaf, [])


@pytest.mark.parametrize("name", ["a", "a" * 61 + ".de", "a" * 62 + ".de", ".".join(["a" * 61] * 4), "x_y.example"])
async def test_long_names_have_no_subject_and_a_critical_alternative(name):
    """A common name ends at 64 characters (RFC 5280, appendix A); an empty subject needs a critical SAN (4.2.1.6)."""
    leaf = await served(Authority(), Hostname(name))
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [attribute.value for attribute in names] == ([name] if len(name) <= 64 else [])
    assert extension(leaf, x509.SubjectAlternativeName) == (
        x509.SubjectAlternativeName([x509.DNSName(name)]),
        len(name) > 64,
    )


@pytest.mark.parametrize("name", ["", "ü\0\r\n/CN=evil,O=x", "j" * 1000, "---", "日本", 'a"b+c=d;e<f>'])
async def test_any_sandbox_name_will_do(name):
    certificate = own(Authority(name=name))
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert len(common) <= 64
    assert set(common) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-")
    assert common.startswith("sbxproxy ")
    assert len(certificate.subject) == 2


async def test_c14_namesakes_share_nothing():
    """A store that holds both must be able to tell them apart, and neither may vouch for the other."""
    one, other = Authority(name="x"), Authority(name="x")
    assert own(one).subject != own(other).subject
    assert own(one).serial_number != own(other).serial_number
    assert own(one).public_key() != own(other).public_key()
    assert (await served(one)).public_key() != (await served(other)).public_key()


async def test_c14_the_key_stays_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    authority = Authority(name="s")
    await served(authority)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="stays in this process"):
            attempt(authority)
    assert "key" not in repr(authority).lower()
    assert repr(authority).startswith("<Authority 'CN=sbxproxy s ")
    assert not hasattr(authority, "__dict__")
    assert not [name for name in dir(authority) if "key" in name and not name.startswith("_")]
    assert b"PRIVATE" not in authority.certificate_pem
    assert list(tmp_path.iterdir()) == []


async def test_x15_leaves_are_backdated_and_short_and_minted_again_in_time():
    clock = Clock()
    authority = Authority(clock=clock)
    first = await served(authority)
    assert first.not_valid_before_utc == clock.now - HOUR
    assert first.not_valid_after_utc == clock.now + DAY
    clock.now += 21 * HOUR
    assert await served(authority) == first
    clock.now += 2 * HOUR  # an hour is left: too little for a connection that is only now being made
    second = await served(authority)
    assert second != first
    assert second.serial_number != first.serial_number
    assert second.not_valid_after_utc == clock.now + DAY
    clock.now -= 10 * DAY  # a clock that is set back must not leave leaves that aren't valid yet
    third = await served(authority)
    assert third.not_valid_before_utc == clock.now - HOUR


async def test_a_sandbox_that_outlives_its_authority():
    """Two days before the end it is issued again: same key, same subject, so old and new leaves verify under both."""
    clock = Clock()
    authority = Authority(clock=clock)
    old, early = own(authority), await served(authority)
    clock.now += 28 * DAY - HOUR
    assert (await served(authority)).not_valid_after_utc == clock.now + DAY
    assert own(authority) == old
    clock.now += HOUR
    late = await served(authority, Hostname("other.example.com"))
    new = own(authority)
    assert new != old
    assert new.serial_number != old.serial_number
    assert (new.subject, new.public_key()) == (old.subject, old.public_key())
    assert authority.expires == new.not_valid_after_utc == clock.now + 30 * DAY
    for leaf in (early, late):
        for root in (old, new):
            leaf.verify_directly_issued_by(root)
    assert late.not_valid_after_utc <= new.not_valid_after_utc


async def test_processes_that_serve_one_sandbox_have_one_authority():
    founding = Founding.make("box")
    first, second = Authority(founding=founding), Authority(founding=founding)
    assert first.certificate_pem == second.certificate_pem
    (await served(second)).verify_directly_issued_by(own(first))


def test_c14_what_an_authority_is_made_of_does_not_show_its_key():
    founding = Founding.make("box")
    assert repr(founding.key)[2:-1] not in repr(founding)
    with pytest.raises(TypeError):
        pickle.dumps(founding)
    with pytest.raises(ValueError, match="own key"):
        Authority(founding=Founding(founding.key, Founding.make("box").certificate))


def test_the_certificate_is_renewed_when_it_is_asked_for_as_well():
    """Where workers serve, the process that writes the trust files mints nothing itself."""
    clock = Clock()
    authority = Authority(clock=clock)
    before = authority.certificate_pem
    clock.now += 29 * DAY
    assert authority.certificate_pem != before
    assert x509.load_pem_x509_certificate(authority.certificate_pem).subject == x509.load_pem_x509_certificate(before).subject


async def test_a_leaf_never_outlives_its_authority():
    clock = Clock()
    authority = Authority(clock=clock)
    for _ in range(70):
        leaf = await served(authority)
        assert leaf.not_valid_after_utc <= own(authority).not_valid_after_utc
        assert leaf.not_valid_before_utc <= clock.now < leaf.not_valid_after_utc
        clock.now += 13 * HOUR


async def test_x6_the_cache_is_bounded_and_forgets_the_least_used():
    authority = Authority(leaves=3)
    a, b, c, d = (Hostname(f"{letter}.example.com") for letter in "abcd")
    contexts = {name: authority.server_context(name) for name in (a, b, c)}
    assert authority.server_context(a) is contexts[a]
    authority.server_context(d)  # b was unused for longest
    assert authority.server_context(a) is contexts[a]
    assert authority.server_context(c) is contexts[c]
    assert authority.server_context(b) is not contexts[b]
    assert repr(authority).endswith("3 leaves>")


def test_x6_a_flood_of_names_costs_little_and_leaves_nothing():
    """Random names under a wildcard: memory stays where it is, and the loop is held for well under a millisecond each."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    authority = Authority(leaves=64)
    for number in range(300):
        authority.server_context(Hostname(f"warm{number}.example.com"))
    gc.collect()
    before, started = resident(), time.process_time()
    for number in range(3000):
        authority.server_context(Hostname(f"n{number}.example.com"))
    spent = time.process_time() - started
    assert resident() - before < 8 * 1024 * 1024, "what was evicted is gone, context and all"
    assert spent / 3000 < 0.01


@pytest.mark.parametrize("leaves", [0, -1])
def test_a_cache_without_room_is_refused(leaves):
    with pytest.raises(ValueError, match="leaves"):
        Authority(leaves=leaves)


async def refused(authority: Authority, client: TlsStream, server_end) -> str:
    """Run a handshake that must fail on both sides, and return what the client was told."""
    server = TlsStream(server_end, authority.server_context(NAME), server_side=True)
    told: list[str] = []

    async def connect() -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.do_handshake()
            await client.receive_some()
        told.append(repr(caught.value.__cause__))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        with pytest.raises(trio.BrokenResourceError, match="handshake failed"):
            await server.do_handshake()
    return told[0]


@pytest.mark.parametrize("tls", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize("name", ["evil.test", "example.com", "x.api.example.com", "api.example.com..", "127.0.0.1", "ä", None])
async def test_t21_only_the_expected_name_is_served(name, tls, capfd):
    """What was peeked and judged and what OpenSSL saw must be one name; whatever else comes is refused, quietly."""
    client_end, server_end = memory_pair()
    client = TlsStream(client_end, client_context(tls=tls), server_side=False)
    if name is not None:
        client._connection.set_tlsext_host_name(name.encode())
    assert "handshake failure" in await refused(Authority(), client, server_end)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [b"API.Example.COM", b"api.example.com."])
async def test_t21_other_spellings_of_the_expected_name_are_served(name):
    client_end, server_end = memory_pair()
    client = TlsStream(client_end, client_context(), server_side=False)
    client._connection.set_tlsext_host_name(name)
    server = TlsStream(server_end, Authority().server_context(NAME), server_side=True)
    await handshake_both(client, server)
    assert server.server_name == NAME


def hello(name: bytes, *, share: bool) -> bytes:
    """A TLS 1.3 ClientHello in one record, by hand (RFC 8446, 4.1.2); without a key share the server must ask again."""

    def ext(kind: int, body: bytes) -> bytes:
        return struct.pack(">HH", kind, len(body)) + body

    entry = b"\0" + struct.pack(">H", len(name)) + name
    extensions = ext(0, struct.pack(">H", len(entry)) + entry)
    extensions += ext(10, b"\0\2\0\x1d")  # x25519
    extensions += ext(13, b"\0\4\4\3\x08\4")  # ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256
    extensions += ext(43, b"\2\3\4")
    extensions += ext(51, b"\0\x24\0\x1d\0\x20" + b"\x09" + bytes(31)) if share else ext(51, b"\0\0")
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack(">H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack(">H", len(message)) + message


@pytest.mark.parametrize(("second", "fate"), [(NAME.encode(), "served"), (b"evil.test", "refused")])
async def test_t4_the_second_hello_must_name_the_same_server(second, fate):
    """After a HelloRetryRequest the client speaks again, and OpenSSL itself doesn't mind another name."""
    client, server_end = memory_pair()
    server = TlsStream(server_end, Authority().server_context(NAME), server_side=True)

    async def serve() -> None:
        if fate == "refused":
            with pytest.raises(trio.BrokenResourceError, match="handshake failed"):
                await server.do_handshake()
        else:
            await server.do_handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.send_all(hello(NAME.encode(), share=False))
        retry = await client.receive_some()
        assert retry[5 + 6 : 5 + 10] == bytes.fromhex("cf21ad74"), "the random that says HelloRetryRequest"
        await client.send_all(hello(second, share=True))
        answer = await client.receive_some()
        if fate == "served":
            assert answer[0] == 22
            assert len(answer) > 500, "a whole flight with a certificate"
        else:
            assert answer == b"\x15\3\3\0\2\2\x28", "a fatal handshake_failure and nothing else"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tls", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_h21_a_client_of_http2_alone_gets_alert_120(tls, capfd):
    """It must fail at once and clearly, rather than go on and talk HTTP/2 to us."""
    client_end, server_end = memory_pair()
    context = client_context(tls=tls, alpn=(b"h2",))
    client = TlsStream(client_end, context, server_side=False, server_name=NAME)
    record = Recorder(server_end)
    assert "no application protocol" in await refused(Authority(), client, record)
    assert b"\x15\3\3\0\2\2\x78" in b"".join(record.sent)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("offer", "chosen"), [((b"h2", b"http/1.1"), b"http/1.1"), ((b"http/1.1",), b"http/1.1"), ((), b"")])
async def test_h21_http1_is_chosen_where_it_can_be(offer, chosen):
    client, server = await tls_pair(Authority().server_context(NAME), client_context(alpn=offer))
    assert client.alpn == server.alpn == chosen


async def test_a_refused_client_does_not_disturb_the_next():
    """pyOpenSSL keeps what a callback raised on the context, which connections share."""
    authority = Authority()
    for offer in ((b"h2",), (b"http/1.1",), (b"h2",), (b"http/1.1",)):
        pair = tls_pair(authority.server_context(NAME), client_context(alpn=offer))
        if offer == (b"h2",):
            with pytest.raises(trio.BrokenResourceError):
                await pair
        else:
            await pair


async def test_u6_a_raising_callback_refuses_the_handshake(monkeypatch):
    """Versions of pyOpenSSL before 26 went on as if nothing had happened (CVE-2026-27448)."""
    shown: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: shown.append(args))

    def explode(_connection) -> None:
        raise ZeroDivisionError

    context = Root().leaf(NAME).context()
    context.set_tlsext_servername_callback(explode)
    with pytest.raises(trio.BrokenResourceError):
        await tls_pair(context)
    assert len(shown) == 1


async def bytes_served(context: SSL.Context, tls: int, times: int) -> list[int]:
    """How much a server sends to a client that comes again and again and would like to resume its session."""
    client_side = client_context(tls=tls)
    client_side.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    clients: list[TlsStream] = []  # kept: OpenSSL forgets the session of a connection that is freed unclosed
    sizes = []
    for _ in range(times):
        client_end, server_end = memory_pair()
        client = TlsStream(client_end, client_side, server_side=False, server_name=NAME)
        if clients:
            session = clients[-1]._connection.get_session()
            assert session is not None
            client._connection.set_session(session)
        server = TlsStream(Recorder(server_end), context, server_side=True)
        await handshake_both(client, server)
        await server.send_all(b"x")
        assert await client.receive_some() == b"x"
        clients.append(client)
        sizes.append(sum(map(len, server.transport.sent)))
    return sizes


@pytest.mark.parametrize("tls", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_t21_sessions_are_never_resumed(tls):
    """In TLS 1.3 a resumed session needs no certificate and may name another server; it shows by a shorter flight."""
    first, *later = await bytes_served(Root().leaf(NAME).context(), tls, 3)
    assert all(size < first - 300 for size in later), "an ordinary server does it"
    first, *later = await bytes_served(Authority().server_context(NAME), tls, 3)
    assert all(abs(size - first) < 20 for size in later)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_versions_of_tls_are_refused():
    client_end, server_end = memory_pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    client = trio.SSLStream(client_end, context, server_hostname=NAME)
    server = TlsStream(server_end, Authority().server_context(NAME), server_side=True)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await handshake_both(client, server)
    assert "protocol" in repr(caught.value.__cause__)


# Real clients, over loopback, with the variables that the trust kit names.

PAGE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"

PYTHON = """
import socket, ssl
context = ssl.create_default_context()  # obeys SSL_CERT_FILE
context.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection(("127.0.0.1", {port})) as raw, context.wrap_socket(raw, server_hostname="{name}") as s:
    s.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    while chunk := s.recv(100):
        print(chunk.decode(), end="")
"""

NODE = """
const options = {{host: "127.0.0.1", servername: "{name}", port: {port}, headers: {{host: "{name}"}}}};
require("https").get(options, r => r.on("data", d => process.stdout.write(d)))
  .on("error", e => {{ console.error(e.message); process.exit(1); }});
"""

CLIENTS = {
    "curl": ["curl", "-sS", "--resolve", "{name}:{port}:127.0.0.1", "https://{name}:{port}/"],
    "openssl": [
        "openssl", "s_client", "-connect", "127.0.0.1:{port}", "-servername", "{name}", "-verify_hostname", "{name}",
        "-x509_strict", "-verify_return_error", "-quiet",
    ],
    "python": [sys.executable, "-I", "-c", PYTHON],
    "node": ["node", "-e", NODE],
}  # fmt: skip


async def run_client(client: str, authority: Authority, trusted: Authority, name: Hostname, tmp_path) -> tuple[int, bytes]:
    """Serve one page as *name* under *authority* to a real program that trusts *trusted*."""
    command = CLIENTS[client]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    certificate, bundle = tmp_path / "ca.pem", tmp_path / "bundle.pem"
    certificate.write_bytes(trusted.certificate_pem)
    bundle.write_bytes(bundle_pem(trusted.certificate_pem))
    changes = trust_environment(bundle=bundle, added=certificate)
    environment = {key: value for key, value in os.environ.items() if key not in changes}
    environment |= {key: value for key, value in changes.items() if value is not None}

    async def serve(stream: trio.SocketStream) -> None:
        tls = TlsStream(stream, authority.server_context(name), server_side=True)
        try:
            await tls.do_handshake()
            if client != "openssl":
                await tls.receive_some()
            await tls.send_all(PAGE)
        except trio.BrokenResourceError:
            pass
        await tls.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        argv = [part.format(name=name, port=port) for part in command]
        with trio.fail_after(30):
            done = await trio.run_process(argv, env=environment, capture_stdout=True, capture_stderr=True, check=False, stdin=b"")
        nursery.cancel_scope.cancel()
    return done.returncode, done.stdout + done.stderr


@pytest.mark.real
@pytest.mark.parametrize("name", [NAME, Hostname("b" * 60 + ".very-long-name.example.com")])
@pytest.mark.parametrize("client", CLIENTS)
async def test_real_clients_accept_a_leaf(client, name, tmp_path):
    authority = Authority(name="real")
    status, output = await run_client(client, authority, authority, name, tmp_path)
    assert status == 0, output
    assert b"ok" in output


@pytest.mark.real
@pytest.mark.parametrize("client", CLIENTS)
async def test_real_clients_refuse_another_sandboxs_leaf(client, tmp_path):
    status, output = await run_client(client, Authority(name="real"), Authority(name="real"), NAME, tmp_path)
    assert status != 0, output
    assert b"200 OK" not in output


@pytest.mark.real
async def test_openssl_verifies_the_chain_strictly(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes((await served(authority)).public_bytes(Encoding.PEM))
    argv = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", NAME, "-CAfile"]
    done = await trio.run_process(
        [*argv, tmp_path / "ca.pem", tmp_path / "leaf.pem"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
