"""Applies a domain's rules to each request of an inspected connection.

The rules are looked up anew for every request, so a live update counts from the next one on. One that is under way then and has not
left yet is decided on anew, or refused, if the rules became others: a credential that the policy no longer has is not sent.

Nothing here is keyed to what the request says of itself: the rules are those of the server name that the connection was admitted for
and verified against.
"""

from __future__ import annotations

__all__ = ["Inspector"]

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import assert_never

import trio
from trio.abc import Stream

from sbxproxy.errors import SecretError, StageError
from sbxproxy.flow import Flow
from sbxproxy.http.handler import Denied, Forward, Origin, Record
from sbxproxy.http.message import Headers, Request, Response
from sbxproxy.policy import action as actions
from sbxproxy.policy.decision import Deny, Reason
from sbxproxy.policy.path import is_ambiguous_path
from sbxproxy.policy.rules import Rule, RuleSet
from sbxproxy.secrets import Secrets
from sbxproxy.settings import Limits
from sbxproxy.stages.pipeline import run_stage
from sbxproxy.stages.slots import Transform
from sbxproxy.stages.transforms import Transforms
from sbxproxy.wire.plain_head import REMEMBERED

_METHOD_OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override")
"""Headers by which frameworks let a POST pass for another method: with a rule on methods, that would dodge it."""


@dataclass(frozen=True, slots=True, repr=False)
class _Made:
    """Headers that a step made of others: a client that sends the same again gets the same, while the secrets are the same.

    Attributes:
        step: what made them.
        before: of what.
        values: with these secrets.
        after: themselves.
    """

    step: actions.SetHeaders
    before: Headers
    values: dict[str, str]
    after: Headers


@dataclass(frozen=True, slots=True, repr=False)
class _Known:
    """What a rule came to for fields, where it comes to the same whenever it applies to the very same fields again.

    Attributes:
        rules: that were in force.
        rule: of them, ``None`` for none.
        values: the secrets that were put in.
        before: the fields that the client sent.
        after: those that are sent on, which may hold secrets.
    """

    rules: RuleSet | None
    rule: Rule | None
    values: tuple[tuple[str, str], ...]
    before: Headers
    after: Headers


@dataclass(slots=True, kw_only=True)
class Inspector:
    """The ``RequestHandler`` of one inspected flow.

    Attributes:
        flow: whose requests these are.
        origin: where they go unless a rule says otherwise: the verified server name and the port asked for.
        rules: looks up the rules in force for that name; ``None`` if it has none any more.
        secrets: where ``${secret:…}`` comes from.
        transforms: the plugins that rules name.
        open: opens a verified connection to an origin; told whether a rule's forwardURL chose it.
        report: takes the story of each request and the index of the rule that applied.
        problem: takes a reason id and a sentence when a part failed.
        limits: bounds.
    """

    flow: Flow
    origin: Origin
    rules: Callable[[], RuleSet | None]
    secrets: Secrets
    transforms: Transforms
    open: Callable[[Origin], Awaitable[Stream]]
    report: Callable[[Record, int | None], None]
    problem: Callable[[str, str], None]
    limits: Limits
    _rules: RuleSet | None = field(default=None, init=False)
    _rule: Rule | None = field(default=None, init=False)
    _used: list[tuple[str, Transform]] = field(default_factory=list, init=False)
    _limited: tuple[Rule | None, int] = field(default=(None, 0), init=False)
    _values: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _made: _Made | None = field(default=None, init=False, repr=False)
    _known: _Known | None = field(default=None, init=False, repr=False)

    def at_once(self, method: str, target: str, headers: Headers) -> Headers | None:
        """Say what a rule made of the very same fields before, if it would make the same of them again.

        The rule and its secrets are looked up anew all the same. ``None`` if it takes more than that: a secret that has changed or
        must be waited for, a plugin, another place to go to, a path to be refused.
        """
        rules, rule = self.rules(), None
        if rules is not None:
            if rules.matches_path and is_ambiguous_path(target):
                return None
            rule = rules.select(method=method, target=target, headers=headers.fields)
        known = self._known
        if known is None or known.before is not headers or known.rule is not rule or known.rules is not rules:
            return None
        for name, value in known.values:
            secret = self.secrets.at_hand(name)
            if secret is None or secret.reveal() != value:
                return None
        self._rules, self._rule = rules, rule
        return known.after

    def _learn(self, before: Headers, answer: Forward) -> None:
        """Remember what became of *before*, if that does not depend on anything that changes."""
        rule, after = self._rule, answer.request.headers
        if rule is not None:
            if not isinstance(rule.action, actions.Transform):
                return
            for step in rule.action.steps:
                if not isinstance(step, actions.SetHeaders):
                    return
        if sum(len(name) + len(value) for name, value in (*before.fields, *after.fields)) <= 2 * REMEMBERED:
            self._known = _Known(self._rules, rule, tuple(self._values.items()), before, after)

    def body_limit(self, request: Request) -> int:
        """Choose the rule, and say how much of the body its plugins want to see."""
        self._rule = None
        self._used.clear()
        self._rules = rules = self.rules()
        if rules is None:
            return 0
        if rules.matches_path and is_ambiguous_path(request.target):
            raise _ambiguous()
        self._rule = rule = rules.select(method=request.method, target=request.target, headers=request.headers.fields)
        if rule is None or not isinstance(rule.action, actions.Transform):
            return 0
        if rule is not self._limited[0]:
            self._limited = rule, self._body_limit(rule.action)
        return self._limited[1]

    def _is_overruled(self) -> bool:
        """Tell whether the rules in force are others than those that the request under way was looked up in."""
        rules = self.rules()
        return rules is not self._rules and rules != self._rules

    def _body_limit(self, transform: actions.Transform) -> int:
        wanted = [self.transforms.body_limit(step) for step in transform.steps if isinstance(step, actions.UsePlugin)]
        return min(max(0, *wanted), self.limits.transform_body) if wanted else 0

    async def on_request(self, request: Request) -> Forward | Response | Denied:
        """Apply the rule that ``body_limit`` chose, or another one if the rules became others while the body was waited for."""
        if self._is_overruled():
            limit = self.body_limit(request)
            if limit and (request.body is None or len(request.body) > limit):
                return _overruled()
        try:
            answer = await self._apply(request)
            if isinstance(answer, Forward):
                if self._is_overruled():  # while a secret or a plugin was waited for
                    return _overruled()
                self._learn(request.headers, answer)
            return answer
        finally:
            self._values.clear()  # the next request asks anew

    async def _apply(self, request: Request) -> Forward | Response | Denied:
        if self._rules is not None and self._rules.matches_method:
            request = request.without_header(*_METHOD_OVERRIDES)
        rule = self._rule
        if rule is None:
            return Forward(request=request, origin=self.origin)
        match rule.action:
            case actions.Respond() as respond:
                headers = Headers() if respond.content_type is None else Headers.of([("content-type", respond.content_type)])
                return Response(status=respond.status, headers=headers, body=respond.body)
            case actions.Forward() as forward:
                return self._forwarded(request, forward)
            case actions.Transform() as transform:
                return await self._transformed(request, transform)
            case unknown:
                assert_never(unknown)

    def _forwarded(self, request: Request, forward: actions.Forward) -> Forward:
        if forward.path and (is_ambiguous_path(request.target) or not request.target.startswith("/")):
            raise _ambiguous()  # /../x would leave the path that the rule confines it to
        sent = (
            replace(request, target=forward.path + request.target)
            .with_header("vercel-forwarded-host", self.origin.host)
            .with_header("vercel-forwarded-scheme", self.origin.scheme)
            .with_header("vercel-forwarded-port", str(self.origin.port))
            .with_header("vercel-forwarded-path", request.path)
        )
        return Forward(request=sent, origin=Origin(forward.host, forward.port))

    async def _transformed(self, request: Request, transform: actions.Transform) -> Forward | Response | Denied:
        try:
            for step in transform.steps:
                answer = await self._step(request, step)
                if not isinstance(answer, Request):
                    return answer
                request = answer
        except SecretError as error:
            self.problem(Reason.SECRET_UNAVAILABLE, str(error))
            return Denied(Reason.SECRET_UNAVAILABLE, "a credential of this rule can't be had", status=502)
        except StageError as error:
            self.problem(Reason.STAGE_FAILED, str(error))
            return Denied(Reason.STAGE_FAILED, "a transform of this rule failed", status=502)
        return Forward(request=request, origin=self.origin)

    async def _step(self, request: Request, step: actions.Step) -> Request | Response | Denied:
        match step:
            case actions.SetHeaders():
                values = {name: await self._secret(name) for name in step.secrets}
                made, headers = self._made, request.headers
                if made is not None and made.step is step and made.before is headers and made.values == values:
                    return request.with_headers(made.after)
                for name, value in step.render(values):
                    headers = headers.with_header(name, value)
                if sum(len(name) + len(value) for name, value in headers.fields) <= REMEMBERED:
                    self._made = _Made(step, request.headers, values, headers)
                return request.with_headers(headers)
            case actions.UsePlugin():
                plugin = await run_stage(f"transform {step.name!r}", self.limits.stage, self.transforms.get, step)
                self._used.append((step.name, plugin))
                changed = await run_stage(f"transform {step.name!r}", self.limits.stage, plugin.on_request, self.flow, request)
                match changed:
                    case Request() | Response():
                        return changed
                    case Deny():
                        return Denied(changed.reason, changed.detail)
                    case _:
                        raise StageError(f"transform {step.name!r} returned {type(changed).__name__}")
            case unknown:
                assert_never(unknown)

    async def _secret(self, name: str) -> str:
        """Return a value, the same throughout a request."""
        value = self._values.get(name)
        if value is None:
            secret = self.secrets.at_hand(name)
            if secret is None:
                secret = await run_stage(f"secret {name!r}", self.limits.stage, self.secrets.get, name)
            value = self._values[name] = secret.reveal()
        return value

    async def on_response(self, request: Request, response: Response) -> Response:
        """Let the plugins that saw the request see the response, the last first."""
        try:
            for name, plugin in reversed(self._used):
                response = await self._answered(name, plugin, request, response)
        except StageError as error:
            self.problem(Reason.STAGE_FAILED, str(error))
            raise Denied(Reason.STAGE_FAILED, "a transform of this rule failed", status=502) from None
        return response

    async def _answered(self, name: str, plugin: Transform, request: Request, response: Response) -> Response:
        hook = getattr(plugin, "on_response", None)
        if hook is None:
            return response
        changed = await run_stage(f"transform {name!r}", self.limits.stage, hook, self.flow, request, response)
        if not isinstance(changed, Response):
            raise StageError(f"transform {name!r} returned {type(changed).__name__}")
        return changed

    async def connect(self, forward: Forward) -> Stream:
        """Open a verified connection for *forward*.

        Raises:
            Denied: the rules became others meanwhile, and *forward* may hold a credential of theirs.
        """
        stream = await self.open(forward.origin)
        if self._is_overruled():
            await trio.aclose_forcefully(stream)
            raise _overruled()
        return stream

    def done(self, record: Record) -> None:
        """Count and report a request."""
        self.flow.requests += 1
        self.flow.bytes_up += record.bytes_up
        self.flow.bytes_down += record.bytes_down
        rule, self._rule = self._rule, None  # the next head may be too broken for any rule
        self._used.clear()  # they hold secrets
        self.report(record, None if rule is None else rule.index)


def _overruled() -> Denied:
    return Denied(Reason.POLICY_CHANGED, "the policy changed while this was under way")


def _ambiguous() -> Denied:
    return Denied(Reason.AMBIGUOUS_PATH, "this path may mean different things to different servers", status=400)
