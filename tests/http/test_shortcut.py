"""The short way ends wherever something is unusual, and nobody can tell from outside which way a request went."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sbxproxy.http import Denied
from sbxproxy.http.exchange import Exchange
from sbxproxy.http.message import Headers
from sbxproxy.http.shortcut import Shortcut
from sbxproxy.wire.plain_head import REMEMBERED
from support.http_peers import OK, Upstream, World, limits, read_until, request

HEADED = b"HTTP/1.1 200 OK\r\nX-A: b\r\nAlt-Svc: h3\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok"
ANSWERS = [
    OK,
    HEADED,
    b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX_Y: z\r\nContent-Length: 2\r\n\r\nok",
]
REQUESTS = [
    request(b"GET /a?b HTTP/1.1"),
    request(b"GET / HTTP/1.1", b"X-A: b", b"Connection: keep-alive", b"TE: trailers"),
    request(b"HEAD / HTTP/1.1"),
    request(b"POST / HTTP/1.1", b"Content-Length: 3", body=b"abc"),
    request(b"DELETE / HTTP/1.1", b"Content-Length: 0"),
    request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
]


class Prompt(World):
    """One whose handler decides at once."""

    def at_once(self, method: str, target: str, headers: Headers) -> Headers | None:
        self.told = [*getattr(self, "told", []), (method, target, headers)]
        return headers


async def _conversation(nursery, raw: bytes, answer: bytes, kind: type[World] = World, **options) -> tuple[bytes, World]:
    """Make three requests, so that all but the first find a connection and lines that came before."""
    world = kind(nursery, Upstream(answer), **options)
    client = world.client()
    got = b""
    for _ in range(3):
        try:
            await client.send_all(raw)
            with trio.fail_after(30):
                got += await read_until(client, lambda data: _is_whole(data, head_only=raw.startswith(b"HEAD")))
        except (trio.BrokenResourceError, AssertionError):
            break
    await client.aclose()
    await world.over.wait()
    await world.pool.aclose_all()
    return got, world


def _is_whole(data: bytes, *, head_only: bool) -> bool:
    while data.startswith(b"HTTP/1.1 1"):
        data = data.partition(b"\r\n\r\n")[2]
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    lines = head.lower().split(b"\r\n")
    if head_only or lines[0].split()[1] in {b"204", b"304"}:
        return True
    if b"transfer-encoding: chunked" in lines:
        return body.endswith(b"0\r\n\r\n")
    return len(body) == int(next(line for line in lines if line.startswith(b"content-length:"))[15:])


def _comparable(raw: bytes) -> list[list[bytes]]:
    """Messages, each with its lines in an order of their own: where the length stands is nobody's business."""
    return [sorted(part.lower().split(b"\r\n")) for part in raw.split(b"\r\n\r\n")]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("raw", REQUESTS)
async def test_both_ways_say_the_same(nursery, monkeypatch, raw, answer):
    """To the client, to the upstream, and to the record."""
    ours, quick = await _conversation(nursery, raw, answer)
    monkeypatch.setattr(Exchange, "_is_at_hand", lambda _self, _job: False)
    theirs, slow = await _conversation(nursery, raw, answer)
    assert _comparable(ours) == _comparable(theirs)
    assert _comparable(quick.upstream.raw) == _comparable(slow.upstream.raw)
    assert len(quick.connects) == len(slow.connects)
    story = [(r.method, r.path, r.status, r.bytes_up, r.bytes_down, r.reason) for r in quick.records]
    assert story == [(r.method, r.path, r.status, r.bytes_up, r.bytes_down, r.reason) for r in slow.records]
    assert len(story) in {1, 3}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("raw", REQUESTS)
async def test_what_is_decided_at_once_is_carried_the_same(nursery, monkeypatch, raw, answer):
    """Be it that the handler is asked with all the objects of a request, or with none, and whatever comes back."""
    ours, quick = await _conversation(nursery, raw, answer, Prompt)
    monkeypatch.setattr(Exchange, "_is_at_hand", lambda _self, _job: False)
    theirs, slow = await _conversation(nursery, raw, answer)
    assert _comparable(ours) == _comparable(theirs)
    assert _comparable(quick.upstream.raw) == _comparable(slow.upstream.raw)
    assert len(quick.connects) == len(slow.connects)
    story = [(r.method, r.path, r.status, r.bytes_up, r.bytes_down, r.reason) for r in quick.records]
    assert story == [(r.method, r.path, r.status, r.bytes_up, r.bytes_down, r.reason) for r in slow.records]
    chunked = b"Transfer-Encoding" in raw
    assert bool(quick.requests) is chunked  # asked in the long way only about what is not plain
    assert hasattr(quick, "told") is not chunked


@pytest.mark.parametrize("size", [1, 7, 60])
async def test_what_is_decided_at_once_may_come_in_parts(nursery, size):
    world = Prompt(nursery, Upstream(HEADED))
    client = world.client()
    raw = request(b"POST /x HTTP/1.1", b"Content-Length: 3", body=b"abc")
    for _ in range(3):
        for start in range(0, len(raw), size):
            await client.send_all(raw[start : start + size])
            await trio.testing.wait_all_tasks_blocked()
        await read_until(client, lambda data: _is_whole(data, head_only=False))
    assert [seen.body for seen in world.upstream.requests] == [b"abc"] * 3
    assert [(record.status, record.bytes_up, record.bytes_down) for record in world.records] == [(200, 3, 2)] * 3


async def test_requests_that_come_together_are_decided_one_by_one(nursery):
    world = Prompt(nursery, Upstream(OK))
    client = world.client()
    raws = [request(b"POST /%d HTTP/1.1" % number, b"Content-Length: 1", body=b"%d" % number) for number in range(5)]
    await client.send_all(b"".join(raws))
    await read_until(client, lambda data: data.count(b"HTTP/1.1 200") == 5)
    assert [target for _, target, _ in world.told] == [f"/{number}" for number in range(5)]
    assert [seen.body for seen in world.upstream.requests] == [b"%d" % number for number in range(5)]


@pytest.mark.parametrize("answer", ["raise", "deny", "text"])
async def test_what_fails_at_once_goes_nowhere(nursery, answer):
    """As it does wherever else a handler fails."""

    class Failing(World):
        def at_once(self, *_: object) -> Headers | None:
            if answer == "raise":
                raise ValueError("canary")
            if answer == "deny":
                raise Denied("some-reason", "no")
            return "canary"

    world = Failing(nursery, Upstream(OK))
    client = world.client()
    await client.send_all(request(b"GET / HTTP/1.1"))
    got = await read_until(client, b"}\n")
    assert got.startswith(b"HTTP/1.1 403" if answer == "deny" else b"HTTP/1.1 502")
    assert b"canary" not in got
    assert not world.connects


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"GET / HTTP/1.1", b"Host: other.example"),
        (b"GET / HTTP/1.1", b"X: y\r\nExpect: 100-continue"),
        (b"TRACE / HTTP/1.1", b"X: y"),
        (b"GET / HTTP/1.1", b"Connection: x"),
        (b"GET / HTTP/1.1", b"X_Y: z\r\nUpgrade: websocket"),
        (b"POST / HTTP/1.1", b"Content-Length: 1\r\nTransfer-Encoding: chunked"),
    ],
)
async def test_what_is_unusual_is_never_decided_at_once(nursery, line, field):
    world = Prompt(nursery, Upstream(OK))
    client = world.client()
    await client.send_all(request(line, field))
    await trio.testing.wait_all_tasks_blocked()
    assert not hasattr(world, "told")


async def test_h19_another_host_is_never_decided_at_once(nursery):
    """Nor after the right one."""
    world = Prompt(nursery, Upstream(OK))
    client = world.client()
    await client.send_all(request(b"GET / HTTP/1.1"))
    await read_until(client, OK[-2:])
    await client.send_all(b"GET /canary HTTP/1.1\r\nHost: other.example\r\n\r\n")
    got = await read_until(client, b"}\n")
    assert got.startswith(b"HTTP/1.1 421")
    assert [target for _, target, _ in world.told] == ["/"]
    assert b"canary" not in world.upstream.raw


async def test_the_usual_does_go_the_short_way(nursery, monkeypatch):
    """Otherwise the comparison above would be one of a thing with itself."""
    went = []
    run = Shortcut.run

    async def watched(self, *args, **options):
        went.append(await run(self, *args, **options))
        return went[-1]

    monkeypatch.setattr(Shortcut, "run", watched)
    for raw in REQUESTS[:5]:
        await _conversation(nursery, raw, HEADED if not raw.startswith(b"HEAD") else HEADED[:-2])
        assert went == [None, True, True]
        went.clear()


@pytest.mark.parametrize("size", [10, REMEMBERED - 200, REMEMBERED, 3 * REMEMBERED])
async def test_long_lines_are_not_kept_by_a_connection_that_waits(nursery, size):
    """They pass as any others."""
    answer = b"HTTP/1.1 200 OK\r\nX-A: %b\r\nContent-Length: 2\r\n\r\nok" % (b"a" * size)
    got, world = await _conversation(nursery, request(b"GET / HTTP/1.1", b"X-B: " + b"b" * size), answer)
    assert got.count(b"a" * size) == 3
    assert [seen.all(b"x-b") for seen in world.upstream.requests] == [[b"b" * size]] * 3
    assert len(world.connects) == 1


async def test_lines_that_change_are_noticed(nursery):
    world = World(nursery, Upstream())
    client = world.client()
    for number in (b"1", b"1", b"2", b"1", b"22"):
        await client.send_all(request(b"GET /" + number + b" HTTP/1.1", b"X-A: " + number))
        await read_until(client, OK[-2:])
    assert [(seen.url, seen.all(b"x-a")) for seen in world.upstream.requests] == [
        (b"/" + number, [number]) for number in (b"1", b"1", b"2", b"1", b"22")
    ]
    await client.aclose()
    await world.over.wait()
    await world.pool.aclose_all()


async def test_responses_that_change_are_noticed(nursery):
    numbers = (b"1", b"1", b"2", b"1", b"22", b"22")
    answers = [b"HTTP/1.1 200 OK\r\nX-A: %b\r\nContent-Length: %d\r\n\r\n%b" % (n, len(n), n) for n in numbers]
    world = World(nursery, Upstream(*answers))
    client = world.client()
    for number in numbers:
        await client.send_all(request())
        got = await read_until(client, b"\r\n\r\n" + number)
        assert b"X-A: " + number in got
    await client.aclose()
    await world.over.wait()
    await world.pool.aclose_all()


@pytest.mark.parametrize("how", ["denied", "changed", "failed"])
async def test_a_handler_has_its_say_about_a_response(nursery, how):
    """With the response in hand; none of it may leave before."""

    def on_response(_request, response):
        if how == "denied":
            raise Denied("no", "not this")
        if how == "failed":
            raise ValueError("secret")
        return response.with_header("x-new", "1").without_header("x-a")

    got, world = await _conversation(nursery, request(), HEADED, on_response=on_response)
    if how == "changed":
        assert got.count(b"x-new: 1") == 3
        assert b"X-A" not in got
        assert len(world.connects) == 1
    else:
        assert b"\r\n\r\nok" not in got
        assert len(world.connects) == 3, "a connection with an answer that was not passed on is not used again"
    assert len(world.responses) == 3, "it is asked once for each"


async def test_h18_an_answer_with_more_behind_it_frees_no_connection(nursery):
    """What nobody asked for would be taken for the next one's answer."""
    stray = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"
    world = World(nursery, Upstream(OK, stray, OK))
    client = world.client()
    got = b""
    for _ in range(3):
        await client.send_all(request())
        got += await read_until(client, lambda data: data.count(b"\r\n\r\nok") == 1)
    await client.aclose()
    await world.over.wait()
    await world.pool.aclose_all()
    assert b"stolen" not in got
    assert len(world.connects) == 2


async def test_b1_a_connection_in_use_while_all_were_forgotten_does_not_come_back(nursery):
    """The policy that it was opened under may be another by now."""
    asked, answer = trio.Event(), trio.Event()

    async def upstream(stream):
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(OK)
        await read_until(stream, b"\r\n\r\n")
        asked.set()
        await answer.wait()
        await stream.send_all(OK)

    world = World(nursery, upstream)
    client = world.client()
    for number in range(2):
        await client.send_all(request())
        if number == 1:
            await asked.wait()
            world.pool.forget()
            answer.set()
        await read_until(client, OK[-2:])
    await trio.testing.wait_all_tasks_blocked()
    assert len(world.connects) == 1
    assert len(world.pool) == 0
    await client.aclose()
    await world.over.wait()


async def test_h24_an_upstream_that_says_nothing_ends_with_504(nursery, autojump_clock):
    """On the short way too, and its connection is not used again."""

    async def upstream(stream):
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(OK)
        await trio.sleep_forever()

    world = World(nursery, upstream, limits=limits(request_idle=30.0, keep_alive=1000.0))
    client = world.client()
    await client.send_all(request())
    await read_until(client, OK[-2:])
    start = trio.current_time()
    await client.send_all(request())
    got = await read_until(client, b"}\n")
    assert trio.current_time() - start == 30.0
    assert got.startswith(b"HTTP/1.1 504 ")
    await world.over.wait()
    assert world.ended.reason == "request-timeout"
    assert [record.reason for record in world.records] == ["ok", "request-timeout"]
    assert len(world.pool) == 0
    nursery.cancel_scope.cancel()


async def test_cancelled_on_the_short_way_the_upstream_connection_is_closed(nursery):
    closed = trio.Event()

    async def upstream(stream):
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(OK)
        await read_until(stream, b"\r\n\r\n")
        try:
            assert not await stream.receive_some()
        except trio.BrokenResourceError:
            pass
        closed.set()

    async with trio.open_nursery() as inner:
        world = World(inner, upstream)
        world.nursery = nursery  # the upstream outlives it
        inner.start_soon(world._serve, (pair := world.client_pair())[1], b"")
        client = pair[0]
        await client.send_all(request())
        await read_until(client, OK[-2:])
        await client.send_all(request())
        await trio.testing.wait_all_tasks_blocked()
        inner.cancel_scope.cancel()
    with trio.fail_after(30):
        await closed.wait()
    assert [record.reason for record in world.records] == ["ok", "cut"]
    assert len(world.pool) == 0
