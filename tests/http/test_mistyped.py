"""Handlers and their transforms are Python: what they return may be of any type, and then goes nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from sbxproxy.http import Forward, Headers, Request, Response
from support.http_peers import OK, ORIGIN, World, request

TEXT: Any = "text, where bytes belong"
PAIRS: Any = (("name", "value"),)
NAMES: Any = "api.example.com"
NUMBER: Any = 7
WORD: Any = "200"
LIST: Any = [(b"name", b"value")]


def sent(**changes) -> Request:
    return Request(**{"method": "GET", "target": "/", "host": "x"} | changes)


@pytest.mark.parametrize(
    "answer",
    [
        Response(status=200, body=TEXT),
        Response(status=WORD, body=b""),
        Response(status=200, headers=LIST, body=b""),
        Response(status=200, headers=Headers(PAIRS), body=b""),
        Forward(request=sent(body=TEXT), origin=ORIGIN),
        Forward(request=sent(headers=LIST), origin=ORIGIN),
        Forward(request=sent(headers=Headers(PAIRS)), origin=ORIGIN),
        Forward(request=sent(target=NUMBER), origin=ORIGIN),
        Forward(request=sent(), origin=NAMES),
        Forward(request=NAMES, origin=ORIGIN),
    ],
)
async def test_l9_a_mistyped_answer_fails_its_own_request_only(nursery, answer):
    answers = iter([answer, sent()])
    world = World(nursery, on_request=lambda _: next(answers))
    got = await world.talk(request() * 2)
    assert got.startswith(b"HTTP/1.1 502 ")
    assert b"stage-failed" in got
    assert got.endswith(OK)
    assert len(world.upstream.requests) == 1


@pytest.mark.parametrize(
    "made",
    [
        Response(status=200, body=TEXT),
        Response(status=WORD),
        Response(status=200, headers=LIST),
        Response(status=200, headers=Headers(PAIRS)),
    ],
)
async def test_l9_a_mistyped_response_is_not_passed_on(nursery, made):
    made_ones = iter([made, Response(status=200, body=b"ok")])
    world = World(nursery, on_response=lambda *_: next(made_ones))
    got = await world.talk(request() * 2)
    assert got.startswith(b"HTTP/1.1 502 ")
    assert b"stage-failed" in got
    assert got.endswith(OK)
