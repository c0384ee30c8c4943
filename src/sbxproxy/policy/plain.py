"""Rules that are in order, read without the models, whose import costs a small program more than all the rest of its start.

What is read here the models would accept too, and make the same of. Nothing is told of faults: whatever isn't recognised at once is
theirs to look at, and that includes some of what is right, such as plugins.
"""

from __future__ import annotations

__all__ = ["read_rules"]

from collections.abc import Callable
from typing import TypeVar

from sbxproxy.policy.action import Action, Forward, Respond, SetHeaders, Transform
from sbxproxy.policy.header import check_media_type, check_name, check_names, check_value
from sbxproxy.policy.match import Form, KeyValue, Matcher, RequestMatch, check_method
from sbxproxy.policy.rules import Rule

_Item = TypeVar("_Item")

_ANY = RequestMatch()
_FORMS = frozenset(form.value for form in Form)


class _UnrecognisedError(ValueError):
    """Something is left to the models. Faults that are found on the way (``Fault``, ``UnicodeEncodeError``) are errors of value as well."""


def read_rules(listed: object) -> tuple[Rule, ...] | None:
    """Read the rules of one domain; ``None`` if the models must."""
    try:
        return tuple(_rule(index, value) for index, value in enumerate(_list(listed)))
    except ValueError:
        return None


def _rule(index: int, value: object) -> Rule:
    rule = _object(value, "match", "transform", "forwardURL", "response")
    if len(rule) - ("match" in rule) != 1:
        raise _UnrecognisedError
    action: Action
    if "transform" in rule:
        action = Transform(_each(_set_headers, rule["transform"]))
    elif "forwardURL" in rule:
        action = Forward.parse(_text(rule["forwardURL"]))
    else:
        action = _respond(rule["response"])
    return Rule(index, _match(rule["match"]) if "match" in rule else _ANY, action)


def _set_headers(value: object) -> SetHeaders:
    values = _object(_object(value, "headers").get("headers"))
    return SetHeaders(tuple(check_names({check_name(name): check_value(_text(text)) for name, text in values.items()}).items()))


def _respond(value: object) -> Respond:
    response = _object(value, "statusCode", "contentType", "body")
    status = response.get("statusCode")
    if type(status) is not int or not 200 <= status <= 599:
        raise _UnrecognisedError
    kind = check_media_type(_text(response["contentType"])) if "contentType" in response else None
    return Respond.of(status, kind, _text(response.get("body", "")))


def _match(value: object) -> RequestMatch:
    wanted = _object(value, "path", "method", "queryString", "headers")
    return RequestMatch(
        path=Matcher.of_path(*_form(wanted["path"])) if "path" in wanted else None,
        methods=_methods(wanted["method"]) if "method" in wanted else frozenset(),
        query=_each(_parameter, wanted.get("queryString", [])),
        headers=_each(_header, wanted.get("headers", [])),
    )


def _methods(value: object) -> frozenset[str]:
    methods = value if type(value) is list else [_object(value, "exact").get("exact")]
    if not methods:
        raise _UnrecognisedError
    return frozenset(check_method(_text(method)) for method in methods)


def _parameter(value: object) -> KeyValue:
    return _pair(value, fold=False)


def _header(value: object) -> KeyValue:
    return _pair(value, fold=True)


def _pair(value: object, *, fold: bool) -> KeyValue:
    """Read a pair, whose key compares without case if *fold*."""
    pair = _object(value, "key", "value")
    if not pair:
        raise _UnrecognisedError
    return KeyValue(
        Matcher.of(*_form(pair["key"]), fold=fold) if "key" in pair else None,
        Matcher.of(*_form(pair["value"])) if "value" in pair else None,
    )


def _form(value: object) -> tuple[Form, str]:
    forms = _object(value, *_FORMS)
    if len(forms) != 1:
        raise _UnrecognisedError
    ((name, text),) = forms.items()
    return Form(name), _text(text)


# -- what JSON is made of: exactly these types, as the models have it


def _object(value: object, *known: str) -> dict[str, object]:
    """Return *value* if it is an object with none but *known* keys, or any that are texts if none are."""
    if type(value) is not dict or (known and not value.keys() <= set(known)):
        raise _UnrecognisedError
    for key in value:
        _text(key)
    return value


def _list(value: object) -> list[object]:
    if type(value) is not list:
        raise _UnrecognisedError
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise _UnrecognisedError
    if not value.isascii():
        value.encode()  # half of a surrogate pair is no text
    return value


def _each(read: Callable[[object], _Item], value: object) -> tuple[_Item, ...]:
    return tuple(read(item) for item in _list(value))
