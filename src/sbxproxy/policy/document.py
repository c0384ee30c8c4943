"""The shape of a policy document, as models: they check it, and the JSON Schema comes from them.

Importing this module imports pydantic, so it happens only for policies that have rules, or faults. Fields
that are left out keep an empty default and are told from given ones by ``model_fields_set``; ``null`` is
nowhere accepted. Leaves check themselves with the functions that compile them and turn into compiled values,
so one pass finds all faults.
"""

from __future__ import annotations

__all__ = ["DOCUMENT", "Document", "NormalisedDocument", "RuleShape"]

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from sbxproxy.address import IPNetwork, parse_network
from sbxproxy.policy.action import Action, Forward, Respond, SetHeaders, Step, Transform, UsePlugin
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.header import check_media_type, check_name, check_value, folded
from sbxproxy.policy.match import Form, KeyValue, Matcher, RequestMatch
from sbxproxy.policy.pattern import parse_pattern
from sbxproxy.policy.place import key_place
from sbxproxy.policy.rules import Rule
from sbxproxy.policy.template import Template

_METHOD = re.compile(r"[A-Z][A-Z0-9!#$%&'*+.^_|~-]{0,31}")


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _optional(default: object, description: str, **constraints: Any) -> Any:
    return Field(default, description=description, json_schema_extra=_no_default, **constraints)


def _one_key(schema: dict[str, Any]) -> None:
    schema |= {"minProperties": 1, "maxProperties": 1}


class _Shape(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


class MatcherShape(_Shape):
    """Exactly one of the three."""

    model_config = ConfigDict(json_schema_extra=_one_key)

    exact: str = _optional("", "The whole text, case-sensitive except for names of header fields.")
    startsWith: str = _optional("", "The start of the text.")  # noqa: N815 - the format's spelling
    regex: str = _optional("", "An RE2 expression that is found anywhere in the text; ^ and $ anchor it.")

    def form(self) -> tuple[Form, str]:
        """Return the one that is given."""
        if len(self.model_fields_set) != 1:
            raise Fault("a matcher has exactly one key", "exact, startsWith or regex")
        (name,) = self.model_fields_set
        return Form(name), str(getattr(self, name))


def _matcher(shape: MatcherShape) -> Matcher:
    return Matcher.of(*shape.form())


def _name_matcher(shape: MatcherShape) -> Matcher:
    return Matcher.of(*shape.form(), fold=True)


def _path_matcher(shape: MatcherShape) -> Matcher:
    return Matcher.of_path(*shape.form())


if TYPE_CHECKING:
    TextMatcher = Matcher
    NameMatcher = Matcher
    PathMatcher = Matcher
else:
    TextMatcher = Annotated[MatcherShape, AfterValidator(_matcher)]
    NameMatcher = Annotated[MatcherShape, AfterValidator(_name_matcher)]
    PathMatcher = Annotated[MatcherShape, AfterValidator(_path_matcher)]


class KeyValueShape(_Shape):
    """A parameter of the query; at least one of the two."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    key: TextMatcher = _optional(None, "Its name.")
    value: TextMatcher = _optional(None, "Its value; of repeated ones any will do.")


class HeaderFieldShape(_Shape):
    """A header field; at least one of the two."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    key: NameMatcher = _optional(None, "Its name, compared without case.")
    value: TextMatcher = _optional(None, "Its value; of repeated ones any will do.")


def _key_value(shape: KeyValueShape | HeaderFieldShape) -> KeyValue:
    if not shape.model_fields_set:
        raise Fault("neither key nor value", "at least one of key and value")
    return KeyValue(shape.key, shape.value)


def _method(text: str) -> str:
    if not _METHOD.fullmatch(text):
        raise Fault("not a method", "in upper case, such as GET: methods are case-sensitive")
    return text


class OneMethodShape(_Shape):
    """A single method, written as a matcher."""

    exact: Annotated[str, AfterValidator(_method)] = Field(description="The method.")


def _methods(value: list[str] | OneMethodShape) -> frozenset[str]:
    return frozenset({value.exact} if isinstance(value, OneMethodShape) else value)


def _kind(value: object) -> str | None:
    """Tell lists and maps apart; the tags are cut out of the places of errors."""
    return "<list>" if isinstance(value, list) else "<map>" if isinstance(value, dict | BaseModel) else None


if TYPE_CHECKING:
    QueryPair = KeyValue
    HeaderPair = KeyValue
    Methods = frozenset[str]
else:
    QueryPair = Annotated[KeyValueShape, AfterValidator(_key_value)]
    HeaderPair = Annotated[HeaderFieldShape, AfterValidator(_key_value)]
    Methods = Annotated[
        Annotated[list[Annotated[str, AfterValidator(_method)]], Field(min_length=1), Tag("<list>")]
        | Annotated[OneMethodShape, Tag("<map>")],
        Discriminator(_kind),
        AfterValidator(_methods),
    ]


class MatchShape(_Shape):
    """What a request must have; all of it."""

    path: PathMatcher = _optional(None, "The path, without the query.")
    method: Methods = _optional(frozenset(), "Any of these methods.")
    queryString: list[QueryPair] = _optional([], "Each must be in the query.")  # noqa: N815
    headers: list[HeaderPair] = _optional([], "Each must be among the header fields.")


def _match(shape: MatchShape) -> RequestMatch:
    return RequestMatch(
        path=shape.path, methods=shape.method, query=tuple(shape.queryString), headers=tuple(shape.headers)
    )


def _no_header_twice(headers: dict[str, Template]) -> dict[str, Template]:
    seen: set[str] = set()
    for position, name in enumerate(headers):
        if folded(name) in seen:
            raise Fault(
                "the same header twice",
                "each name once; case and _ or - make no other",
                within=key_place(name, position),
            )
        seen.add(folded(name))
    return headers


if TYPE_CHECKING:
    Match = RequestMatch
    HeaderValues = dict[str, Template]
else:
    Match = Annotated[MatchShape, AfterValidator(_match)]
    HeaderValues = Annotated[
        dict[Annotated[str, AfterValidator(check_name)], Annotated[str, AfterValidator(check_value)]],
        AfterValidator(_no_header_twice),
    ]


def _headers_or_plugin(schema: dict[str, Any]) -> None:
    schema["dependentRequired"] = {"config": ["plugin"]}
    schema["not"] = {"required": ["headers", "plugin"]}


class TransformShape(_Shape):
    """Headers to set, or a plugin to give the request to."""

    model_config = ConfigDict(json_schema_extra=_headers_or_plugin)

    headers: HeaderValues = _optional(
        {},
        "Header fields to set; each replaces all of that name that the client sent. Values may name secrets: "
        "Bearer ${secret:github}. $${ is a literal ${.",
    )
    plugin: str = _optional("", "The name of a transform that the operator has installed.")
    config: dict[str, Any] = _optional({}, "The plugin's options. Texts in them may name secrets.")


def _step(shape: TransformShape) -> Step:
    given = shape.model_fields_set
    if "plugin" not in given:
        if "config" in given:
            raise Fault("config without plugin", 'name the plugin: {"plugin": …, "config": {…}}')
        return SetHeaders(tuple(shape.headers.items()))
    if "headers" in given:
        raise Fault("headers and plugin in one step", 'two steps: {"headers": {…}}, {"plugin": …}')
    return UsePlugin.of(shape.plugin, shape.config)


class ResponseShape(_Shape):
    """An answer that is given without asking the server."""

    statusCode: int = Field(description="The HTTP status.", ge=200, le=599)  # noqa: N815
    contentType: Annotated[str, AfterValidator(check_media_type)] = _optional("", "The media type.")  # noqa: N815
    body: str = _optional("", "The body.")


_BODILESS = frozenset({204, 205, 304})


def _respond(shape: ResponseShape) -> Respond:
    if shape.body and shape.statusCode in _BODILESS:
        raise Fault(
            f"a {shape.statusCode} response has no body", "another statusCode, or no body", within=".body"
        )
    try:
        body = shape.body.encode()
    except UnicodeEncodeError:
        raise Fault("half of a surrogate pair", "whole characters", within=".body") from None
    return Respond(status=shape.statusCode, content_type=shape.contentType or None, body=body)


if TYPE_CHECKING:
    TransformStep = Step
    ForwardUrl = Forward
    Response = Respond
else:
    TransformStep = Annotated[TransformShape, AfterValidator(_step)]
    ForwardUrl = Annotated[str, AfterValidator(Forward.parse)]
    Response = Annotated[ResponseShape, AfterValidator(_respond)]

_ACTIONS = ("transform", "forwardURL", "response")


def _one_action(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"required": [name]} for name in _ACTIONS]


class RuleShape(_Shape):
    """What to do with requests: exactly one of transform, forwardURL and response."""

    model_config = ConfigDict(json_schema_extra=_one_action)

    match: Match = _optional(RequestMatch(), "Which requests; left out, all of them.")
    transform: list[TransformStep] = _optional([], "Change the request, in these steps.")
    forwardURL: ForwardUrl = _optional(None, "Send the request there instead; https only.")  # noqa: N815
    response: Response = _optional(None, "Answer it.")


def _action(shape: RuleShape) -> Action:
    given = [name for name in _ACTIONS if name in shape.model_fields_set]
    if not given:
        raise Fault("a rule that does nothing", "one of transform, forwardURL and response")
    if len(given) > 1:
        raise Fault(
            f"{' and '.join(given)} in one rule", "one of transform, forwardURL and response in each rule"
        )
    match given:
        case ["transform"]:
            return Transform(tuple(shape.transform))
        case ["forwardURL"]:
            return shape.forwardURL
        case _:
            return shape.response


def _rule(shape: RuleShape) -> Rule:
    return Rule(0, shape.match, _action(shape))


def _network(text: str) -> IPNetwork:
    try:
        return parse_network(text)
    except ValueError as error:
        raise Fault(str(error), "CIDR notation, such as 203.0.113.0/24") from None


def _checked_pattern(text: str) -> str:
    """Check only: two keys that turn out the same must still both be there when the map is read."""
    parse_pattern(text)
    return text


Pattern = Annotated[str, AfterValidator(_checked_pattern)]

if TYPE_CHECKING:
    ARule = Rule
    Network = IPNetwork
else:
    ARule = Annotated[RuleShape, AfterValidator(_rule)]
    Network = Annotated[str, AfterValidator(_network)]

Allow = Annotated[
    Annotated[list[Pattern], Tag("<list>")] | Annotated[dict[Pattern, list[ARule]], Tag("<map>")],
    Discriminator(_kind),
]


class SubnetsShape(_Shape):
    """Address ranges in CIDR notation, or single addresses."""

    allow: list[Network] = _optional([], "Any TCP protocol to these, without a look at names.")
    deny: list[Network] = _optional([], "Nothing to these; beats every allow.")


class Document(_Shape):
    """What a sandbox may reach. All that isn't listed is denied."""

    mode: Literal["allow-all", "deny-all", "custom", "default-allow", "default-deny"] = _optional(
        "custom",
        "allow-all: everything public but subnets.deny. deny-all: nothing. custom: what allow and "
        "subnets.allow list. default-allow and default-deny are older names of allow-all and custom.",
    )
    allow: Allow = _optional(
        [], "Domains, by the server name of TLS: a list of patterns, or a map from pattern to rules."
    )
    subnets: SubnetsShape = _optional(SubnetsShape(), "Address ranges.")


class InjectionShape(_Shape):
    """Headers to set on requests to a domain."""

    domain: Pattern = Field(description="One of allowedDomains.")
    headers: HeaderValues = Field(description="Header fields to set.")
    match: Match = _optional(RequestMatch(), "Which requests.")


class ForwardingShape(_Shape):
    """Where to send requests to a domain instead."""

    domain: Pattern = Field(description="One of allowedDomains.")
    forwardURL: ForwardUrl = Field(description="Where to; https only.")  # noqa: N815
    match: Match = _optional(RequestMatch(), "Which requests.")


class NormalisedDocument(_Shape):
    """The same in the flat form that programs exchange."""

    mode: Literal["allow-all", "deny-all", "custom", "default-allow", "default-deny"] = _optional(
        "custom", "The mode."
    )
    allowedDomains: list[Pattern] = _optional([], "Patterns of allowed domains.")  # noqa: N815
    allowedCIDRs: list[Network] = _optional([], "Allowed address ranges.")  # noqa: N815
    deniedCIDRs: list[Network] = _optional([], "Denied address ranges.")  # noqa: N815
    injectionRules: list[InjectionShape] = _optional([], "Headers to set, tried in order.")  # noqa: N815
    forwardRules: list[ForwardingShape] = _optional([], "Requests to send elsewhere, after injectionRules.")  # noqa: N815


DOCUMENT: TypeAdapter[Any] = TypeAdapter(
    Literal["allow-all", "deny-all", "default-allow", "default-deny"] | Document | NormalisedDocument
)
"""For the JSON Schema only: an error of a union would name all its members."""
