"""Credentials: they reach the verified server that a rule names, in its requests alone, and nothing else ever shows them."""

from __future__ import annotations

import gc
import json
import logging
import traceback
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
import trustme

from sbxproxy import CallableSource, EnvironmentSource, FileSource, JsonLines, Pipeline, PolicyError, Secret, SecretError, Secrets
from sbxproxy.events import RequestDone
from sbxproxy.http.message import Request
from support.firewall import Firewall, open_firewall
from support.origin import Origin, Reply, Seen
from support.talk import connect, handshake, read_head, request, until_end

NAME, OTHER = "origin.test.example", "other.test.example"
CANARY = "canary-9b1f77d0aa34"


def _inject(name: str = NAME, secret: str = "k", field: str = "Authorization") -> dict[str, Any]:
    return {name: [{"transform": [{"headers": {field: f"Bearer ${{secret:{secret}}}"}}]}]}


async def _open(firewall: Firewall, name: str, port: int) -> trio.SSLStream:
    stream = await firewall.open()
    assert (await connect(stream, f"{name}:{port}"))[0] == 200
    return await handshake(stream, name, trust=firewall.sandbox.certificate_pem)


async def test_c1_what_the_client_sends_under_that_name_is_replaced(tmp_path: Path) -> None:
    """Two fields, another case, an underscore: a server behind a gateway might take any of them for the credential."""
    origin = Origin((NAME,))
    fields = ["authorization: mine", "AUTHORIZATION: mine too", "X-Token: a", "x_token: b", "Connection: x-token, authorization"]
    rules = {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:k}", "X-Token": "${secret:k}"}}]}]}
    async with open_firewall({"allow": rules}, origin, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        assert (await request(tls, f"{NAME}:{origin.port}", fields=fields))[0] == 200
    (seen,) = origin.requests
    assert seen.all("authorization") == [f"Bearer {CANARY}"]
    assert seen.all("x-token") == [CANARY]
    assert seen.all("x_token") == []
    assert "token" not in " ".join(seen.all("connection")).lower()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_c5_a_redirect_is_passed_on_and_the_next_host_gets_nothing(status: int, tmp_path: Path) -> None:
    """Following it would send the credential wherever the server likes."""
    second = Origin((OTHER,))

    async def redirect(_seen: Seen) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply(b"", status, (("Location", f"https://{OTHER}:{second.port}/stolen"),))

    first = Origin((NAME,), respond=redirect)
    policy = {"allow": {**_inject(), OTHER: []}}
    async with open_firewall(policy, first, second, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        tls = await _open(firewall, NAME, first.port)
        got, head, _ = await request(tls, f"{NAME}:{first.port}")
        assert got == status
        assert f"location: https://{OTHER}:{second.port}/stolen".encode() in head.lower()
        assert second.connections == 0
        stream = await firewall.open()
        await connect(stream, f"{OTHER}:{second.port}")
        assert (await request(await handshake(stream, OTHER, second.write_root(tmp_path)), f"{OTHER}:{second.port}"))[0] == 200
    assert len(first.requests) == 1
    assert CANARY not in repr(second.requests)


async def test_c6_a_secret_goes_to_the_host_of_its_rule_alone(tmp_path: Path) -> None:
    """A program that writes the placeholder itself gets the placeholder."""
    origins = Origin((NAME,)), Origin((OTHER,))
    policy = {"allow": {**_inject(), **_inject(OTHER, "other")}}
    secrets = {"k": CANARY, "other": "another"}
    async with open_firewall(policy, *origins, directory=tmp_path, secrets=secrets) as firewall:
        tls = await _open(firewall, OTHER, origins[1].port)
        fields = ["X-Try: ${secret:k}"]
        assert (await request(tls, f"{OTHER}:{origins[1].port}", "/$%7Bsecret:k%7D", fields=fields))[0] == 200
    (seen,) = origins[1].requests
    assert seen.one("authorization") == "Bearer another"
    assert seen.one("x-try") == "${secret:k}"
    assert CANARY not in repr(seen)
    assert origins[0].connections == 0


@pytest.mark.parametrize("host", [OTHER, f"{OTHER}:443", f"{NAME}.{OTHER}", "127.0.0.1", f"{NAME}:1"])
async def test_c7_t3_another_host_than_the_server_name_is_refused(host: str, tmp_path: Path) -> None:
    """Rules are those of the name that was verified, never of the name that a request claims."""
    origin = Origin((NAME, OTHER))
    policy = {"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}], **_inject(OTHER)}}
    async with open_firewall(policy, origin, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        status, _, body = await request(tls, host)
        assert status == 421
        assert json.loads(body)["error"] == "host-mismatch"
        with trio.fail_after(30):
            assert (await until_end(tls.transport_stream))[1] == "eof"  # a reset could overtake the reply
    assert origin.requests == []


async def test_t3_the_host_is_checked_on_every_request(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    async with open_firewall({"allow": _inject()}, origin, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
        assert (await request(tls, f"{OTHER}:{origin.port}"))[0] == 421
    assert len(origin.requests) == 1


async def _talk_plain(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    assert (await until_end(stream))[0][:1] in {b"\x16", b""}


async def _bad(kind: str) -> Origin:
    """An origin whose certificate is not good for its name."""
    await trio.lowlevel.checkpoint()
    stranger = trustme.CA()
    origin = Origin((NAME,))
    match kind:
        case "unknown authority":
            origin.certificate = stranger.issue_cert(NAME)
        case "another name":
            origin.certificate = origin.authority.issue_cert(OTHER)
        case "common name only":
            origin.certificate = origin.authority.issue_cert(OTHER, common_name=NAME)
    return origin


@pytest.mark.parametrize("kind", ["unknown authority", "another name", "common name only", "no tls"])
async def test_c8_u3_u4_an_unverified_upstream_gets_no_request_and_the_client_no_success(kind: str, tmp_path: Path) -> None:
    origin = await _bad(kind)
    if kind == "no tls":
        origin.tls, origin.handler = False, _talk_plain
    async with open_firewall({"allow": _inject()}, origin, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        status, head, body = await request(tls, f"{NAME}:{origin.port}", "/secret-path")
        assert status == 502
        assert CANARY.encode() not in head + body
        assert b"secret-path" not in head + body
        await tls.aclose()
        await firewall.next_closed()
        done = [event for event in firewall.events if isinstance(event, RequestDone)]
        assert [(event.status, event.reason is not None) for event in done] == [(502, True)]
    assert origin.requests == []
    assert origin.received == 0


async def test_c8_a_credential_never_goes_out_in_plain_text(tmp_path: Path) -> None:
    """Not even to an address that an allowed range opens, for the very name of the rule."""
    origin = Origin((NAME,), tls=False)
    policy = {"allow": _inject(), "subnets": {"allow": ["127.0.0.0/8"]}}
    async with open_firewall(policy, origin, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        authority = f"{NAME}:{origin.port}"
        assert (await request(await firewall.open(), authority, f"http://{authority}/"))[0] == 200
        stream = await firewall.open()
        assert (await connect(stream, authority))[0] == 200
        assert (await request(stream, authority))[0] == 200
    assert len(origin.requests) == 2
    assert CANARY not in repr(origin.requests)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "nul\0", "é", "", "x" * 20_000])
async def test_c3_a_secret_that_no_header_can_hold_refuses_the_request(value: str, tmp_path: Path) -> None:
    origin = Origin((NAME,))

    async def fetch(_name: str) -> str:
        await trio.lowlevel.checkpoint()
        return value

    async with open_firewall({"allow": _inject()}, origin, directory=tmp_path, secrets={"k": CallableSource(fetch)}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        status, _, body = await request(tls, f"{NAME}:{origin.port}")
        assert status == 502
        assert json.loads(body)["error"] == "secret-unavailable"
    assert origin.requests == []
    with pytest.raises(SecretError) as caught:
        Secrets({"k": value})
    assert not value.strip("x") or value not in "".join(traceback.format_exception(caught.value))


def _shown(item: object) -> str:
    """Show *item*; objects that other tests left half made can't be, and show nothing then."""
    try:
        return repr(item)
    except Exception:
        return ""


async def test_c11_a_secret_is_in_nothing_that_is_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, log records, representations, tracebacks and error bodies, on good ways and on bad ones."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SBX_TEST_TOKEN", CANARY)
    (tmp_path / "token").write_text(CANARY + "\n")
    lines = tmp_path / "events.jsonl"

    async def fails(_name: str) -> str:
        await trio.lowlevel.checkpoint()
        raise RuntimeError(f"no luck with {CANARY}")

    secrets: dict[str, Any] = {
        "literal": CANARY, "held": Secret(CANARY), "env": EnvironmentSource("SBX_TEST_TOKEN"),
        "file": FileSource(tmp_path / "token"), "fails": CallableSource(fails),
    }  # fmt: skip
    rules = [
        {"match": {"path": {"exact": f"/{name}"}}, "transform": [{"headers": {"Authorization": f"Bearer ${{secret:{name}}}"}}]}
        for name in secrets
    ]
    origin = Origin((NAME,))
    texts: list[str] = []
    with lines.open("w") as stream:
        log = JsonLines(stream)
        options: dict[str, Any] = {"secrets": secrets, "observers": [log]}
        async with open_firewall({"allow": {NAME: rules}}, origin, directory=tmp_path, **options) as firewall:
            for name in secrets:
                tls = await _open(firewall, NAME, origin.port)
                status, head, body = await request(tls, f"{NAME}:{origin.port}", f"/{name}?token={CANARY}")
                assert status == (502 if name == "fails" else 200)
                texts += [head.decode(), body.decode()]
                await tls.aclose()
            sandbox = firewall.sandbox
            with pytest.raises(PolicyError) as caught:
                await sandbox.update_policy({"allow": _inject(field=f"bad {CANARY}\r\n"), "x": CANARY})
            texts += traceback.format_exception(caught.value)
            await firewall.next_closed(len(secrets))
            held = Secrets(secrets)
            texts += [
                repr(item) for item in (sandbox, firewall.proxy, sandbox.policy, sandbox.policy.document(), held, secrets["held"])
            ]
            texts += [f"{secrets['held']} {secrets['held']:>9}", repr(firewall.events), repr(sandbox.flows), repr(secrets["env"])]
            shown = [item for item in gc.get_objects() if str(type(item).__module__).startswith("sbxproxy.")]
            texts += [_shown(item) for item in shown if "testing" not in str(type(item).__module__)]
        assert log.close()
    assert [seen.one("authorization") for seen in origin.requests] == [f"Bearer {CANARY}"] * 4
    texts += [lines.read_text(), caplog.text, *capfd.readouterr()]
    assert len(lines.read_text().splitlines()) == len(firewall.events)
    assert not [text for text in texts if CANARY in text]


async def test_a_policy_read_back_shows_no_header_value(tmp_path: Path) -> None:
    rules = {NAME: [{"transform": [{"headers": {"Authorization": CANARY}}]}]}
    async with open_firewall({"allow": rules}, directory=tmp_path) as firewall:
        document = json.dumps(firewall.sandbox.policy.document())
        assert CANARY not in document
        assert "<redacted>" in document
        with pytest.raises(PolicyError):
            await firewall.sandbox.update_policy(json.loads(document))


async def test_c17_a_rotated_secret_goes_out_from_the_next_request_on(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    path = tmp_path / "token"
    path.write_text("first\n")
    async with open_firewall({"allow": _inject()}, origin, directory=tmp_path, secrets={"k": FileSource(path)}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
        path.write_text("the second\n")
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
        path.unlink()
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 502
    assert [seen.one("authorization") for seen in origin.requests] == ["Bearer first", "Bearer the second"]


async def test_l2_a_credential_that_the_policy_no_longer_has_is_not_sent(tmp_path: Path) -> None:
    """Nor with a request that was begun before and whose source or body was waited for; a program could begin many in advance."""

    @dataclass
    class Stamp:
        token: Secret
        body_limit: ClassVar[int] = 1000

        async def on_request(self, _flow: Any, asked: Request) -> Request:
            await trio.lowlevel.checkpoint()
            return asked.with_header("authorization", self.token.reveal())

    async def fetch(_name: str) -> str:
        asked.set()
        await slow.wait()
        return CANARY

    asked, slow = trio.Event(), trio.Event()
    stamped = {"match": {"method": ["POST"]}, "transform": [{"plugin": "stamp", "config": {"token": "${secret:k}"}}]}
    fetched = {"transform": [{"headers": {"authorization": "${secret:slow}"}}]}
    origin = Origin((NAME,))
    options: dict[str, Any] = {
        "secrets": {"k": CANARY, "slow": CallableSource(fetch)},
        "pipeline": Pipeline(transforms={"stamp": Stamp}),
    }
    host = f"Host: {NAME}:"
    async with open_firewall({"allow": {NAME: [stamped, fetched]}}, origin, directory=tmp_path, **options) as firewall:
        posting, getting = [await _open(firewall, NAME, origin.port) for _ in range(2)]
        await posting.send_all(f"POST / HTTP/1.1\r\n{host}{origin.port}\r\nContent-Length: 2\r\n\r\na".encode())
        await getting.send_all(f"GET / HTTP/1.1\r\n{host}{origin.port}\r\n\r\n".encode())
        await asked.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)  # until the first byte of the body was read as well
        await firewall.sandbox.update_policy({"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}})
        slow.set()
        await posting.send_all(b"b")
        assert (await read_head(posting)).startswith(b"HTTP/1.1 200 ")
        assert (await read_head(getting)).startswith(b"HTTP/1.1 403 ")
    (seen,) = origin.requests
    assert (seen.method, seen.body, seen.one("authorization"), seen.one("x")) == ("POST", b"ab", None, "y")


async def test_l2_nor_is_one_whose_request_waited_for_a_connection(tmp_path: Path) -> None:
    async def dial(addresses: Any, port: int) -> Any:
        if not going.is_set():
            dialling.set()
            await going.wait()
        return await trio.open_tcp_stream(str(addresses[0]), port), addresses[0]

    dialling, going = trio.Event(), trio.Event()
    going.set()
    origin = Origin((NAME,))
    policy = {"allow": _inject()}
    async with open_firewall(policy, origin, directory=tmp_path, secrets={"k": CANARY}, dialer=dial) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
        await firewall.sandbox.update_policy(policy)  # drops the connection that was kept
        going = trio.Event()
        await tls.send_all(f"GET / HTTP/1.1\r\nHost: {NAME}:{origin.port}\r\n\r\n".encode())
        await dialling.wait()
        await firewall.sandbox.update_policy({"allow": {NAME: [{"transform": [{"headers": {"x": "y"}}]}]}})
        going.set()
        assert (await read_head(tls)).startswith(b"HTTP/1.1 403 ")
    assert [seen.one("authorization") for seen in origin.requests] == [f"Bearer {CANARY}"]


async def test_a_request_that_no_rule_matches_goes_out_without_a_credential(tmp_path: Path) -> None:
    origin = Origin((NAME,))
    rules = _inject()
    rules[NAME][0]["match"] = {"path": {"startsWith": "/api/"}, "method": ["POST"]}
    async with open_firewall({"allow": rules}, origin, directory=tmp_path, secrets={"k": CANARY}) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        for target, method in (("/api/x", "GET"), ("/other", "POST"), ("/api/x", "POST")):
            assert (await request(tls, f"{NAME}:{origin.port}", target, method=method, body=b"b" * (method == "POST")))[0] == 200
        for target in ("/api/../other", "/api/%2e%2e/other", "//api/x"):
            assert (await request(tls, f"{NAME}:{origin.port}", target, method="POST", body=b"b"))[0] == 400
    assert [seen.one("authorization") for seen in origin.requests] == [None, None, f"Bearer {CANARY}"]


async def test_d9_a_second_connection_of_an_inspected_flow_is_judged_again(tmp_path: Path) -> None:
    """A name may be pointed at the host between two requests of one connection."""

    answers = ["127.0.0.1", "127.0.0.2"]

    class Rebinding:
        async def resolve(self, name: str) -> tuple[Any, ...]:
            await trio.lowlevel.checkpoint()
            return (ip_address(answers.pop(0)),)

    async def closing(_seen: Seen) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply(headers=(("Connection", "close"),))

    origin = Origin((NAME,), respond=closing)
    options: dict[str, Any] = {"private": ["127.0.0.1/32"], "secrets": {"k": CANARY}, "resolver": Rebinding()}
    async with open_firewall({"allow": _inject()}, origin, directory=tmp_path, **options) as firewall:
        tls = await _open(firewall, NAME, origin.port)
        assert (await request(tls, f"{NAME}:{origin.port}"))[0] == 200
        status, _, body = await request(tls, f"{NAME}:{origin.port}")
        assert status == 403
        assert json.loads(body)["error"] == "private-address"
    assert origin.connections == 1


async def test_a_canned_response_needs_no_upstream(tmp_path: Path) -> None:
    rules = [{"response": {"statusCode": 418, "contentType": "text/plain", "body": "short and stout"}}]
    async with open_firewall({"allow": {"nowhere.test.example": rules}}, directory=tmp_path) as firewall:
        tls = await _open(firewall, "nowhere.test.example", 443)
        status, _, body = await request(tls, "nowhere.test.example")
        assert (status, body) == (418, b"short and stout")
        await tls.aclose()
