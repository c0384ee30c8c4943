"""``Inspector``: which rule applies to a request, what it does, and that whatever fails sends nothing."""

from __future__ import annotations

import gc
import os
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from sbxproxy.hostname import Hostname
from sbxproxy.http.handler import Denied, Forward, Origin, Record
from sbxproxy.http.message import Headers, Request, Response
from sbxproxy.policy import Policy
from sbxproxy.policy.decision import Deny
from sbxproxy.secrets import FRESH, CallableSource, EnvironmentSource, FileSource, Secret, Secrets
from sbxproxy.settings import Limits
from sbxproxy.stages.inspector import Inspector
from sbxproxy.stages.transforms import Transforms
from sbxproxy.testing import make_flow, make_request

NAME = Hostname("api.example.com")
ORIGIN = Origin(NAME, 8443)
CANARY = "canary-77e0"


def set_header(name: str, value: str, **match: Any) -> dict[str, Any]:
    rule: dict[str, Any] = {"transform": [{"headers": {name: value}}]}
    return {"match": match, **rule} if match else rule


def use(*names: str, **config: Any) -> dict[str, Any]:
    return {"transform": [{"plugin": name, **({"config": config} if config else {})} for name in names]}


class Bench:
    """An inspector, what it reported, and the rules in force, which a test may change."""

    def __init__(
        self,
        *rules: Any,
        plugins: dict[str, Any] | None = None,
        secrets: dict[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.problems: list[tuple[str, str]] = []
        self.reports: list[tuple[Record, int | None]] = []
        self.put(*rules)
        held = Secrets(secrets)
        self.transforms = Transforms(plugins or {}, held)
        self.flow = make_flow(NAME)
        self.opened: list[Origin] = []
        self.inspector = Inspector(
            flow=self.flow,
            origin=ORIGIN,
            rules=lambda: self.rules,
            secrets=held,
            transforms=self.transforms,
            open=self._open,
            report=lambda record, rule: self.reports.append((record, rule)),
            problem=lambda reason, text: self.problems.append((reason, text)),
            limits=limits or Limits(),
        )

    def put(self, *rules: Any) -> None:
        match = Policy.parse({"allow": {NAME: list(rules)}}).match_domain(NAME)
        assert match is not None
        self.rules = match.rules

    async def _open(self, origin: Origin) -> Any:
        await trio.lowlevel.checkpoint()
        self.opened.append(origin)
        return trio.testing.memory_stream_pair()[0]

    async def ask(self, request: Request) -> Any:
        self.inspector.body_limit(request)
        return await self.inspector.on_request(request)

    async def sent(self, request: Request) -> Request:
        answer = await self.ask(request)
        assert isinstance(answer, Forward), answer
        assert answer.origin == ORIGIN
        return answer.request

    async def refused(self, request: Request, reason: str, status: int) -> Denied:
        answer: Any
        try:
            answer = await self.ask(request)
        except Denied as denied:
            answer = denied
        assert isinstance(answer, Denied), answer
        assert (answer.reason, answer.status) == (reason, status)
        return answer


# -- which rule


async def test_the_first_rule_that_fits_wins() -> None:
    bench = Bench(
        set_header("x-rule", "one", path={"exact": "/one"}),
        set_header("x-rule", "two", path={"startsWith": "/o"}),
        set_header("x-rule", "last"),
    )
    for target, rule in (("/one", "one"), ("/other", "two"), ("/x", "last")):
        assert (await bench.sent(make_request(target=target))).headers.get_all("x-rule") == [rule]


async def test_a_request_that_fits_no_rule_passes_as_it_is() -> None:
    bench = Bench(set_header("x-rule", "one", path={"exact": "/one"}))
    request = make_request(target="/two", headers={"x-rule": "own", "x-http-method-override": "PUT"})
    assert await bench.sent(request) == request


def at_once(bench: Bench, request: Request) -> Headers | None:
    return bench.inspector.at_once(request.method, request.target, request.headers)


async def test_what_a_rule_made_of_fields_is_told_at_once_the_next_time() -> None:
    """With the same rule on record, and for these very fields alone."""
    bench = Bench(set_header("x-a", "1", path={"startsWith": "/v1/"}), set_header("x-b", "${secret:s}"), secrets={"s": CANARY})
    request = make_request(target="/v1/x", headers={"x-c": "c"})
    assert at_once(bench, request) is None
    sent = await bench.sent(request)
    assert at_once(bench, request) == sent.headers
    assert at_once(bench, replace(request, target="/v1/y?q")) == sent.headers
    bench.inspector.done(Record("GET", "/v1/x", 200, 0, 0, "ok", 0.1))
    assert bench.reports[-1][1] == 0
    assert at_once(bench, replace(request, target="/v2")) is None
    assert at_once(bench, replace(request, headers=Headers(request.headers.fields))) is None
    other = await bench.sent(replace(request, target="/v2"))
    assert at_once(bench, replace(request, target="/v2")) == other.headers
    assert other.headers.get("x-b") == CANARY
    assert CANARY not in repr(bench.inspector)
    assert at_once(bench, request) is None


async def test_what_was_told_at_once_is_not_after_the_rules_have_changed() -> None:
    bench = Bench(set_header("x-a", "1"))
    request = make_request()
    await bench.ask(request)
    assert at_once(bench, request) is not None
    bench.put(set_header("x-a", "2"))
    assert at_once(bench, request) is None
    assert (await bench.sent(request)).headers.get("x-a") == "2"
    bench.rules = None
    assert at_once(bench, request) is None
    await bench.ask(request)
    assert at_once(bench, request) == request.headers


async def test_what_fits_no_rule_is_told_at_once_as_long_as_there_are_the_same_rules() -> None:
    """Fields that override the method go while some rule looks at methods, and stay when none does."""
    bench = Bench(set_header("x-a", "1", method=["PUT"]))
    request = make_request(headers={"x-http-method": "PUT"})
    sent = await bench.sent(request)
    assert at_once(bench, request) == sent.headers == Headers()
    bench.rules = None
    assert at_once(bench, request) is None


@pytest.mark.parametrize(
    "rule",
    [
        set_header("x-a", "${secret:s}"),
        {"forwardURL": "https://other.example"},
        {"response": {"statusCode": 200, "body": "x"}},
        use("mark"),
        {"transform": [{"headers": {"x-a": "1"}}, {"plugin": "mark"}]},
    ],
)
async def test_what_may_come_to_something_else_is_not_told_at_once(rule: Any) -> None:
    """A secret that its source may change, another place, a plugin."""

    async def source(_name: str) -> str:
        await trio.lowlevel.checkpoint()
        return CANARY

    bench = Bench(rule, plugins={"mark": marking("mark")}, secrets={"s": CallableSource(source)})
    request = make_request()
    for _ in range(2):
        await bench.ask(request)
        assert at_once(bench, request) is None


@pytest.mark.parametrize("kind", ["environment", "file", "own"])
async def test_a_secret_that_may_change_is_looked_up_for_what_is_told_at_once(kind: str, tmp_path: Path) -> None:
    """The old value is never told again once the source knows better."""
    environ = {"T": "one"}
    path = tmp_path / "token"
    path.write_text("one")
    os.utime(path, (1, 1))

    class Own:
        value: Secret | None = Secret("one")

        async def get(self, name: str) -> Secret:
            await trio.lowlevel.checkpoint()
            return self.value or Secret("unknown")

        def at_hand(self, name: str) -> Secret | None:
            return self.value

    own = Own()
    sources = {"environment": EnvironmentSource("T", environ), "file": FileSource(path), "own": own}
    bench = Bench(set_header("x-a", "Bearer ${secret:s}"), secrets={"s": sources[kind]})
    request = make_request()
    sent = await bench.sent(request)
    assert sent.headers.get("x-a") == "Bearer one"
    assert at_once(bench, request) == sent.headers
    environ["T"], own.value = "two", Secret("two")
    path.write_text("two")
    os.utime(path, (2, 2))
    if kind == "file":
        await trio.sleep(FRESH + 0.01)
    assert at_once(bench, request) is None
    assert (await bench.sent(request)).headers.get("x-a") == "Bearer two"
    answer = at_once(bench, request)
    assert answer is not None
    assert answer.get("x-a") == "Bearer two"
    del environ["T"]
    own.value = None
    path.unlink()
    if kind == "file":
        await trio.sleep(FRESH + 0.01)
    assert at_once(bench, request) is None
    assert "two" not in repr(bench.inspector)


async def test_a_request_has_one_value_of_a_secret_even_if_that_changes_meanwhile() -> None:
    """Else what was made of the old one and of the new one could be told at once for ever."""
    values = iter(["one", "two", "three"])

    class Changing:
        async def get(self, name: str) -> Secret:
            await trio.lowlevel.checkpoint()
            return Secret(next(values))

    rule = {"transform": [{"headers": {"x-a": "${secret:s}"}}, {"headers": {"x-b": "${secret:s}"}}]}
    bench = Bench(rule, secrets={"s": Changing()})
    for value in ("one", "two"):
        sent = await bench.sent(make_request())
        assert (sent.headers.get("x-a"), sent.headers.get("x-b")) == (value, value)


async def test_h20_h13_at_once_nothing_passes_that_would_not() -> None:
    """An ambiguous path is left to be refused, and fields that override the method go."""
    bench = Bench(set_header("x-a", "1", path={"startsWith": "/"}, method=["GET"]))
    request = make_request(target="/v1", headers={"x-http-method": "DELETE"})
    sent = await bench.sent(request)
    assert at_once(bench, request) == sent.headers
    assert "x-http-method" not in sent.headers
    assert at_once(bench, replace(request, target="/v1/../x")) is None
    assert at_once(bench, replace(request, method="DELETE")) is None


async def test_long_fields_are_not_kept_to_be_told_at_once() -> None:
    bench = Bench(set_header("x-a", "1"))
    request = make_request(headers={"x-b": "b" * 10_000})
    await bench.ask(request)
    assert at_once(bench, request) is None


async def test_rules_are_looked_up_for_each_request() -> None:
    """A live update counts from the next request on, and for one that nothing was done with yet."""
    bench = Bench(set_header("x-rule", "old"))
    request = make_request()
    bench.inspector.body_limit(request)
    bench.put(set_header("x-rule", "new"))
    answer = await bench.inspector.on_request(request)
    assert isinstance(answer, Forward)
    assert answer.request.headers.get("x-rule") == "new"
    assert (await bench.sent(request)).headers.get("x-rule") == "new"
    bench.rules = None
    assert await bench.sent(request) == request


async def test_l2_a_rule_that_wants_to_see_more_than_was_received_refuses_the_request() -> None:
    """The update came while the body was waited for, and what the new rule's plugin would take for the body is none."""
    bench = Bench(set_header("x-rule", "old"), plugins={"field": ByField})
    empty = make_request("POST")
    for body, reason in ((None, "policy-changed"), (b"b" * 5000, "policy-changed"), (b"b" * 50, "")):
        request = replace(empty, body=body)
        bench.put(set_header("x-rule", "old"))
        bench.inspector.body_limit(request)
        bench.put(use("field"))
        answer = await bench.inspector.on_request(request)
        assert getattr(answer, "reason", "") == reason


@pytest.mark.parametrize("same", [True, False])
async def test_l2_a_credential_of_a_rule_that_is_gone_is_not_sent(same: bool) -> None:
    """However long its source takes, or the connection that it is for. An update that changes nothing here disturbs nobody."""
    old, new = set_header("x", "${secret:k}"), set_header("x", "${secret:k}" if same else "y")

    async def get(_name: str) -> str:
        await trio.lowlevel.checkpoint()
        bench.put(then[0])
        return CANARY

    async def update_and_open(origin: Origin) -> Any:
        bench.put(then[1])
        opened.append(trio.testing.memory_stream_pair())
        return opened[-1][0]

    opened: list[Any] = []
    then = [new, new]
    bench = Bench(old, secrets={"k": CallableSource(get), "c": CANARY})
    if same:
        forward = await bench.ask(make_request())
    else:
        await bench.refused(make_request(), "policy-changed", 403)
        bench.put(old)
        then[0] = old
        forward = await bench.ask(make_request())
    bench.inspector.open = update_and_open
    if same:
        assert await bench.inspector.connect(forward) is opened[0][0]
    else:
        with pytest.raises(Denied) as denied:
            await bench.inspector.connect(forward)
        assert denied.value.reason == "policy-changed"
        assert await opened[0][1].receive_some() == b""


async def test_l2_what_was_told_at_once_is_not_sent_by_a_rule_that_is_gone_either() -> None:
    """The connections that were kept are forgotten with the old policy, so that a new one is opened first."""
    rules = set_header("x", "${secret:k}", path={"exact": "/a"}), set_header("x", "y")
    bench = Bench(*rules, secrets={"k": CANARY})
    request = make_request(target="/a")
    await bench.sent(request)
    bench.put(*rules)
    sent = await bench.sent(request)
    bench.inspector.done(Record(method="GET", path="/a", status=200, bytes_up=0, bytes_down=0, reason="ok", seconds=0.1))
    assert at_once(bench, request) == sent.headers
    forward = Forward(request=sent, origin=ORIGIN)
    await bench.inspector.connect(forward)
    bench.put(rules[1])
    with pytest.raises(Denied, match="policy"):
        await bench.inspector.connect(forward)


async def test_the_story_of_a_request_names_its_rule_and_is_counted() -> None:
    bench = Bench(set_header("x", "y", path={"exact": "/no"}), set_header("x", "y"))
    record = Record(method="GET", path="/", status=200, bytes_up=3, bytes_down=5, reason="ok", seconds=0.1)
    await bench.sent(make_request())
    bench.inspector.done(record)
    bench.inspector.done(record)  # a head too broken to be judged: no rule applied to it
    assert bench.reports == [(record, 1), (record, None)]
    assert (bench.flow.requests, bench.flow.bytes_up, bench.flow.bytes_down) == (2, 6, 10)


async def test_a_connection_is_opened_to_where_the_request_goes() -> None:
    bench = Bench({"forwardURL": "https://other.example.com:444/"})
    answer = await bench.ask(make_request())
    await bench.inspector.connect(answer)
    assert bench.opened == [Origin("other.example.com", 444)]


# -- headers


@pytest.mark.parametrize("spelling", ["Authorization", "authorization", "AUTHORIZATION", "aUTHORIZATION"])
async def test_c1_the_clients_own_field_is_replaced_in_any_spelling(spelling: str) -> None:
    bench = Bench(set_header("Authorization", "Bearer ${secret:k}"), secrets={"k": CANARY})
    sent = await bench.sent(make_request(headers=[(spelling, "mine"), ("x", "1"), (spelling, "mine too")]))
    assert sent.headers.get_all("authorization") == [f"Bearer {CANARY}"]
    assert sent.headers.get("x") == "1"


@pytest.mark.parametrize("spelling", ["x-api-key", "X_Api_Key", "x_api-key", "X-API_KEY"])
async def test_c1_h14_an_underscore_does_not_shadow_the_field(spelling: str) -> None:
    """Gateways to CGI and WSGI programs can't tell the two characters apart."""
    bench = Bench(set_header("X-Api-Key", "${secret:k}"), secrets={"k": CANARY})
    sent = await bench.sent(make_request(headers=[(spelling, "mine")]))
    assert sent.headers.fields == ((b"X-Api-Key", CANARY.encode()),)


@pytest.mark.parametrize("field_name", ["X-HTTP-Method-Override", "x-http-method", "X_Method_Override"])
async def test_h13_override_fields_are_dropped_only_where_rules_look_at_methods(field_name: str) -> None:
    """A POST that passes for a DELETE would dodge the rule for DELETE."""
    request = make_request("POST", headers={field_name: "DELETE"})
    looking = Bench({"match": {"method": ["DELETE"]}, "response": {"statusCode": 403}})
    assert (await looking.sent(request)).headers.fields == ()
    assert await Bench({"match": {"path": {"exact": "/x"}}, "response": {"statusCode": 403}}).sent(request) == request


@pytest.mark.parametrize("target", ["/a/../b", "/%2e%2e/b", "//b", "/a;x=y", "/a%2fb", "/a\\b", "/./b", "/%61"])
async def test_h20_an_ambiguous_path_is_refused_only_where_rules_look_at_paths(target: str) -> None:
    looking = Bench(set_header("x", "y", path={"startsWith": "/never"}))
    await looking.refused(make_request(target=target), "ambiguous-path", 400)
    assert (await Bench(set_header("x", "y")).sent(make_request(target=target))).target == target


# -- answers and forwards


async def test_a_rule_answers_without_asking_anyone() -> None:
    bench = Bench({"response": {"statusCode": 418, "contentType": "text/plain", "body": "é"}})
    assert await bench.ask(make_request()) == Response(
        status=418, headers=Headers.of([("content-type", "text/plain")]), body="é".encode()
    )
    bare = await Bench({"response": {"statusCode": 204}}).ask(make_request())
    assert (bare.status, bare.headers.fields, bare.body) == (204, (), b"")


async def test_a_forward_tells_where_the_request_was_going() -> None:
    """The client's own fields of these names would let it pretend to have asked for something else."""
    bench = Bench({"forwardURL": "https://other.example.com:444/base/"})
    own = {"Vercel-Forwarded-Host": "evil", "vercel_forwarded_path": "/evil", "vercel-forwarded-scheme": "x", "a": "b"}
    answer = await bench.ask(make_request(target="/p/q?x=1", headers=own))
    assert isinstance(answer, Forward)
    assert answer.origin == Origin("other.example.com", 444)
    assert answer.request.target == "/base/p/q?x=1"
    assert answer.request.headers.fields == (
        (b"a", b"b"),
        (b"vercel-forwarded-host", NAME.encode()),
        (b"vercel-forwarded-scheme", b"https"),
        (b"vercel-forwarded-port", b"8443"),
        (b"vercel-forwarded-path", b"/p/q"),
    )


@pytest.mark.parametrize("target", ["/../x", "/a/../../x", "/%2e%2e/x", "/..%2fx", "//x", "*"])
async def test_h20_a_forward_is_confined_to_its_path(target: str) -> None:
    """Although no rule looks at paths: the server would resolve ``/base/../x`` to ``/x``."""
    bench = Bench({"forwardURL": "https://other.example.com/base"})
    await bench.refused(make_request("OPTIONS", target), "ambiguous-path", 400)


async def test_a_forward_without_a_path_has_nothing_to_be_confined_to() -> None:
    answer = await Bench({"forwardURL": "https://other.example.com"}).ask(make_request(target="/../x"))
    assert answer.request.target == "/../x"


# -- secrets


async def test_c11_what_is_remembered_of_a_request_shows_no_secret() -> None:
    """A debugger's or a logger's view of the objects is where secrets get out."""
    bench = Bench(set_header("Authorization", "Bearer ${secret:k}"), secrets={"k": CANARY})
    request = make_request()
    sent = await bench.sent(request)
    assert (await bench.sent(request)).headers is sent.headers
    assert CANARY not in repr(bench.inspector) + repr(bench.inspector._made)


async def _fails(_name: str) -> str:
    await trio.lowlevel.checkpoint()
    raise RuntimeError(CANARY)


async def _unfit(_name: str) -> str:
    await trio.lowlevel.checkpoint()
    return f"{CANARY}\r\nx: y"


@pytest.mark.parametrize(
    "secrets", [{}, {"k": CallableSource(_fails)}, {"k": CallableSource(_unfit)}], ids=["none", "fails", "unfit"]
)
@pytest.mark.parametrize("rule", [set_header("x", "${secret:k}"), use("keep", value="${secret:k}")], ids=["header", "plugin"])
async def test_c3_c11_a_secret_that_cannot_be_had_refuses_the_request(rule: Any, secrets: Any) -> None:
    """Going out without it would be a request that the author didn't mean; its value is told to nobody."""
    bench = Bench(rule, secrets=secrets, plugins={"keep": Keep})
    denied = await bench.refused(make_request(), "secret-unavailable", 502)
    ((reason, text),) = bench.problems
    assert reason == "secret-unavailable"
    assert "'k'" in text
    assert CANARY not in text + denied.detail


async def test_a_source_that_hangs_fails_the_request(autojump_clock: trio.testing.MockClock) -> None:
    async def hang(_name: str) -> str:
        await trio.sleep_forever()
        raise AssertionError

    bench = Bench(set_header("x", "${secret:k}"), secrets={"k": CallableSource(hang)}, limits=Limits(stage=3))
    start = trio.current_time()
    await bench.refused(make_request(), "stage-failed", 502)
    assert trio.current_time() - start == pytest.approx(3)


# -- plugins


class Keep:
    """Counts how often it was made, and from what."""

    made: ClassVar[list[Any]] = []

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.made.append(value)

    async def on_request(self, flow: Any, request: Request) -> Any:
        await trio.lowlevel.checkpoint()
        return request


def answering(answer: Any) -> type:
    class Answering:
        async def on_request(self, flow: Any, request: Request) -> Any:
            await trio.lowlevel.checkpoint()
            if isinstance(answer, Exception):
                raise answer
            return answer

    return Answering


async def test_a_plugin_that_raises_fails_the_request_and_its_text_is_lost() -> None:
    bench = Bench(use("p"), plugins={"p": answering(ValueError(CANARY))})
    denied = await bench.refused(make_request(), "stage-failed", 502)
    assert bench.problems == [("stage-failed", "transform 'p' failed with ValueError")]
    assert CANARY not in denied.detail


async def test_a_plugin_that_is_too_slow_fails_the_request(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(Keep):
        async def on_request(self, flow: Any, request: Request) -> Any:
            await trio.sleep(10)
            return request

    bench = Bench(use("p"), plugins={"p": Slow}, limits=Limits(stage=4))
    start = trio.current_time()
    await bench.refused(make_request(), "stage-failed", 502)
    assert trio.current_time() - start == pytest.approx(4)
    assert bench.problems == [("stage-failed", "transform 'p' took longer than 4 s")]


@pytest.mark.parametrize("answer", [None, True, b"x", ("GET", "/"), Forward(request=make_request(), origin=ORIGIN)], ids=repr)
async def test_a_plugin_that_returns_something_else_fails_the_request(answer: Any) -> None:
    """Even a ``Forward``: only a rule says where a request goes."""
    bench = Bench(use("p"), plugins={"p": answering(answer)})
    await bench.refused(make_request(), "stage-failed", 502)
    assert bench.problems == [("stage-failed", f"transform 'p' returned {type(answer).__name__}")]


async def test_a_plugin_may_refuse_or_answer_and_no_later_step_is_asked() -> None:
    response = Response(status=201, body=b"made up")
    plugins = {"deny": answering(Deny(reason="quota", detail="no more")), "reply": answering(response)}
    plugins["last"] = answering(RuntimeError())
    bench = Bench(use("deny", "last"), plugins=plugins)
    denied = await bench.refused(make_request(), "quota", 403)
    assert denied.detail == "no more"
    bench.put(use("reply", "last"))
    assert await bench.ask(make_request()) is response
    assert bench.problems == []


async def test_a_plugin_that_is_not_there_fails_the_request() -> None:
    bench = Bench(use("p"))
    assert bench.inspector.body_limit(make_request()) == 0
    await bench.refused(make_request(), "stage-failed", 502)
    assert bench.problems == [("stage-failed", "no transform is named 'p'")]


def _broken_factory(**_options: Any) -> Any:
    raise ValueError(CANARY)


class Misfit:
    on_reqest = Keep.on_request


@pytest.mark.parametrize("factory", [_broken_factory, lambda: None, lambda **_: Misfit()], ids=["raises", "options", "misfit"])
async def test_c11_a_plugin_that_cannot_be_made_fails_the_request(factory: Any) -> None:
    """The exception may quote the options, and with them a secret."""
    bench = Bench(use("p", value="${secret:k}"), plugins={"p": factory}, secrets={"k": CANARY})
    denied = await bench.refused(make_request(), "stage-failed", 502)
    ((_, text),) = bench.problems
    assert text.startswith("transform 'p' can't be made from its config: ")
    assert CANARY not in text + denied.detail


async def test_c11_a_plugin_that_cannot_be_made_leaves_no_context() -> None:
    """Whoever logs the failure may walk along its causes and contexts."""
    bench = Bench(use("p"), plugins={"p": _broken_factory})
    assert bench.rules is not None
    with pytest.raises(Exception, match="can't be made") as caught:
        await bench.transforms.get(bench.rules.plugins[0])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# -- body_limit


class ByClass(Keep):
    body_limit = 100


@dataclass
class ByField:
    body_limit: int = 70

    async def on_request(self, flow: Any, request: Request) -> Any:
        await trio.lowlevel.checkpoint()
        return request


@dataclass(slots=True)
class BySlot(ByField):
    body_limit: int = 30
    other: list[int] = field(default_factory=list)


def by_factory() -> Any:
    return ByClass()


by_factory.body_limit = 120  # type: ignore[attr-defined]
PLUGINS = {"class": ByClass, "field": ByField, "slot": BySlot, "factory": by_factory, "none": Keep}


@pytest.mark.parametrize(
    ("names", "limit"),
    [
        (["none"], 0),
        (["class"], 100),
        (["field"], 70),
        (["slot"], 30),
        (["factory"], 120),
        (["slot", "none", "class"], 100),
    ],
)
async def test_the_body_limit_is_the_largest_that_a_plugin_of_the_rule_wants(names: list[str], limit: int) -> None:
    """A dataclass with slots has no such attribute: there it is a descriptor, and the default of the field counts."""
    bench = Bench(use(*names), plugins=PLUGINS)
    assert bench.inspector.body_limit(make_request()) == limit
    assert isinstance(await bench.inspector.on_request(make_request()), Forward)
    assert Bench(use(*names), plugins=PLUGINS, limits=Limits(transform_body=50)).inspector.body_limit(make_request()) == min(
        limit, 50
    )


async def test_a_plugin_that_wants_a_body_only_once_it_is_made_fails_the_request() -> None:
    """It was shown none, and would take that for an empty one."""

    class Late(Keep):
        def __init__(self) -> None:
            self.body_limit = 10

    bench = Bench(use("p"), plugins={"p": Late})
    assert bench.inspector.body_limit(make_request()) == 0
    await bench.refused(make_request(), "stage-failed", 502)
    assert "wants a body" in bench.problems[0][1]


# -- how long a plugin lives


async def test_c17_a_plugin_is_made_once_and_again_when_its_secret_changes() -> None:
    value = "one"

    async def fetch(_name: str) -> str:
        await trio.lowlevel.checkpoint()
        return value

    made: list[Any] = []

    class Kept(Keep):
        pass

    Kept.made = made
    bench = Bench(use("p", value="${secret:k}"), plugins={"p": Kept}, secrets={"k": CallableSource(fetch)})
    for _ in range(2):
        await bench.sent(make_request())
    assert [secret.reveal() for secret in made] == ["one"]
    assert isinstance(made[0], Secret)
    value = "two"
    for _ in range(2):
        await bench.sent(make_request())
    assert [secret.reveal() for secret in made] == ["one", "two"]
    bench.transforms.forget()
    await bench.sent(make_request())
    assert len(made) == 3


async def test_c17_a_finished_request_and_a_dropped_policy_leave_no_plugin_behind() -> None:
    """It holds secrets: an idle connection must not keep the old ones alive."""

    class Holder(Keep):
        def __init__(self) -> None:
            alive.append(weakref.ref(self))

    alive: list[Any] = []
    bench = Bench(use("p"), plugins={"p": Holder})
    await bench.sent(make_request())
    bench.transforms.forget()
    gc.collect()
    assert alive[0]() is not None  # the request may still get its response
    bench.inspector.done(Record(method="GET", path="/", status=200, bytes_up=0, bytes_down=0, reason="ok", seconds=0))
    gc.collect()
    assert alive[0]() is None


async def test_a_plugin_cannot_raise_a_verdict() -> None:
    """It returns one; what it raises is a failure like any other, whatever its text."""
    bench = Bench(use("p"), plugins={"p": answering(Denied("quota", CANARY))})
    denied = await bench.refused(make_request(), "stage-failed", 502)
    assert CANARY not in denied.detail + repr(bench.problems)


# -- responses


def marking(name: str) -> type:
    class Marking(Keep):
        async def on_response(self, flow: Any, request: Request, response: Response) -> Any:
            await trio.lowlevel.checkpoint()
            return replace(response, headers=Headers.of([*response.headers, ("x-mark", name)]))

    return Marking


async def test_the_plugins_that_saw_a_request_see_its_response_the_last_first() -> None:
    bench = Bench(use("a", "plain", "b"), plugins={"a": marking("a"), "b": marking("b"), "plain": Keep})
    request = await bench.sent(make_request())
    response = await bench.inspector.on_response(request, Response(status=200))
    assert response.headers.get_all("x-mark") == ["b", "a"]


async def test_a_response_is_shown_to_no_plugin_of_an_earlier_request() -> None:
    bench = Bench({"match": {"path": {"exact": "/a"}}, **use("a")}, plugins={"a": marking("a")})
    await bench.sent(make_request(target="/a"))
    request = await bench.sent(make_request(target="/b"))
    assert len((await bench.inspector.on_response(request, Response(status=200))).headers) == 0


@pytest.mark.parametrize("answer", [None, ValueError(CANARY)], ids=repr)
async def test_a_plugin_that_fails_on_a_response_replaces_it_by_a_denial(answer: Any) -> None:
    """It may have been there to take something out."""

    class Failing(Keep):
        async def on_response(self, flow: Any, request: Request, response: Response) -> Any:
            await trio.lowlevel.checkpoint()
            if answer is not None:
                raise answer

    bench = Bench(use("p"), plugins={"p": Failing})
    request = await bench.sent(make_request())
    with pytest.raises(Denied) as caught:
        await bench.inspector.on_response(request, Response(status=200))
    assert (caught.value.reason, caught.value.status) == ("stage-failed", 502)
    ((reason, text),) = bench.problems
    assert reason == "stage-failed"
    assert CANARY not in text + str(caught.value)
