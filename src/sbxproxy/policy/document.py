"""A policy document as a whole, in its two forms, as models; see ``shapes`` for the rules in it."""

from __future__ import annotations

__all__ = ["DOCUMENT", "Document", "ForwardingShape", "InjectionShape", "NormalisedDocument", "SubnetsShape"]

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, TypeAdapter

from sbxproxy.address import IPNetwork, parse_network
from sbxproxy.policy.fault import Fault
from sbxproxy.policy.match import RequestMatch
from sbxproxy.policy.pattern import parse_pattern
from sbxproxy.policy.shapes import ARule, ForwardUrl, HeaderValues, Match, Shape, kind_of, optional


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
    Network = IPNetwork
else:
    Network = Annotated[str, AfterValidator(_network)]

Allow = Annotated[
    Annotated[list[Pattern], Tag("<list>")] | Annotated[dict[Pattern, list[ARule]], Tag("<map>")],
    Discriminator(kind_of),
]


class SubnetsShape(Shape):
    """Address ranges in CIDR notation, or single addresses."""

    allow: list[Network] = optional([], "Any TCP protocol to these, without a look at names.")
    deny: list[Network] = optional([], "Nothing to these; beats every allow.")


class Document(Shape):
    """What a sandbox may reach. All that isn't listed is denied."""

    mode: Literal["allow-all", "deny-all", "custom", "default-allow", "default-deny"] = optional(
        "custom",
        "allow-all: everything public but subnets.deny. deny-all: nothing. custom: what allow and "
        "subnets.allow list. default-allow and default-deny are older names of allow-all and custom.",
    )
    allow: Allow = optional([], "Domains, by the server name of TLS: a list of patterns, or a map from pattern to rules.")
    subnets: SubnetsShape = optional(SubnetsShape(), "Address ranges.")


class InjectionShape(Shape):
    """Headers to set on requests to a domain."""

    domain: Pattern = Field(description="One of allowedDomains.")
    headers: HeaderValues = Field(description="Header fields to set.")
    match: Match = optional(RequestMatch(), "Which requests.")


class ForwardingShape(Shape):
    """Where to send requests to a domain instead."""

    domain: Pattern = Field(description="One of allowedDomains.")
    forwardURL: ForwardUrl = Field(description="Where to; https only.")  # noqa: N815
    match: Match = optional(RequestMatch(), "Which requests.")


class NormalisedDocument(Shape):
    """The same in the flat form that programs exchange."""

    mode: Literal["allow-all", "deny-all", "custom", "default-allow", "default-deny"] = optional("custom", "The mode.")
    allowedDomains: list[Pattern] = optional([], "Patterns of allowed domains.")  # noqa: N815
    allowedCIDRs: list[Network] = optional([], "Allowed address ranges.")  # noqa: N815
    deniedCIDRs: list[Network] = optional([], "Denied address ranges.")  # noqa: N815
    injectionRules: list[InjectionShape] = optional([], "Headers to set, tried in order.")  # noqa: N815
    forwardRules: list[ForwardingShape] = optional([], "Requests to send elsewhere, after injectionRules.")  # noqa: N815


DOCUMENT: TypeAdapter[Any] = TypeAdapter(
    Literal["allow-all", "deny-all", "default-allow", "default-deny"] | Document | NormalisedDocument
)
"""For the JSON Schema only: an error of a union would name all its members."""
