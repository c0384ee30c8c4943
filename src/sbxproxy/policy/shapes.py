"""The shape of rules, as models: they check them, and the JSON Schema comes from them.

Importing this module imports pydantic, so it happens only for policies that have rules, or faults. Fields
that are left out keep an empty default and are told from given ones by ``model_fields_set``; ``null`` is
nowhere accepted. Leaves check themselves with the functions that compile them and turn into compiled values,
so one pass finds all faults.
"""

from __future__ import annotations

__all__ = [
    "ARule",
    "ForwardUrl",
    "HeaderFieldShape",
    "HeaderValues",
    "KeyValueShape",
    "Match",
    "MatchShape",
    "MatcherShape",
    "OneMethodShape",
    "ResponseShape",
    "RuleShape",
    "Shape",
    "TransformShape",
    "kind_of",
    "optional",
]

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from sbxproxy.policy.action import Action, Forward, Respond, SetHeaders, Step, Transform, UsePlugin
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.header import check_media_type, check_name, check_names, check_value
from sbxproxy.policy.match import Form, KeyValue, Matcher, RequestMatch, check_method
from sbxproxy.policy.rules import Rule
from sbxproxy.policy.template import Template


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def optional(default: object, description: str, **constraints: Any) -> Any:
    """Describe a key that may be left out; its default isn't part of the format."""
    return Field(default, description=description, json_schema_extra=_no_default, **constraints)


def _one_key(schema: dict[str, Any]) -> None:
    schema |= {"minProperties": 1, "maxProperties": 1}


class Shape(BaseModel):
    """What all shapes share: no key unknown, no value converted, no input in errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


class MatcherShape(Shape):
    """Exactly one of the three."""

    model_config = ConfigDict(json_schema_extra=_one_key)

    exact: str = optional("", "The whole text, case-sensitive except for names of header fields.")
    startsWith: str = optional("", "The start of the text.")  # noqa: N815 - the format's spelling
    regex: str = optional("", "An RE2 expression that is found anywhere in the text; ^ and $ anchor it.")

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


class KeyValueShape(Shape):
    """A parameter of the query; at least one of the two."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    key: TextMatcher = optional(None, "Its name.")
    value: TextMatcher = optional(None, "Its value; of repeated ones any will do.")


class HeaderFieldShape(Shape):
    """A header field; at least one of the two."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    key: NameMatcher = optional(None, "Its name, compared without case.")
    value: TextMatcher = optional(None, "Its value; of repeated ones any will do.")


def _key_value(shape: KeyValueShape | HeaderFieldShape) -> KeyValue:
    if not shape.model_fields_set:
        raise Fault("neither key nor value", "at least one of key and value")
    return KeyValue(shape.key, shape.value)


class OneMethodShape(Shape):
    """A single method, written as a matcher."""

    exact: Annotated[str, AfterValidator(check_method)] = Field(description="The method.")


def _methods(value: list[str] | OneMethodShape) -> frozenset[str]:
    return frozenset({value.exact} if isinstance(value, OneMethodShape) else value)


def kind_of(value: object) -> str | None:
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
        Annotated[list[Annotated[str, AfterValidator(check_method)]], Field(min_length=1), Tag("<list>")]
        | Annotated[OneMethodShape, Tag("<map>")],
        Discriminator(kind_of),
        AfterValidator(_methods),
    ]


class MatchShape(Shape):
    """What a request must have; all of it."""

    path: PathMatcher = optional(None, "The path, without the query.")
    method: Methods = optional(frozenset(), "Any of these methods.")
    queryString: list[QueryPair] = optional([], "Each must be in the query.")  # noqa: N815
    headers: list[HeaderPair] = optional([], "Each must be among the header fields.")


def _match(shape: MatchShape) -> RequestMatch:
    return RequestMatch(path=shape.path, methods=shape.method, query=tuple(shape.queryString), headers=tuple(shape.headers))


if TYPE_CHECKING:
    Match = RequestMatch
    HeaderValues = dict[str, Template]
else:
    Match = Annotated[MatchShape, AfterValidator(_match)]
    HeaderValues = Annotated[
        dict[Annotated[str, AfterValidator(check_name)], Annotated[str, AfterValidator(check_value)]],
        AfterValidator(check_names),
    ]


def _headers_or_plugin(schema: dict[str, Any]) -> None:
    schema["dependentRequired"] = {"config": ["plugin"]}
    schema["not"] = {"required": ["headers", "plugin"]}


class TransformShape(Shape):
    """Headers to set, or a plugin to give the request to."""

    model_config = ConfigDict(json_schema_extra=_headers_or_plugin)

    headers: HeaderValues = optional(
        {},
        "Header fields to set; each replaces all of that name that the client sent. Values may name secrets: "
        "Bearer ${secret:github}. $${ is a literal ${.",
    )
    plugin: str = optional("", "The name of a transform that the operator has installed.")
    config: dict[str, Any] = optional({}, "The plugin's options. Texts in them may name secrets.")


def _step(shape: TransformShape) -> Step:
    given = shape.model_fields_set
    if "plugin" not in given:
        if "config" in given:
            raise Fault("config without plugin", 'name the plugin: {"plugin": …, "config": {…}}')
        return SetHeaders(tuple(shape.headers.items()))
    if "headers" in given:
        raise Fault("headers and plugin in one step", 'two steps: {"headers": {…}}, {"plugin": …}')
    return UsePlugin.of(shape.plugin, shape.config)


class ResponseShape(Shape):
    """An answer that is given without asking the server."""

    statusCode: int = Field(description="The HTTP status.", ge=200, le=599)  # noqa: N815
    contentType: Annotated[str, AfterValidator(check_media_type)] = optional("", "The media type.")  # noqa: N815
    body: str = optional("", "The body.")


def _respond(shape: ResponseShape) -> Respond:
    return Respond.of(shape.statusCode, shape.contentType or None, shape.body)


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


class RuleShape(Shape):
    """What to do with requests: exactly one of transform, forwardURL and response."""

    model_config = ConfigDict(json_schema_extra=_one_action)

    match: Match = optional(RequestMatch(), "Which requests; left out, all of them.")
    transform: list[TransformStep] = optional([], "Change the request, in these steps.")
    forwardURL: ForwardUrl = optional(None, "Send the request there instead; https only.")  # noqa: N815
    response: Response = optional(None, "Answer it.")


def _action(shape: RuleShape) -> Action:
    given = [name for name in _ACTIONS if name in shape.model_fields_set]
    if not given:
        raise Fault("a rule that does nothing", "one of transform, forwardURL and response")
    if len(given) > 1:
        raise Fault(f"{' and '.join(given)} in one rule", "one of transform, forwardURL and response in each rule")
    match given:
        case ["transform"]:
            return Transform(tuple(shape.transform))
        case ["forwardURL"]:
            return shape.forwardURL
        case _:
            return shape.response


def _rule(shape: RuleShape) -> Rule:
    return Rule(0, shape.match, _action(shape))


if TYPE_CHECKING:
    ARule = Rule
else:
    ARule = Annotated[RuleShape, AfterValidator(_rule)]
