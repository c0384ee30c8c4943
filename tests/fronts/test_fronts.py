"""One port for CONNECT, plain HTTP and SOCKS5, over real sockets: what it takes, what it refuses, and in whose words."""

from __future__ import annotations

import base64
import json
import struct
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sbxproxy import ListenerAuth
from sbxproxy.net import open_unix_listener
from sbxproxy.testing.hello import client_hello
from support.firewall import Firewall, open_firewall
from support.origin import HELLO, Origin, Reply, Seen
from support.talk import connect, exactly, handshake, read_head, request, socks5, socks_request, until_end
from support.wire_box import ALERT_ACCESS_DENIED

NAME, OTHER = "origin.test.example", "other.test.example"
PROXY_V2 = bytes.fromhex("0d0a0d0a000d0a515549540a")


def _origin(*names: str) -> Origin:
    return Origin(names or (NAME,))


async def _get_through(firewall: Firewall, origin: Origin, stream: trio.SocketStream, root: Path) -> None:
    async with await handshake(stream, NAME, root) as tls:
        status, _, body = await request(tls, f"{NAME}:{origin.port}")
        assert (status, body) == (200, HELLO)


# -- CONNECT


async def test_connect_opens_a_tunnel(tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        status, head = await connect(stream, f"{NAME}:{origin.port}")
        assert status == 200
        assert b"content-length" not in head.lower()  # RFC 9110 section 9.3.6
        assert b"transfer-encoding" not in head.lower()
        await _get_through(firewall, origin, stream, origin.write_root(tmp_path))
        event = await firewall.next_closed()
    assert (event.front, event.decision, event.target) == ("connect", "relay", f"{NAME}:{origin.port}")


async def test_l10_a_hello_in_the_segment_of_the_connect_request_is_not_lost(tmp_path: Path) -> None:
    """Early tunnel bytes are held until they are judged, and then go on."""
    origin = _origin()
    got: list[bytes] = []

    async def record(stream: trio.abc.Stream) -> None:
        got.append(await exactly(stream, len(hello)))
        await stream.send_all(b"heard")

    origin.tls, origin.handler = False, record
    hello = client_hello(NAME)
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        for say in (connect(s := await firewall.open(), f"{NAME}:{origin.port}", more=hello), None):
            if say is None:
                s = await firewall.open()
                assert await socks5(s, NAME, origin.port, more=hello) == 0
            else:
                assert (await say)[0] == 200
            assert await exactly(s, 5) == b"heard"
    assert got == [hello, hello]


@pytest.mark.parametrize(
    "target",
    [
        "[origin.test.example]:443",
        "origin.test.example",
        "origin.test.example:",
        "origin.test.example:0",
        "origin.test.example:65536",
        "origin.test.example:443.evil.example",
        "origin.test.example:443:443",
        "user@origin.test.example:443",
        "origin.test.example:+443",
        "https://origin.test.example:443/",
        "origin.test.example:443/path",
        "/",
        "*",
    ],
)
async def test_n9_n12_a_connect_target_is_a_host_and_a_port_and_nothing_else(target: str, tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": ["*", NAME]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        status, _ = await connect(stream, target)
        assert status == 400
        assert (await until_end(stream))[1] == "eof"
        event = await firewall.next_closed()
    assert (event.decision, event.reason, event.target) == ("deny", "bad-name" if "[" in target else "bad-request", "")


@pytest.mark.parametrize(
    "request_",
    [b"junk that is no request\r\n\r\n", b"CONNECT / HTTP/1.1\r\n\r\n", b"\x05\x01\x09"],
    ids=["junk", "target", "socks"],
)
async def test_what_was_wrong_reaches_a_client_that_is_still_sending(request_: bytes, tmp_path: Path) -> None:
    """Closing on bytes that were not read is a reset, and that can overtake the answer (RFC 9112 section 9.6)."""
    async with open_firewall({"allow": [NAME]}, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(request_)
        assert (await firewall.next_closed()).reason in {"bad-request", "proxy-auth"}
        for _ in range(3):
            await stream.send_all(b"and more")
            await trio.sleep(0.01)
        await stream.send_eof()
        answer, end = await until_end(stream)
        assert answer
        assert end == "eof"


async def test_a_client_that_goes_on_after_its_refusal_holds_its_place_for_a_second_at_most(tmp_path: Path) -> None:
    async with open_firewall({"allow": [NAME]}, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"CONNECT / HTTP/1.1\r\n\r\n")
        began = trio.current_time()
        with trio.fail_after(30):
            assert (await until_end(stream))[1] == "eof"
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"more")
                    await trio.sleep(0.05)
        assert trio.current_time() - began > 0.5


@pytest.mark.parametrize(
    "name", [b"localhost\0.origin.test.example", b"origin.test.example\0", b"a b.test.example", b"\xff.test.example"]
)
async def test_n7_a_connect_to_a_name_with_odd_bytes_is_refused(name: bytes, tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": ["*"]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"CONNECT " + name + b":%d HTTP/1.1\r\nHost: x\r\n\r\n" % origin.port)
        answer, _ = await until_end(stream)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert name not in answer
    assert origin.connections == 0


@pytest.mark.parametrize(
    "name", [b"localhost\0.origin.test.example", b"origin.test.example\0", b"a b.test.example", b"", b"127.1"]
)
async def test_n7_a_socks_request_for_a_name_with_odd_bytes_is_refused(name: bytes, tmp_path: Path) -> None:
    """The length byte lets any bytes be a name, a NUL included."""
    origin = _origin()
    async with open_firewall({"allow": ["*"]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        assert await socks5(stream, name, origin.port) == 2
        await firewall.next_closed()
    assert origin.connections == 0


async def test_two_targets_in_one_connect_are_refused(tmp_path: Path) -> None:
    origin = _origin(NAME, OTHER)
    async with open_firewall({"allow": [NAME, OTHER]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"CONNECT %b:443 HTTP/1.1\r\nHost: %b:443\r\n\r\n" % (NAME.encode(), OTHER.encode()))
        assert (await until_end(stream))[0].startswith(b"HTTP/1.1 400 ")
    assert origin.connections == 0


async def test_a_denial_is_a_403_that_says_why_and_what_would_allow_it(tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": [OTHER]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        status, head = await connect(stream, f"{NAME}:{origin.port}")
        body, end = await until_end(stream)
        assert status == 403
        assert b"x-sbxproxy-deny: domain-not-allowed\r\n" in head.lower()
        assert json.loads(body)["error"] == "domain-not-allowed"
        assert NAME in json.loads(body)["message"]
        assert end == "eof"
    assert origin.connections == 0


async def test_t2_a_tunnel_for_another_server_name_ends_with_access_denied(tmp_path: Path) -> None:
    """Alert 49 is the one that clients show as a denial."""
    origin = _origin(NAME, OTHER)
    async with open_firewall({"allow": [NAME, OTHER]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        assert (await connect(stream, f"{NAME}:{origin.port}"))[0] == 200
        await stream.send_all(client_hello(OTHER))
        assert await until_end(stream) == (ALERT_ACCESS_DENIED, "eof")
        assert (await firewall.next_closed()).reason == "sni-mismatch"
    assert origin.connections == 0


@pytest.mark.parametrize("front", ["connect", "socks5", "http"])
async def test_d4_the_proxys_own_listener_is_never_dialled(front: str, tmp_path: Path) -> None:
    """Not even where the policy opens its address: a connection to itself would go round until descriptors run out."""
    own = {"self.test.example": ["127.0.0.1"]}
    policies = {"127.0.0.1": {"subnets": {"allow": ["127.0.0.0/8"]}}, "self.test.example": {"allow": ["self.test.example"]}}
    for host, policy in policies.items():
        async with open_firewall(policy, directory=tmp_path, resolve=own) as firewall:
            stream = await firewall.open()
            match front:
                case "connect":
                    assert (await connect(stream, f"{host}:{firewall.port}"))[0] == 403
                case "socks5":
                    assert await socks5(stream, host, firewall.port) == 2
                case "http":
                    url = f"http://{host}:{firewall.port}/"
                    assert (await request(stream, f"{host}:{firewall.port}", url))[0] == 403
            await stream.aclose()
            await firewall.next_closed()
            expected = "plain-http" if (front, host) == ("http", "self.test.example") else "proxy-address"
            assert firewall.reasons == [expected]


async def test_d4_a_second_sandboxs_listener_is_not_dialled_either(tmp_path: Path) -> None:
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, directory=tmp_path) as firewall:
        second = firewall.proxy.create_sandbox("second", policy="allow-all")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await firewall.nursery.start(second.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        assert (await connect(await firewall.open(), f"127.0.0.1:{port}"))[0] == 403


# -- plain HTTP


async def test_t19_plain_http_is_not_allowed_by_a_domain(tmp_path: Path) -> None:
    """A Host field is whatever the client writes."""
    origin = _origin()
    origin.tls = False
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        url = f"http://{NAME}:{origin.port}/"
        status, _, body = await request(await firewall.open(), f"{NAME}:{origin.port}", url)
        assert status == 403
        assert json.loads(body)["error"] == "plain-http"
        stream = await firewall.open()
        assert (await connect(stream, f"{NAME}:{origin.port}"))[0] == 200
        assert (await request(stream, NAME))[0] == 403  # the same inside a tunnel
    assert origin.connections == 0


async def test_plain_http_in_a_range_is_forwarded_for_two_origins_on_one_connection(tmp_path: Path) -> None:
    """A proxy connection is no one origin's: each request goes where its own target says."""
    origins = [Origin((NAME,), tls=False), Origin((OTHER,), tls=False)]

    async def other(_seen: Seen) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply(b"the other one")

    origins[1].respond = other
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, *origins, directory=tmp_path) as firewall:
        stream = await firewall.open()
        for name, origin, expected in (
            (NAME, origins[0], HELLO),
            (OTHER, origins[1], b"the other one"),
            (NAME, origins[0], HELLO),
        ):
            authority = f"{name}:{origin.port}"
            status, _, body = await request(stream, authority, f"http://{authority}/path?q")
            assert (status, body) == (200, expected)
        await stream.aclose()
        await firewall.next_closed(3)
    assert [(seen.target, seen.one("host")) for seen in origins[0].requests] == [("/path?q", f"{NAME}:{origins[0].port}")] * 2
    assert [seen.target for seen in origins[1].requests] == ["/path?q"]
    assert [(event.front, event.decision) for event in firewall.closed()] == [("http", "relay")] * 3


async def test_a_request_in_origin_form_is_told_that_this_is_a_proxy(tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path) as firewall:
        status, _, body = await request(await firewall.open(), NAME)
        assert status == 400
        assert b"proxy" in body


@pytest.mark.parametrize("url", ["https://127.0.0.1:PORT/", "ftp://127.0.0.1:PORT/", "http:///", "http://user@127.0.0.1:PORT/"])
async def test_only_plain_http_is_forwarded_by_an_absolute_target(url: str, tmp_path: Path) -> None:
    """An https target would have the proxy speak TLS for a client that asked for none."""
    origin = _origin()
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, origin, directory=tmp_path) as firewall:
        target = url.replace("PORT", str(origin.port))
        assert (await request(await firewall.open(), f"127.0.0.1:{origin.port}", target))[0] == 400
    assert origin.connections == 0


# -- SOCKS5


@pytest.mark.parametrize("by", ["name", "address"])
async def test_socks5_opens_a_connection(by: str, tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        assert await socks5(stream, NAME if by == "name" else "198.51.100.1", origin.port) == 0
        await _get_through(firewall, origin, stream, origin.write_root(tmp_path))
        assert (await firewall.next_closed()).front == "socks5"


@pytest.mark.parametrize(
    ("host", "port", "command", "code"),
    [
        ("denied.test.example", 443, 1, 2),
        ("10.0.0.1", 443, 1, 2),
        ("127.0.0.1", 1, 1, 5),
        ("nowhere.test.example", 443, 1, 4),
        (NAME, 443, 2, 7),
        (NAME, 443, 3, 7),
    ],
)
async def test_socks5_reply_codes(host: str, port: int, command: int, code: int, tmp_path: Path) -> None:
    """RFC 1928 section 6: not allowed, refused, no such host, and commands that there are not."""

    class Nowhere:
        async def resolve(self, name: str) -> tuple[()]:
            from sbxproxy.errors import UpstreamResolveError

            await trio.lowlevel.checkpoint()
            raise UpstreamResolveError("the name has no address")

    names = [] if host == "10.0.0.1" else ["nowhere.test.example", NAME]  # else a server name could still decide
    policy = {"allow": names, "subnets": {"allow": ["127.0.0.0/8"]}}
    async with open_firewall(policy, directory=tmp_path, resolver=Nowhere()) as firewall:
        assert await socks5(await firewall.open(), host, port, command=command) == code
        await firewall.next_closed()


async def test_a_socks_client_without_an_acceptable_method_is_refused(tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"\x05\x01\x01")
        assert await until_end(stream) == (b"\x05\xff", "eof")


# -- user and password


AUTH = ListenerAuth(user="box", password="pass:word")


def _basic(user: str, password: str) -> str:
    return "Proxy-Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [_basic("box", "wrong")],
        [_basic("other", "pass:word")],
        ["Proxy-Authorization: Basic !!!"],
        ["Proxy-Authorization: Bearer pass:word"],
        [_basic("box", "pass:word"), _basic("box", "pass:word")],
    ],
)
async def test_l8_a_port_with_a_password_answers_407_to_everybody_else(fields: list[str], tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path, serve={"auth": AUTH}) as firewall:
        status, head = await connect(await firewall.open(), f"{NAME}:{origin.port}", *fields)
        assert status == 407
        assert b"proxy-authenticate: basic" in head.lower()
        assert (await firewall.next_closed()).reason == "proxy-auth"
    assert origin.connections == 0


async def test_the_right_password_opens_either_way_and_goes_no_further(tmp_path: Path) -> None:
    origin = Origin((NAME,), tls=False)
    policy = {"subnets": {"allow": ["127.0.0.0/8"]}}
    async with open_firewall(policy, origin, directory=tmp_path, serve={"auth": AUTH}) as firewall:
        authority = f"{NAME}:{origin.port}"
        stream = await firewall.open()
        assert (await connect(stream, authority, _basic(AUTH.user, AUTH.password)))[0] == 200
        assert (await request(stream, authority))[0] == 200
        stream = await firewall.open()
        assert await socks5(stream, NAME, origin.port, user=(AUTH.user, AUTH.password)) == 0
        assert (await request(stream, authority))[0] == 200
        stream = await firewall.open()
        fields = [_basic(AUTH.user, AUTH.password)]
        assert (await request(stream, authority, f"http://{authority}/", fields=fields))[0] == 200
        env = firewall.environment(auth=AUTH)
        assert "pass%3Aword" in env["HTTPS_PROXY"]
    assert [seen.one("proxy-authorization") for seen in origin.requests] == [None, None, None]
    assert AUTH.password not in repr(AUTH)


@pytest.mark.parametrize("user", [("box", "wrong"), ("", "pass:word")])
async def test_l8_socks_with_a_wrong_password_is_refused(user: tuple[str, str], tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path, serve={"auth": AUTH}) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"\x05\x02\x00\x02")
        assert await exactly(stream, 2) == b"\x05\x02"
        name, password = (part.encode() for part in user)
        await stream.send_all(b"\x01" + bytes((len(name),)) + name + bytes((len(password),)) + password)
        with trio.fail_after(30):
            answer, _ = await until_end(stream)
        assert answer in {b"\x01\x01", b""}
        event = await firewall.next_closed()
        assert event.reason == ("proxy-auth" if name else "bad-request")
        assert answer or not name


async def test_l8_socks_without_a_password_is_refused(tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path, serve={"auth": AUTH}) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"\x05\x01\x00" + socks_request("1.1.1.1", 443))
        assert await until_end(stream) == (b"\x05\xff", "eof")


# -- PROXY protocol


def _proxy_header(host: str, port: int, *, command: int = 0x21) -> bytes:
    addresses = bytes((192, 0, 2, 1)) + bytes(int(part) for part in host.split(".")) + struct.pack(">HH", 4711, port)
    return PROXY_V2 + bytes((command, 0x11)) + struct.pack(">H", len(addresses)) + addresses


async def test_a_proxy_header_from_a_trusted_peer_gives_the_target(tmp_path: Path) -> None:
    origin = _origin()
    trusted = {"trusted_proxies": [ip_network("127.0.0.0/8")]}
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path, serve=trusted) as firewall:
        stream = await firewall.open()
        await stream.send_all(_proxy_header("198.51.100.7", origin.port))
        await _get_through(firewall, origin, stream, origin.write_root(tmp_path))
        event = await firewall.next_closed()
    assert (event.front, event.target) == ("proxy-protocol", f"198.51.100.7:{origin.port}")


@pytest.mark.parametrize(
    ("trusted", "first"),
    [
        ("10.0.0.0/8", _proxy_header("127.0.0.1", 443)),
        ("127.0.0.0/8", b"CONNECT origin.test.example:443 HTTP/1.1\r\n\r\n"),
        ("127.0.0.0/8", b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 443\r\n"),
        ("127.0.0.0/8", _proxy_header("127.0.0.1", 443, command=0x20)),
        ("127.0.0.0/8", _proxy_header("127.0.0.1", 0)),
        ("127.0.0.0/8", client_hello(NAME)),
    ],
)
async def test_d15_a_listener_for_proxy_headers_takes_nothing_else(trusted: str, first: bytes, tmp_path: Path) -> None:
    """An untrusted peer, no header, the old version, a health check, port 0: none becomes a connection."""
    origin = _origin()
    options = {"trusted_proxies": [ip_network(trusted)]}
    policy = {"allow": [NAME], "subnets": {"allow": ["127.0.0.0/8"]}}
    async with open_firewall(policy, origin, directory=tmp_path, serve=options) as firewall:
        stream = await firewall.open()
        await stream.send_all(first)
        assert (await until_end(stream))[0] == b""
        assert (await firewall.next_closed()).reason == "bad-request"
    assert origin.connections == 0


@pytest.mark.parametrize("trusted", [["unix"], [ip_network("127.0.0.0/8"), "unix"], [ip_network("0.0.0.0/0")]])
async def test_d15_a_unix_socket_takes_proxy_headers_only_if_told_so(trusted: list[Any], tmp_path: Path) -> None:
    """Its peers have no address, so no range of addresses stands for them."""
    origin = _origin()
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        path = tmp_path / "ingress"
        serve = partial(firewall.sandbox.serve, [open_unix_listener(path)], trusted_proxies=trusted)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            stream = await trio.open_unix_socket(path)
            await stream.send_all(_proxy_header("198.51.100.7", origin.port))
            if "unix" in trusted:
                await _get_through(firewall, origin, stream, origin.write_root(tmp_path))
                event = await firewall.next_closed()
                assert (event.front, event.target) == ("proxy-protocol", f"198.51.100.7:{origin.port}")
            else:
                assert (await until_end(stream))[0] == b""
                assert (await firewall.next_closed()).reason == "bad-request"
                await stream.aclose()
            nursery.cancel_scope.cancel()


async def test_d15_a_tcp_peer_is_none_of_a_unix_socket(tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path, serve={"trusted_proxies": ["unix"]}) as firewall:
        stream = await firewall.open()
        await stream.send_all(_proxy_header("198.51.100.7", 443))
        assert (await until_end(stream))[0] == b""
        assert (await firewall.next_closed()).reason == "bad-request"


async def test_d15_a_proxy_header_on_a_plain_listener_is_denied(tmp_path: Path) -> None:
    """The program in the sandbox could write one itself."""
    origin = _origin()
    async with open_firewall({"subnets": {"allow": ["127.0.0.0/8"]}}, origin, directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(_proxy_header("127.0.0.1", origin.port) + client_hello(NAME))
        assert (await until_end(stream))[0] == b""
        event = await firewall.next_closed()
        assert (event.decision, event.reason) == ("deny", "bad-request")
    assert origin.connections == 0


# -- other ways in


async def test_a_unix_socket_is_a_listener_too(tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        path = tmp_path / "proxy.sock"
        await firewall.nursery.start(firewall.sandbox.serve, [open_unix_listener(path)])
        async with await trio.open_unix_socket(path) as stream:
            assert (await connect(stream, f"{NAME}:{origin.port}"))[0] == 200
            await _get_through(firewall, origin, stream, origin.write_root(tmp_path))


async def test_any_stream_can_be_handed_over_with_its_target(tmp_path: Path) -> None:
    origin = _origin()
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        near, far = trio.testing.memory_stream_pair()
        firewall.nursery.start_soon(firewall.sandbox.handle, far, ("203.0.113.7", origin.port))
        async with await handshake(near, NAME, origin.write_root(tmp_path)) as tls:
            assert (await request(tls, NAME))[2] == HELLO
        assert (await firewall.next_closed()).front == "stream"


@pytest.mark.parametrize("target", [("not a host", 443), ("a.example.com", 0), ("a.example.com", 65536), ("1.2.3", 443)])
async def test_a_stream_for_no_target_is_closed(target: tuple[str, int], tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path) as firewall:
        near, far = trio.testing.memory_stream_pair()
        with pytest.raises(ValueError):
            await firewall.sandbox.handle(far, target)
        assert await near.receive_some() == b""


async def test_a_server_that_speaks_first_is_heard_through_an_allowed_range(tmp_path: Path) -> None:
    async def banner(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await stream.send_all(b"got " + await stream.receive_some())

    origin = Origin((NAME,), tls=False, handler=banner)
    rules = {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}
    policy = {"allow": rules, "subnets": {"allow": ["127.0.0.0/8"]}}
    async with open_firewall(policy, origin, directory=tmp_path) as firewall:
        for ask in ("connect", "socks5"):
            stream = await firewall.open()
            if ask == "connect":
                assert (await connect(stream, f"127.0.0.1:{origin.port}"))[0] == 200
            else:
                assert await socks5(stream, "127.0.0.1", origin.port) == 0
            with trio.fail_after(30):
                assert await exactly(stream, 11) == b"220 ready\r\n"
            await stream.send_all(b"EHLO")
            assert await until_end(stream) == (b"got EHLO", "eof")


async def test_rules_hold_for_their_name_through_an_allowed_range_too(tmp_path: Path) -> None:
    """A client can't avoid the credential, or bring its own, by dialling the address."""
    origin = _origin()
    rules = {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:k}"}}]}]}
    policy = {"allow": rules, "subnets": {"allow": ["127.0.0.0/8"]}}
    async with open_firewall(policy, origin, directory=tmp_path, secrets={"k": "theirs"}) as firewall:
        stream = await firewall.open()
        assert (await connect(stream, f"127.0.0.1:{origin.port}"))[0] == 200
        async with await handshake(stream, NAME, trust=firewall.sandbox.certificate_pem) as tls:
            status, _, _ = await request(tls, f"{NAME}:{origin.port}", fields=["Authorization: Bearer mine"])
            assert status == 200
        assert (await firewall.next_closed()).decision == "inspect"
    assert [seen.all("authorization") for seen in origin.requests] == [["Bearer theirs"]]


@pytest.mark.parametrize(
    "first", [b"\x04\x01\x00\x50\x01\x01\x01\x01\x00", b"\x16\x03\x01\x00\x05junk!", b"\x00\x00\x00\x08\x04\xd2\x16\x2f"]
)
async def test_a_listener_denies_what_is_neither_http_nor_socks5(first: bytes, tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(first)
        assert (await until_end(stream))[0] == b""
        assert (await firewall.next_closed()).reason == "bad-request"


async def test_t18_a_request_head_that_dribbles_in_is_cut_off_in_all(tmp_path: Path) -> None:
    from sbxproxy import Limits

    async with open_firewall("allow-all", directory=tmp_path, limits=Limits(first_bytes=0.5)) as firewall:
        stream = await firewall.open()
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"C")
                await trio.sleep(0.1)
        assert (await firewall.next_closed()).reason == "first-bytes-timeout"


async def test_a_head_beyond_the_limit_is_told(tmp_path: Path) -> None:
    async with open_firewall("allow-all", directory=tmp_path) as firewall:
        stream = await firewall.open()
        await stream.send_all(b"CONNECT a.example.com:443 HTTP/1.1\r\nX: " + b"x" * 70_000)
        assert (await read_head(stream)).split()[1] == b"431"
