"""Each rule of the policy and transform slots is broken once, and the check says which."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import trio

from sbxproxy import Secret
from sbxproxy.http.message import Headers, Response
from sbxproxy.policy.decision import Deny, Dial, Handle, Relay
from sbxproxy.testing import check_policy, check_transform, make_flow, make_request


def policy(function):
    class Stage:
        async def decide(self, flow):
            return function(flow)

    return Stage()


def transform(function, **members):
    async def on_request(self, flow, request):
        return function(flow, request)

    return type("Sample", (), {"on_request": on_request, **members})()


def hand_over(flow):
    return Handle(name="ssh", reason="handed-over", matched=None, dial=flow.decision.dial)


@pytest.mark.parametrize(
    "function",
    [
        lambda flow: flow.decision,
        lambda flow: Deny(reason="no-uploads", detail="no uploads today"),
        hand_over,
        lambda flow: flow.decision if flow.facts.port == 443 else Deny(reason="port", detail="this port is closed"),
    ],
)
async def test_a_good_policy_passes(function):
    await check_policy(policy(function))


_counter = iter(range(10**6))


def alternates(flow):
    return flow.decision if next(_counter) % 2 else Deny(reason="no", detail="no")


def writes(flow):
    flow.bytes_up += 1
    return flow.decision


def cuts(flow):
    flow.cut("because")
    return flow.decision


def cancels(flow):
    flow.scope.cancel()
    return flow.decision


def finishes(flow):
    flow.finished.set()
    return flow.decision


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda flow: None, "NoneType"),
        (lambda flow: True, "bool"),
        (lambda flow: replace(flow.decision, dial=Dial(None, (), 22)), "returned Relay"),
        (lambda flow: replace(hand_over(flow), dial=Dial(None, (), 22)), "where the flow goes"),
        (lambda flow: Deny(reason="No way!", detail="no"), "Deny.reason"),
        (lambda flow: Deny(reason="no", detail="a\nb"), "Deny.detail"),
        (lambda flow: 1 / 0, "raised ZeroDivisionError"),
        (alternates, "two answers"),
        (writes, "wrote to the flow: bytes_up"),
        (cuts, "wrote to the flow: ended"),
        (cancels, "cancelled the flow"),
        (finishes, "flow.finished"),
    ],
)
async def test_a_bad_policy_is_caught(function, complaint):
    with pytest.raises(AssertionError, match=complaint):
        await check_policy(policy(function))


async def test_a_handle_of_a_denied_flow_is_caught():
    denied = make_flow(decision=Deny(reason="no", detail="no"))
    handle = Handle(name="ssh", reason="x", matched=None, dial=Dial(None, (), 443))
    with pytest.raises(AssertionError, match="isn't relayed"):
        await check_policy(policy(lambda flow: handle if flow is denied else flow.decision), flows=[denied])


async def test_a_policy_is_asked_about_the_authors_flows():
    mine = make_flow("mine.example")
    with pytest.raises(AssertionError, match="KeyError"):
        await check_policy(policy(lambda flow: {}[1] if flow is mine else flow.decision), flows=[mine])


async def test_a_policy_that_waits_for_ever_is_caught(autojump_clock):
    class Stage:
        async def decide(self, flow):
            await trio.sleep_forever()

    with pytest.raises(AssertionError, match="longer than 30 s"):
        await check_policy(Stage())
    assert trio.current_time() == 30


async def test_a_misspelt_policy_is_a_type_error():
    class Stage:
        async def decides(self, flow): ...

    with pytest.raises(TypeError, match="decide"):
        await check_policy(Stage())


# -- transforms


async def keep(self, flow, request, response):
    return response


@pytest.mark.parametrize(
    "good",
    [
        transform(lambda flow, request: request),
        transform(lambda flow, request: request.with_header("x-key", "v").without_header("accept"), on_response=keep),
        transform(lambda flow, request: replace(request, target="/v2" + request.path) if request.path != "*" else request),
        transform(lambda flow, request: replace(request, body=request.body.upper()), body_limit=1000),
        transform(lambda flow, request: Response(status=403, body=b"no")),
        transform(lambda flow, request: Deny(reason="no-deletes", detail="no deletes")),
    ],
)
async def test_a_good_transform_passes(good):
    await check_transform(good)


def with_fields(*pairs):
    return lambda flow, request: replace(request, headers=Headers.of([*request.headers, *pairs]))


def writes_requests(flow, request):
    flow.requests += 1
    return request


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda flow, request: None, "NoneType"),
        (lambda flow, request: replace(request, host="evil.example"), "request.host"),
        (lambda flow, request: replace(request, method="get"), "upper-case token"),
        (lambda flow, request: replace(request, method="GET / X"), "upper-case token"),
        (lambda flow, request: replace(request, target="https://evil.example/"), "neither a path"),
        (lambda flow, request: replace(request, target="/a b"), "neither a path"),
        (lambda flow, request: replace(request, body="text"), "bytes or None"),
        (with_fields(("transfer-encoding", "chunked")), "framing"),
        (with_fields(("Connection", "authorization")), "hop-by-hop"),
        (with_fields(("host", "evil.example")), "Host"),
        (with_fields(("x", "a\r\nb: c")), "can't be sent"),
        (lambda flow, request: Response(status=99, body=b""), "status 99"),
        (lambda flow, request: Response(status=200), "needs a body"),
        (lambda flow, request: Response(status=200, body="text"), "bytes or None"),
        (lambda flow, request: Deny(reason="", detail="no"), "Deny.reason"),
        (lambda flow, request: request.headers.get("nope").lower(), "raised AttributeError"),
        (writes_requests, "wrote to the flow: requests"),
    ],
)
async def test_a_bad_transform_is_caught(function, complaint):
    with pytest.raises(AssertionError, match=complaint):
        await check_transform(transform(function))


async def returns_nothing(self, flow, request, response):
    pass


async def bad_status(self, flow, request, response):
    return replace(response, status=1000)


@pytest.mark.parametrize(("hook", "complaint"), [(returns_nothing, "must return a Response"), (bad_status, "status 1000")])
async def test_a_bad_on_response_is_caught(hook, complaint):
    with pytest.raises(AssertionError, match=complaint):
        await check_transform(transform(lambda flow, request: request, on_response=hook))


@dataclass
class Talkative:
    token: str = "s3cret"

    async def on_request(self, flow, request):
        return request


@dataclass
class Discreet:
    token: Secret

    async def on_request(self, flow, request):
        return Deny(reason="no", detail=f"{self.token.reveal()} is not enough")


async def test_a_transform_that_shows_its_secret_is_caught():
    with pytest.raises(AssertionError, match="shows a secret") as caught:
        await check_transform(Talkative(), secrets=["s3cret"])
    assert "s3cret" not in str(caught.value)
    with pytest.raises(AssertionError, match=r"denial by .* shows a secret"):
        await check_transform(Discreet(Secret("s3cret")), secrets=["s3cret"])
    await check_transform(Talkative())


async def test_a_transform_is_given_the_authors_requests_and_flow():
    mine, flow = make_request("GET", "/mine"), make_flow("mine.example")
    seen = []

    def remember(flow, request):
        seen.append((flow, request))
        return request

    await check_transform(transform(remember), requests=[mine], flow=flow)
    assert seen[-1] == (flow, mine)
    assert len(seen) > 5


async def test_a_misspelt_hook_is_a_type_error():
    with pytest.raises(TypeError, match="on_reponse"):
        await check_transform(transform(lambda flow, request: request, on_reponse=keep))


def test_the_samples_of_flows_are_relayed():
    """What the check calls an unchanged decision would otherwise never be a relay."""
    assert isinstance(make_flow().decision, Relay)
