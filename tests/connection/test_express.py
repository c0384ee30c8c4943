"""The short way tells the same story as the ordinary one: what a program sees, what observers are told, what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbxproxy.connection.express import Express
from sbxproxy.fronts.ask import ListenerAuth, StreamAsk
from sbxproxy.testing.hello import client_hello
from sbxproxy.wire.postgres import SSL_REQUEST
from support.clock import make_patient
from support.passages import (
    ESTABLISHED,
    HANGS,
    HELLO,
    HOLE,
    LOOPBACK,
    NAME,
    OTHER,
    QUIET,
    TWO,
    Pair,
    Seen,
    Step,
    closed_port,
    head,
    open_pair,
    scrub,
)
from support.talk import socks_request
from support.tcp import black_hole

ALLOWED: Any = {"allow": [NAME, TWO, HANGS, HOLE]}
RULES: Any = [{"transform": [{"headers": {"x": "y"}}]}]
SHORT, LEFT, NEVER = "short", "left", "never"


def tunnel(target: str, *then: Step, hello: bytes = HELLO) -> list[Step]:
    """Ask for *target*, wait for the answer, begin, and go on with *then*."""
    return [("send", head(target)), ("until", ESTABLISHED), ("send", hello), *then]


def in_pieces(data: bytes, size: int = 1) -> list[Step]:
    return [step for at in range(0, len(data), size) for step in (("send", data[at : at + size]), QUIET)]


@dataclass(frozen=True)
class Scene:
    """One client's behaviour, and which way it is to go.

    Attributes:
        steps: the script, by the upstream's port.
        way: ``short`` to the end, ``left`` to a task on the way, or ``never`` taken.
        port: the port to ask for, if not the upstream's: ``closed`` or ``hole``.
        jump: the clock jumps whenever nothing happens.
        opaque: what passes is encrypted, and never the same twice.
    """

    steps: Callable[[int], list[Step]]
    way: str = SHORT
    policy: Any = field(default_factory=lambda: ALLOWED)
    mode: str = "answer"
    port: str = ""
    jump: bool = False
    opaque: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def at(port: int, name: str = NAME) -> str:
    return f"{name}:{port}"


FIN: Step = ("fin",)
RESET: Step = ("reset",)

SCENES: dict[str, Scene] = {
    # What most connections are.
    "client ends first": Scene(lambda p: tunnel(at(p), FIN)),
    "client ends first, with more": Scene(lambda p: tunnel(at(p), ("send", b"x" * 5000), QUIET, ("send", b"more"), FIN)),
    "upstream ends first": Scene(lambda p: tunnel(at(p)), mode="first"),
    "upstream closes": Scene(lambda p: tunnel(at(p)), mode="close"),
    "upstream resets": Scene(lambda p: tunnel(at(p)), mode="reset"),
    "upstream resets at once": Scene(lambda p: tunnel(at(p), QUIET), mode="reset-at-once"),
    "head and hello at once": Scene(lambda p: [("send", head(at(p)) + HELLO), FIN], ""),
    "head and hello at once, no end": Scene(lambda p: [("send", head(at(p)) + HELLO)], mode="first"),
    "hello at once, then more": Scene(
        lambda p: [("send", head(at(p)) + HELLO), ("until", ESTABLISHED), ("send", b"more"), QUIET, FIN]
    ),
    "other spelling": Scene(lambda p: tunnel(at(p, NAME.upper()), FIN)),
    "two records": Scene(lambda p: tunnel(at(p), FIN, hello=client_hello(NAME, record_size=40))),
    "no alpn": Scene(lambda p: tunnel(at(p), FIN, hello=client_hello(NAME, alpn=()))),
    "much alpn": Scene(lambda p: tunnel(at(p), FIN, hello=client_hello(NAME, alpn=[b"p%d" % n for n in range(40)]))),
    # What is refused.
    "denied name": Scene(lambda p: [("send", head(at(p, OTHER)))], LEFT),
    "denied address": Scene(lambda p: [("send", head(at(p, LOOPBACK)))], LEFT, {"subnets": {"allow": ["10.0.0.0/8"]}}),
    "deny all": Scene(lambda p: [("send", head(at(p)))], LEFT, "deny-all"),
    "nothing allowed": Scene(lambda p: [("send", head(at(p)))], LEFT, {}),
    "denied range": Scene(lambda p: tunnel(at(p)), LEFT, {"allow": [NAME], "subnets": {"deny": ["127.0.0.0/8"]}}),
    "unknown name": Scene(lambda p: [("send", head("nowhere.test.example:443"))], LEFT),
    "own listener": Scene(lambda p: [("send", head(f"{LOOPBACK}:{p}"))], LEFT, "allow-all", port="own"),
    "other server name": Scene(lambda p: tunnel(at(p), hello=client_hello(OTHER)), LEFT),
    "allowed other server name": Scene(lambda p: tunnel(at(p), hello=client_hello(TWO)), LEFT),
    "no server name": Scene(lambda p: tunnel(at(p), hello=client_hello(None)), LEFT),
    "bad server name": Scene(lambda p: tunnel(at(p), hello=client_hello(b"a b\n")), LEFT),
    "http in the tunnel": Scene(lambda p: tunnel(at(p), hello=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), LEFT),
    "junk in the tunnel": Scene(lambda p: tunnel(at(p), hello=b"\xff\x00junk\r\n" * 9), LEFT),
    "bad hello": Scene(lambda p: tunnel(at(p), hello=HELLO[:9] + b"\xff" * 60), LEFT),
    # PostgreSQL.
    "postgres": Scene(lambda p: tunnel(at(p), ("read", len(ESTABLISHED) + 1), ("send", HELLO), FIN, hello=SSL_REQUEST), LEFT, mode="postgres"),
    "postgres, other name": Scene(
        lambda p: tunnel(at(p), ("read", len(ESTABLISHED) + 1), ("send", client_hello(OTHER)), FIN, hello=SSL_REQUEST),
        LEFT, mode="postgres",
    ),
    # Pieces.
    "head in bytes": Scene(lambda p: [*in_pieces(head(at(p))), ("until", ESTABLISHED), ("send", HELLO), FIN], LEFT),
    "hello in bytes": Scene(lambda p: [("send", head(at(p))), ("until", ESTABLISHED), *in_pieces(HELLO), FIN], LEFT),
    "hello in two": Scene(
        lambda p: [("send", head(at(p))), ("until", ESTABLISHED), *in_pieces(HELLO, 100), QUIET, FIN], LEFT
    ),
    "head with part of the hello": Scene(lambda p: [("send", head(at(p)) + HELLO[:50]), QUIET, ("send", HELLO[50:]), FIN], LEFT),
    # Ends.
    "nothing": Scene(lambda _: [FIN], LEFT),
    "half a head": Scene(lambda p: [("send", head(at(p))[:20]), FIN], LEFT),
    "head and end": Scene(lambda p: [("send", head(at(p))), FIN], LEFT),
    "head, answer, end": Scene(lambda p: [("send", head(at(p))), ("until", ESTABLISHED), FIN]  , LEFT),
    "hello and end": Scene(lambda p: [("send", head(at(p))), ("until", ESTABLISHED), ("send", HELLO), FIN], ""),
    "part of a hello and end": Scene(lambda p: tunnel(at(p), FIN, hello=HELLO[:60]), LEFT),
    "reset at once": Scene(lambda _: [RESET], LEFT),
    "reset in the head": Scene(lambda p: [("send", head(at(p))[:20]), QUIET, RESET], LEFT),
    "reset behind the head": Scene(lambda p: [("send", head(at(p))), ("until", ESTABLISHED), RESET], LEFT),
    "reset in the hello": Scene(lambda p: tunnel(at(p), QUIET, RESET, hello=HELLO[:60]), LEFT),
    "reset behind the hello": Scene(lambda p: tunnel(at(p), QUIET, RESET)),
    # Time.
    "silence": Scene(lambda _: [], LEFT, jump=True),
    "silence in the head": Scene(lambda p: [("send", head(at(p))[:20])], LEFT, jump=True),
    "silence behind the head": Scene(lambda p: [("send", head(at(p)))], LEFT, jump=True),
    "silence in the hello": Scene(lambda p: tunnel(at(p), hello=HELLO[:60]), LEFT, jump=True),
    "slow hello": Scene(
        lambda p: [("send", head(at(p))), *(step for n in range(20) for step in (("rest", 1.0), ("send", HELLO[n : n + 1])))],
        LEFT, jump=True,
    ),
    "idle": Scene(lambda p: tunnel(at(p)), jump=True),
    # Ranges.
    "address": Scene(lambda p: tunnel(at(p, LOOPBACK), FIN), policy={"subnets": {"allow": ["127.0.0.0/8"]}}),
    "address, silent": Scene(lambda p: [("send", head(at(p, LOOPBACK))), ("until", ESTABLISHED), FIN], policy={"subnets": {"allow": ["127.0.0.0/8"]}}),
    "address, mapped": Scene(lambda p: tunnel(f"[::ffff:127.0.0.1]:{p}", FIN), "", policy={"subnets": {"allow": ["127.0.0.0/8"]}}),
    "address and rules": Scene(
        lambda p: tunnel(at(p, LOOPBACK), FIN, hello=client_hello(TWO)), LEFT,
        {"allow": {NAME: RULES}, "subnets": {"allow": ["127.0.0.0/8"]}},
    ),
    "address and rules, no TLS": Scene(
        lambda p: tunnel(at(p, LOOPBACK), FIN, hello=b"anything"), LEFT,
        {"allow": {NAME: RULES}, "subnets": {"allow": ["127.0.0.0/8"]}},
    ),
    "name in a range": Scene(lambda p: tunnel(at(p, OTHER), FIN, hello=client_hello(OTHER)), LEFT, policy={"allow": [NAME], "subnets": {"allow": ["127.0.0.0/8"]}}),
    "address by server name": Scene(lambda p: tunnel(at(p, "127.0.0.7"), FIN), policy={"allow": [NAME]}),
    "address, denied server name": Scene(lambda p: tunnel(at(p, LOOPBACK), hello=client_hello(OTHER)), LEFT, {"allow": [NAME]}),
    "allow all": Scene(lambda p: tunnel(at(p), FIN), policy="allow-all"),
    "allow all, anything": Scene(lambda p: tunnel(at(p, LOOPBACK), FIN, hello=b"anything"), policy="allow-all"),
    "allow all, upstream first": Scene(lambda p: tunnel(at(p, OTHER), hello=b"anything"), policy="allow-all", mode="first"),
    # Upstreams that are not there.
    "refused": Scene(lambda p: tunnel(at(p)), LEFT, port="closed"),
    "refused, told in the front": Scene(lambda p: [("send", head(at(p)))], LEFT, "allow-all", port="closed"),
    "no answer": Scene(lambda p: tunnel(at(p, HOLE)), LEFT, port="hole", jump=True),
    "no answer, told in the front": Scene(lambda p: [("send", head(at(p, HOLE)))], LEFT, "allow-all", port="hole", jump=True),
    "first of two refuses": Scene(lambda p: tunnel(at(p, TWO), FIN, hello=client_hello(TWO)), LEFT),
    "first of two hangs": Scene(
        lambda p: tunnel(at(p, HANGS), ("rest", 1.0), FIN, hello=client_hello(HANGS)), LEFT, port="hole+", jump=True
    ),
    "first of two hangs, second refuses": Scene(lambda p: tunnel(at(p, HANGS), hello=client_hello(HANGS)), LEFT, port="hole", jump=True),
    "reset while it is connected": Scene(
        lambda p: tunnel(at(p, HOLE), ("rest", 1.0), RESET, hello=client_hello(HOLE)), LEFT, port="hole", jump=True
    ),
    # What the short way is not for.
    "inspected": Scene(lambda p: tunnel(at(p), FIN), LEFT, {"allow": {NAME: RULES}}, mode="close", opaque=True),
    "absolute form": Scene(
        lambda p: [("send", f"GET http://{at(p)}/ HTTP/1.1\r\nHost: {at(p)}\r\n\r\n".encode()), QUIET, FIN], LEFT,
        {"subnets": {"allow": ["127.0.0.0/8"]}}, mode="close",
    ),
    "socks5": Scene(
        lambda p: [("send", b"\x05\x01\x00"), ("read", 2), ("send", socks_request(NAME, p)), ("read", 12), ("send", HELLO), FIN], LEFT
    ),
    "junk": Scene(lambda _: [("send", b"\x00\xff\r\n\r\n" * 4)], LEFT),
    "bad request": Scene(lambda p: [("send", f"CONNECT {at(p)} HTTP/1.1\r\nHost: {OTHER}\r\n\r\n".encode())], LEFT),
    "no such port": Scene(lambda _: [("send", head(f"{NAME}:70000"))], LEFT),
    "credentials nobody asked for": Scene(
        lambda p: [("send", head(at(p), "Proxy-Authorization: Basic eDp5")), ("until", ESTABLISHED), ("send", HELLO), FIN], LEFT
    ),
    "password": Scene(
        lambda p: [("send", head(at(p), "Proxy-Authorization: Basic dTpw")), ("until", ESTABLISHED), ("send", HELLO), FIN], NEVER,
        options={"serve": {"auth": ListenerAuth(user="u", password="p")}, "warm": False},
    ),
    "no password": Scene(
        lambda p: [("send", head(at(p)))], NEVER, options={"serve": {"auth": ListenerAuth(user="u", password="p")}, "warm": False}
    ),
    "large head": Scene(lambda p: [("send", head(at(p), "X: " + "y" * 3000)), ("until", ESTABLISHED), ("send", HELLO), FIN], LEFT),
    "too large a head": Scene(lambda p: [("send", head(at(p), *(f"X{n}: y" for n in range(150))))], LEFT),
    "64 KiB at once": Scene(
        lambda p: [("send", head(at(p)) + HELLO + b"z" * (64 * 1024 - len(head(at(p))) - len(HELLO))), QUIET, FIN], LEFT
    ),
    "64 KiB hello": Scene(lambda p: tunnel(at(p), ("send", b"z" * 64 * 1024), QUIET, FIN), ""),
    "hello that is too large": Scene(lambda p: tunnel(at(p), hello=client_hello(NAME, padding=65000)), LEFT),
}  # fmt: skip


async def both(scene: Scene, pair: Pair, port: int) -> tuple[list[Any], str]:
    """Play *scene* in both sandboxes, twice each since the second may be remembered; returns what came of it, and the way."""
    came: list[Any] = []
    way = NEVER
    lasted: dict[str, list[float]] = {}
    for box in ("short", "long"):
        seen: list[Seen] = []
        for _ in range(2):
            seen.append(await pair.play(scene.steps(pair.ports[box] if scene.port == "own" else port), box))
            await pair.settle(box)
        ports = (port, pair.ports[box])
        answers = [(scrub(one.data, *ports), one.end) for one in seen]
        if scene.opaque:
            answers = [(data[: len(ESTABLISHED)], end) for data, end in answers]
            pair.upstream.got[:] = [b"" for _ in pair.upstream.got]
        came.append((answers, scrub(repr(pair.story(box)).encode(), *ports), list(pair.upstream.got)))
        pair.upstream.got.clear()
        lasted[box] = [event.duration for event in pair.closed(box)]
        if box == "short":
            assert not pair.ways["refused"]
            if pair.ways["short"]:
                assert pair.ways["short"] == 2
                way = {0: SHORT, 2: LEFT}.get(pair.ways["left"], "mixed")
        else:
            assert pair.ways["short"] in {0, 2}
    for short, long in zip(*lasted.values(), strict=True):
        assert abs(short - long) < 1.5, "a limit runs on when the way changes"
    return came, way


@pytest.mark.parametrize("name", SCENES)
def test_a_program_and_observers_can_not_tell_the_ways_apart(name: str) -> None:
    """Bytes, ends and events are the same; and the scene goes the way that it is there for."""
    scene = SCENES[name]

    async def play() -> None:
        with ExitStack() as stack:
            async with open_pair(
                scene.policy, mode=scene.mode, limits={"idle": 20.0, "connect": 3.0, "first_bytes": 4.0}, **scene.options
            ) as pair:
                port = pair.upstream.port
                if scene.port == "closed":
                    port = stack.enter_context(closed_port())
                elif scene.port == "hole":
                    port = stack.enter_context(closed_port())
                    stack.enter_context(black_hole("127.0.0.9", port))
                elif scene.port == "hole+":
                    stack.enter_context(black_hole("127.0.0.9", port))
                (short, long), way = await both(scene, pair, port)
                assert short == long
                assert way == scene.way or not scene.way
                assert all(event.reason != "internal-error" for event in pair.closed())

    trio.run(play, clock=make_patient(0.1) if scene.jump else None)


PORT = b"PORT"
DATA = st.one_of(
    st.just(head(f"{NAME}:PORT") + HELLO + b"payload" * 40),
    st.just(head(f"{NAME}:PORT") + HELLO),
    st.just(head(f"{OTHER}:PORT") + HELLO),
    st.just(head(f"{NAME}:PORT") + client_hello(OTHER) + b"payload"),
    st.just(head(f"{NAME}:PORT") + client_hello(NAME, record_size=70, alpn=(b"h2", b"http/1.1"))),
    st.builds(lambda junk: head(f"{NAME}:PORT") + junk, st.binary(max_size=80)),
    st.binary(max_size=40),
)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[bytes, list[int], str, str]:
    data = draw(DATA)
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=5).map(sorted))
    return data, cuts, draw(st.sampled_from(["fin", "fin", "reset"])), draw(st.sampled_from(["answer", "first", "close"]))


async def compare(data: bytes, cuts: list[int], end: str, mode: str) -> None:
    async with open_pair(ALLOWED, mode=mode) as pair:
        port = pair.upstream.port
        data = data.replace(PORT, b"%d" % port)
        steps: list[Step] = []
        for begin, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if begin < stop:
                steps += [("send", data[begin:stop]), QUIET]
        came, _ = await both(Scene(lambda _: [*steps, QUIET, (end,)], "", mode=mode), pair, port)
        assert came[0] == came[1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts())
def test_however_the_bytes_come_and_end_the_ways_are_the_same(script: tuple[bytes, list[int], str, str]) -> None:
    """Twice each, so that what is remembered is asked too."""
    trio.run(compare, *script)


TARGETS: dict[str, tuple[str, bytes, str, str]] = {
    # the target, what is said at once, which way, and what the upstream does
    "by server name": ("127.0.0.7", HELLO, SHORT, "answer"),
    "denied server name": (LOOPBACK, client_hello("denied.test.example"), LEFT, "answer"),
    "no server name": (LOOPBACK, client_hello(None), LEFT, "answer"),
    "junk": (LOOPBACK, b"junk\r\n" * 9, LEFT, "answer"),
    "http": (LOOPBACK, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", LEFT, "answer"),
    "postgres": (LOOPBACK, SSL_REQUEST, LEFT, "postgres"),
    "nothing": (LOOPBACK, b"", LEFT, "answer"),
    "upstream ends first": (LOOPBACK, HELLO, SHORT, "first"),
    "upstream resets": (LOOPBACK, HELLO, SHORT, "reset"),
    "part of a hello": (LOOPBACK, HELLO[:40], LEFT, "answer"),
}


@pytest.mark.parametrize("name", TARGETS)
async def test_targets_that_the_kernel_names_go_either_way_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to go ahead there, and nothing can be refused before the first bytes."""
    host, first, expected, mode = TARGETS[name]
    async with open_pair(ALLOWED, mode=mode) as pair:
        port = pair.upstream.port
        ask = StreamAsk(ip_address(host), port, front="transparent")
        admit = Express.admit

        async def opener(_client: object, *_args: object) -> StreamAsk:
            await trio.lowlevel.checkpoint()
            return StreamAsk(ip_address(host), port, front="transparent")

        monkeypatch.setattr(Express, "admit", lambda self, client, _ask=None: admit(self, client, ask))
        monkeypatch.setattr("sbxproxy.fronts.explicit.open_explicit", opener)
        end: list[Step] = [] if name == "upstream resets" else [FIN]
        (short, long), way = await both(Scene(lambda _: [("send", first), QUIET, *end], mode=mode), pair, port)
        assert short == long
        assert way == expected
        assert pair.ways["short"] == 2
