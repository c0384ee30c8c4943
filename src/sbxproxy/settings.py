"""The operator's settings: trusted with the host, fixed for a proxy's life, nothing read from the environment.

Policy authors and sandboxed programs have no say here. Every bound carries its reason, so that a reader can change it knowingly.
"""

from __future__ import annotations

__all__ = ["Limits", "Settings"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from sbxproxy.address import IPAddress, IPNetwork
from sbxproxy.errors import ConfigurationError
from sbxproxy.hostname import Hostname


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what one proxy and each of its sandboxes may hold. Times in seconds, sizes in bytes.

    Attributes:
        flows: open flows of all sandboxes; ``None`` takes what the file descriptor limit allows (two descriptors a flow and a
            reserve), so that EMFILE is never met in accept.
        flows_per_sandbox: open flows of one sandbox; a browser opens 100, a package manager 50.
        handshakes: flows of all sandboxes between their first byte and an established connection; these cost the CPU.
        handshakes_per_sandbox: the same for one sandbox, so that one can't take all.
        buffered_bytes_per_sandbox: first bytes and heads of all flows of one sandbox held in memory at once.
        first_bytes: total time from accepting to a complete front request and first message (ClientHello, request head);
            a total, since a deadline per read never ends a slow loris. HAProxy's guides say 5 to 10.
        client_hello: a whole ClientHello on the wire; post-quantum ones with padding reach 2 KiB, OpenSSL takes 128 KiB.
        head: one HTTP head. nginx takes 32 KiB, Node 16 KiB.
        header_fields: fields in one head. Apache takes 100.
        target: a request target. The common 8 KiB.
        resolve: one look-up, all retries.
        connect: one address; then the next is tried.
        connect_total: all addresses of a name.
        handshake: one TLS handshake, either side.
        idle: a relayed connection without a byte in either direction; ``None`` turns it off.
        keep_alive: an inspected connection between two requests, and a pooled upstream connection.
        linger: how long one direction may go on after the other ended where half-close can't be told (TLS).
        request_idle: an HTTP exchange in which neither body moves.
        pooled_per_sandbox: idle upstream connections kept for reuse.
        interim_responses: 1xx answers before the final one.
        leaves: certificates kept per sandbox, about 20 KiB each with their contexts.
        resolver_cache: names kept by the resolver.
        resolver_threads: look-ups in flight; a thread stuck in the C library can't be cancelled.
        transform_body: most that a transform may ask to see of a body.
        stage: one call of a plugin; a plugin that takes longer has failed.
        dns_rate: queries a second of one sandbox, and twice as many in a burst; more are lost, as on a network. Those answered
            without asking anybody cost some 20 microseconds each: a fifth of a processor.
        dns_lookup_rate: of these, those that somebody must be asked for. A browser's page asks fifty, a crawler some hundred a
            second.
        dns_pending: queries of one sandbox that wait for their answer at once; more over UDP are lost.
        dns_lookups: of these, how many are with the resolver; half of its threads, so that names which never resolve leave
            some to other sandboxes.
        dns_answer: one query; the C libraries give up after 5.
        dns_cache: answers of the name servers that a proxy keeps, for all its sandboxes; up to 4 KiB each.
        dns_idle: a DNS connection without a query. RFC 7766 asks for "a few seconds" at least.
        dns_connections: DNS connections of one sandbox.
    """

    flows: int | None = None
    flows_per_sandbox: int = 4096
    handshakes: int = 512
    handshakes_per_sandbox: int = 256
    buffered_bytes_per_sandbox: int = 32 * 1024 * 1024
    first_bytes: float = 10.0
    client_hello: int = 64 * 1024
    head: int = 64 * 1024
    header_fields: int = 100
    target: int = 8 * 1024
    resolve: float = 10.0
    connect: float = 10.0
    connect_total: float = 30.0
    handshake: float = 15.0
    idle: float | None = 600.0
    keep_alive: float = 60.0
    linger: float = 5.0
    request_idle: float = 300.0
    pooled_per_sandbox: int = 64
    interim_responses: int = 16
    leaves: int = 1024
    resolver_cache: int = 4096
    resolver_threads: int = 32
    transform_body: int = 8 * 1024 * 1024
    stage: float = 30.0
    dns_rate: int = 10_000
    dns_lookup_rate: int = 500
    dns_pending: int = 256
    dns_lookups: int = 16
    dns_answer: float = 4.5
    dns_cache: int = 4096
    dns_idle: float = 10.0
    dns_connections: int = 64

    def __post_init__(self) -> None:
        """Refuse bounds that bound nothing.

        Raises:
            ConfigurationError: a bound is not a positive number of its kind; only ``flows`` and ``idle`` may be ``None``.
        """
        for bound in fields(self):
            value = getattr(self, bound.name)
            kind = str(bound.type)
            if value is None and "None" in kind:
                continue
            number = isinstance(value, int) or (isinstance(value, float) and kind.startswith("float"))
            if isinstance(value, bool) or not number or not value > 0:
                raise ConfigurationError(f"Limits.{bound.name} must be a positive {kind}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator of one ``Proxy`` decides.

    Attributes:
        private_networks: ranges outside the public Internet that domain rules and allow-all may reach.
        never: ranges that nothing may reach, whatever a policy says.
        resolve: addresses for names, instead of the system's resolver; its addresses are judged like any other.
        nameservers: address and port of the name servers that are asked for what sandboxes may look up besides addresses, instead
            of those in the host's /etc/resolv.conf.
        upstream_roots: a PEM file of roots to verify upstreams with, instead of the system's.
        extra_upstream_roots: PEM files of roots added to these (a private CA).
        engine: let one task move the bytes of all relayed connections between sockets, instead of two tasks for each; Linux only.
            Nothing but speed and memory depends on it.
        limits: bounds.
    """

    private_networks: Sequence[IPNetwork] = ()
    never: Sequence[IPNetwork] = ()
    resolve: Mapping[Hostname, Sequence[IPAddress]] = field(default_factory=dict)
    nameservers: Sequence[tuple[IPAddress, int]] = ()
    upstream_roots: Path | None = None
    extra_upstream_roots: Sequence[Path] = ()
    engine: bool = True
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Take the networks as they are now, and refuse what is none: a text would fail only when a connection is judged.

        Raises:
            ConfigurationError: a network, or a name server, is something else.
        """
        for name in ("private_networks", "never"):
            networks = tuple(getattr(self, name))
            for network in networks:
                if not isinstance(network, IPv4Network | IPv6Network):
                    raise ConfigurationError(
                        f"Settings.{name} takes networks (see sbxproxy.address.parse_network), not {network!r}"
                    )
            object.__setattr__(self, name, networks)
        nameservers = tuple(self.nameservers)
        for server in nameservers:
            match server:
                case (IPv4Address() | IPv6Address(), int() as port) if 0 < port < 65536:
                    pass
                case _:
                    raise ConfigurationError(f"Settings.nameservers takes pairs of an address and a port, not {server!r}")
        object.__setattr__(self, "nameservers", nameservers)
