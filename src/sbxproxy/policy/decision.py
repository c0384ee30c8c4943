"""What is known of a connection, and what is decided on it: frozen values, matched exhaustively.

The judge is a pure function of the facts gathered so far. When they don't suffice it doesn't guess: it answers with a
``Need``, the connection gathers that and asks again. A live update asks the same question again with the facts a flow was
admitted on, so admission, re-judgement and ``explain`` can't drift apart.
"""

from __future__ import annotations

__all__ = [
    "Decision",
    "Deny",
    "Dial",
    "Facts",
    "Handle",
    "Inspect",
    "Need",
    "Reason",
    "Relay",
    "Wire",
    "make_dial",
    "make_facts",
    "make_relay",
]

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

from sbxproxy.address import IPAddress
from sbxproxy.hostname import Hostname
from sbxproxy.policy.opened import opened

if TYPE_CHECKING:
    from sbxproxy.policy.rules import RuleSet


class Wire(StrEnum):
    """What the first bytes are. Sniffers of third parties answer with names of their own, any other ``str``."""

    TLS = "tls"
    HTTP = "http"
    POSTGRES = "postgres"
    """PostgreSQL that begins in plain text: a StartupMessage or a CancelRequest."""
    POSTGRES_REQUEST = "postgres-request"
    """PostgreSQL that asks for encryption and waits for the answer."""
    POSTGRES_TLS = "postgres-tls"
    """PostgreSQL that was promised TLS and has sent its ClientHello (or what stands in its place)."""
    UNKNOWN = "unknown"
    SILENT = "silent"
    """The server spoke first, or nobody did within the time allowed."""


class Reason(StrEnum):
    """Reason ids: stable, the same in events, in ``explain`` and in what the client is shown."""

    # allowed
    ALLOW_ALL = "allow-all"
    DOMAIN = "domain-allowed"
    RANGE = "range-allowed"
    # denied by policy
    DENY_ALL = "deny-all"
    DOMAIN_NOT_ALLOWED = "domain-not-allowed"
    NO_SNI = "no-sni"
    SNI_MISMATCH = "sni-mismatch"
    ADDRESS_DENIED = "address-denied"
    PRIVATE_ADDRESS = "private-address"
    PROXY_ADDRESS = "proxy-address"
    PLAIN_HTTP = "plain-http"
    POSTGRES_PLAINTEXT = "postgres-plaintext"
    PROTOCOL_NOT_ALLOWED = "protocol-not-allowed"
    HOST_MISMATCH = "host-mismatch"
    AMBIGUOUS_PATH = "ambiguous-path"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    # denied because something was not as it must be
    BAD_NAME = "bad-name"
    BAD_CLIENT_HELLO = "bad-client-hello"
    BAD_REQUEST = "bad-request"
    BAD_STARTUP = "bad-startup"
    FIRST_BYTES_TIMEOUT = "first-bytes-timeout"
    LIMIT = "limit"
    STAGE_FAILED = "stage-failed"
    SECRET_UNAVAILABLE = "secret-unavailable"  # noqa: S105 - a reason id
    PROXY_AUTH = "proxy-auth"
    POLICY_CHANGED = "policy-changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one connection. ``None`` means "not known yet", never "none".

    Attributes:
        host: the target as the front got it: a canonical name, or an address.
        port: the target's port, 1 to 65535.
        wire: what the first bytes are (a ``Wire`` or a third party's name for its protocol).
        server_name: the canonical server name of the ClientHello (or of a third party's protocol); ``None`` with a known
            ``wire`` means that it has none.
        alpn: the protocols the ClientHello offers, in its order.
        addresses: what the name to be dialled (``server_name``, else ``host``) resolved to, in the resolver's order;
            once connected, the connected address alone.
        problem: why the first bytes are not acceptable as what they claim to be (a malformed or ambiguous ClientHello);
            only a range or allow-all lets such bytes pass.
    """

    host: Hostname | IPAddress
    port: int
    wire: str | None = None
    server_name: Hostname | None = None
    alpn: tuple[bytes, ...] = ()
    addresses: tuple[IPAddress, ...] | None = None
    problem: str | None = None

    def __hash__(self) -> int:
        """Hash all but addresses after the first: an address takes longer than the rest together, and seldom tells facts apart."""
        addresses = self.addresses
        first = int(addresses[0]) if addresses else addresses
        return hash((self.host, self.port, self.wire, self.server_name, self.alpn, first, self.problem))

    def at(self, addresses: tuple[IPAddress, ...] | None) -> Facts:
        """Return the same with other addresses."""
        return make_facts(
            host=self.host,
            port=self.port,
            wire=self.wire,
            server_name=self.server_name,
            alpn=self.alpn,
            addresses=addresses,
            problem=self.problem,
        )


class Need(Enum):
    """What the judge must know before it can answer."""

    WIRE = "the first bytes"
    HELLO = "the ClientHello that a PostgreSQL client sends once it is promised TLS"
    ADDRESSES = "the addresses of the name to be dialled"


@dataclass(frozen=True, slots=True)
class Dial:
    """Where the connection may go: exactly these addresses, already judged, best first, and this port."""

    name: Hostname | None
    addresses: tuple[IPAddress, ...]
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Pass the bytes untouched.

    Attributes:
        reason: why it is allowed.
        matched: the pattern or range of the policy that allows it; ``None`` in allow-all.
        dial: where to connect.
        provisional: the policy has rules that a ClientHello could still call for: connect at once, look at whichever side
            speaks first, and judge again if the client does (a server that speaks first settles it as ``Wire.SILENT``).
        only_postgres: the domain has rules, and the client's word that it speaks PostgreSQL, to which they don't apply, is all
            there is: the server must show first that it does.
    """

    reason: str
    matched: str | None
    dial: Dial
    provisional: bool = False
    only_postgres: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Terminate TLS and apply ``rules`` to each request.

    ``dial.addresses`` is empty only if ``rules.needs_upstream`` is false: every request is answered or forwarded elsewhere.
    """

    reason: str
    matched: str
    dial: Dial
    rules: RuleSet = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """Give both ends to the handler registered as ``name`` (another protocol's own relay)."""

    name: str
    reason: str
    matched: str | None
    dial: Dial


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """Refuse, in the protocol's own way.

    Attributes:
        reason: the reason id shown to the client, to observers and by ``explain``.
        detail: one sentence for people; holds nothing but canonical names, addresses and policy text.
        matched: the policy line that denies, where one does.
        remedy: the policy line that would allow it, where one would.
    """

    reason: str
    detail: str
    matched: str | None = None
    remedy: str | None = None


Decision = Relay | Inspect | Handle | Deny


_OpenFacts, _OpenDial, _OpenRelay = opened(Facts), opened(Dial), opened(Relay)


def make_facts(
    *,
    host: Hostname | IPAddress,
    port: int,
    wire: str | None = None,
    server_name: Hostname | None = None,
    alpn: tuple[bytes, ...] = (),
    addresses: tuple[IPAddress, ...] | None = None,
    problem: str | None = None,
) -> Facts:
    """Return what ``Facts(…)`` does, sooner."""
    facts = _OpenFacts()
    facts.host = host
    facts.port = port
    facts.wire = wire
    facts.server_name = server_name
    facts.alpn = alpn
    facts.addresses = addresses
    facts.problem = problem
    facts.__class__ = Facts
    made: Facts = facts
    return made


def make_dial(name: Hostname | None, addresses: tuple[IPAddress, ...], port: int) -> Dial:
    """Return what ``Dial(…)`` does, sooner."""
    dial = _OpenDial()
    dial.name = name
    dial.addresses = addresses
    dial.port = port
    dial.__class__ = Dial
    made: Dial = dial
    return made


def make_relay(*, reason: str, matched: str | None, dial: Dial, provisional: bool = False, only_postgres: bool = False) -> Relay:
    """Return what ``Relay(…)`` does, sooner."""
    relay = _OpenRelay()
    relay.reason = reason
    relay.matched = matched
    relay.dial = dial
    relay.provisional = provisional
    relay.only_postgres = only_postgres
    relay.__class__ = Relay
    made: Relay = relay
    return made
