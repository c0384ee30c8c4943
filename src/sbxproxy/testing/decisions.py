"""Checks of the parts that decide about flows and requests: policy stages and transforms."""

from __future__ import annotations

__all__ = ["check_policy", "check_transform"]

import re
from collections.abc import Iterable, Sequence

from sbxproxy.errors import StageError
from sbxproxy.flow import Flow
from sbxproxy.http.fields import outgoing
from sbxproxy.http.message import Headers, Request, Response
from sbxproxy.policy.decision import Decision, Deny, Handle, Relay, Wire
from sbxproxy.stages import slots
from sbxproxy.stages.slots import PolicyStage, Transform
from sbxproxy.testing.checks import PATIENCE, Unchanged, ensure, of_part
from sbxproxy.testing.make import make_flow, make_request

_REASON = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_METHOD = re.compile(r"[A-Z][A-Z0-9!#$%&'*+.^_`|~-]*")
_TARGET = re.compile(r"\*|/[!-~\x80-\xff]*")
_STATUSES = (200, 204, 304, 404, 503)


def _sample_flows() -> list[Flow]:
    return [
        make_flow(),
        make_flow("a.example", 8443, alpn=()),
        make_flow("1.2.3.4", server_name="api.example.com"),
        make_flow("1.2.3.4", 5432, wire=Wire.POSTGRES),
        make_flow("2606:4700::1111", 22, wire=Wire.SILENT, addresses=["2606:4700::1111"]),
        make_flow("db.example.com", 9000, wire="third-party", server_name="db.example.com", front="stream"),
    ]


async def check_policy(stage: PolicyStage, *, flows: Iterable[Flow] = (), patience: float = PATIENCE) -> None:
    """Check *stage* on *flows* and on samples of many kinds.

    It must answer each flow, and again in the same way, because a policy change asks again; with the flow's own decision, a
    ``Deny``, or a ``Handle`` that keeps ``decision.dial``; and leave the flow as it is.

    Args:
        stage: the part.
        flows: more flows, with a decision each, such as ``make_flow`` returns.
        patience: seconds that one answer may take.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule.
    """
    slots.check_policy(stage)
    label = f"policy stage {type(stage).__name__}"
    for flow in (*_sample_flows(), *flows):
        unchanged = Unchanged(flow)
        answers: list[object] = []
        for _ in range(2):
            with of_part(label, patience):
                answers.append(await stage.decide(flow))
            unchanged.verify(label)
            _check_decision(label, flow.decision, answers[-1])
        ensure(answers[0] == answers[1], f"{label} gave two answers to the same facts")


def _check_decision(label: str, allowed: Decision | None, answer: object) -> None:
    match answer:
        case Deny():
            _check_deny(label, answer)
        case Handle():
            ensure(isinstance(allowed, Relay | Handle), f"{label} hands over a flow that isn't relayed")
            kept = isinstance(allowed, Relay | Handle) and answer.dial == allowed.dial
            ensure(kept, f"{label} changed where the flow goes: keep flow.decision.dial")
        case _:
            ensure(
                answer == allowed, f"{label} must return flow.decision, a Deny or a Handle; it returned {type(answer).__name__}"
            )


def _check_deny(label: str, deny: Deny) -> None:
    ensure(_REASON.fullmatch(deny.reason), f"{label}: Deny.reason must be an id such as 'too-many-uploads'")
    ensure(deny.detail.isprintable(), f"{label}: Deny.detail must be one line of printable text")


async def check_transform(
    transform: Transform,
    *,
    requests: Iterable[Request] = (),
    flow: Flow | None = None,
    secrets: Sequence[str] = (),
    patience: float = PATIENCE,
) -> None:
    """Check *transform* on *requests* and on samples of many kinds.

    It must answer each with a ``Request`` for the same host that can be sent, a ``Response`` or a ``Deny``; leave framing,
    ``Host`` and hop-by-hop fields to the core; leave the flow as it is; and, if it has ``on_response``, answer that with a
    ``Response``.

    Args:
        transform: the part, made as the core makes it.
        requests: more requests.
        flow: what it is given as flow.
        secrets: values of its secrets; its ``repr`` and its denials may not show them.
        patience: seconds that one answer may take.

    Raises:
        TypeError: it doesn't fit the slot.
        AssertionError: it breaks a rule.
    """
    slots.check_transform(transform)
    label = f"transform {type(transform).__name__}"
    _check_hidden(f"the repr of {label}", repr(transform) + str(transform), secrets)
    flow = flow or make_flow()
    limit = getattr(transform, "body_limit", 0)
    for request in (*_sample_requests(limit), *requests):
        unchanged = Unchanged(flow)
        with of_part(f"{label}.on_request", patience):
            answer: object = await transform.on_request(flow, request)
        unchanged.verify(label)
        match answer:
            case Request():
                _check_request(label, request, answer)
                await _check_on_response(label, transform, flow, answer, patience)
            case Response():
                ensure(answer.body is not None, f"{label}: a Response that answers a request needs a body, b'' at least")
                _check_response(label, answer)
            case Deny():
                _check_deny(label, answer)
                _check_hidden(f"a denial by {label}", answer.detail + answer.reason, secrets)
            case _:
                raise AssertionError(f"{label}.on_request must return a Request, Response or Deny, not {type(answer).__name__}")


def _sample_requests(body_limit: int) -> list[Request]:
    body = b"x" * min(body_limit, 64) if body_limit else None
    none = b"" if body_limit else None
    return [
        make_request(body=none),
        make_request("HEAD", "/a/b%20c?q=1&q=2", body=none),
        make_request("OPTIONS", "*", body=none),
        make_request("POST", "/upload", headers={"content-type": "application/json", "authorization": "placeholder"}, body=body),
        make_request("DELETE", "/" + "d" * 2000, headers=[("accept", "a"), ("Accept", "b"), ("AUTHORIZATION", "x")], body=none),
        make_request("PATCH", "/", host="other.example.com:8443", headers=[("x-note", b"\xe9t\xe9")], body=body),
    ]


def _check_hidden(where: str, text: str, secrets: Sequence[str]) -> None:
    ensure(not any(secret in text for secret in secrets), f"{where} shows a secret")


def _check_request(label: str, before: Request, after: Request) -> None:
    ensure(after.host == before.host, f"{label} changed request.host; a request goes where its connection goes")
    ensure(_METHOD.fullmatch(after.method), f"{label} made a method that is no upper-case token")
    ensure(_TARGET.fullmatch(after.target), f"{label} made a target that is neither a path nor '*'")
    ensure(after.body is None or isinstance(after.body, bytes), f"{label}: request.body must be bytes or None")
    _check_headers(label, after.headers)


def _check_response(label: str, response: Response) -> None:
    ensure(200 <= response.status <= 599, f"{label} made a response with status {response.status}")
    ensure(response.body is None or isinstance(response.body, bytes), f"{label}: response.body must be bytes or None")
    _check_headers(label, response.headers)


def _check_headers(label: str, headers: Headers) -> None:
    try:
        sent = outgoing(headers)
    except StageError:
        raise AssertionError(f"{label} made a header that can't be sent") from None
    ensure(len(sent) == len(headers), f"{label} set a framing, Host or hop-by-hop header; those are made by the core")


async def _check_on_response(label: str, transform: Transform, flow: Flow, request: Request, patience: float) -> None:
    hook = getattr(transform, "on_response", None)
    if hook is None:
        return
    for status in _STATUSES:
        unchanged = Unchanged(flow)
        response = Response(status=status, headers=Headers.of([("content-type", "text/plain"), ("set-cookie", "a=b")]))
        with of_part(f"{label}.on_response", patience):
            answer = await hook(flow, request, response)
        unchanged.verify(label)
        ensure(isinstance(answer, Response), f"{label}.on_response must return a Response, not {type(answer).__name__}")
        _check_response(label, answer)
