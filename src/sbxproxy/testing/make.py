"""Flows and requests as a plugin gets them, each part with a default, for tests that need one of them and no network."""

from __future__ import annotations

__all__ = ["make_flow", "make_request"]

from collections.abc import Iterable, Mapping, Sequence

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.flow import Flow
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.http.message import Headers, Request
from sbxproxy.policy.decision import Decision, Dial, Facts, Reason, Relay, Wire

ADDRESS = "1.2.3.4"
"""A public address that no test connects to."""


def make_flow(
    host: str = "api.example.com",
    port: int = 443,
    *,
    sandbox: str = "test",
    front: str = "connect",
    wire: str | None = Wire.TLS,
    server_name: str | None = None,
    alpn: Sequence[bytes] = (b"http/1.1",),
    addresses: Sequence[str] = (ADDRESS,),
    decision: Decision | None = None,
    matched: str | None = None,
) -> Flow:
    """Return a flow that a policy has allowed, as policy stages and all later ones see it; works without an event loop.

    Args:
        host: the target, a host name or an address.
        port: the target's port.
        sandbox: the sandbox's name.
        front: how the client named the target.
        wire: what the first bytes were.
        server_name: the name in the ClientHello; by default *host*, where that is a name and *wire* is TLS.
        alpn: the protocols in the ClientHello.
        addresses: what the name resolved to.
        decision: by default ``Relay`` to *addresses*, because the domain is allowed.
        matched: the policy's pattern in the default decision; by default the server name.

    Raises:
        ValueError: a name or address is not one.
    """
    target = _host(host)
    name = target if isinstance(target, str) and server_name is None and wire == Wire.TLS else _name(server_name)
    numbers = tuple(_address(text) for text in addresses)
    facts = Facts(
        host=target,
        port=port,
        wire=None if wire is None else str(wire),
        server_name=name,
        alpn=tuple(alpn) if wire == Wire.TLS else (),
        addresses=numbers,
    )
    if decision is None:
        dialled = name or (target if isinstance(target, str) else None)
        decision = Relay(reason=Reason.DOMAIN, matched=matched or name, dial=Dial(dialled, numbers, port))
    return Flow(sandbox=sandbox, front=front, facts=facts, decision=decision, started=0.0)


def make_request(
    method: str = "GET",
    target: str = "/",
    *,
    host: str = "api.example.com",
    headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = (),
    body: bytes | None = None,
) -> Request:
    """Return a request as a transform sees it.

    Args:
        method: upper-case token.
        target: path and query.
        host: the verified server name.
        headers: end-to-end fields; pairs where a name occurs twice.
        body: what a transform with a ``body_limit`` is shown; ``None`` where it is streamed.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return Request(method=method, target=target, headers=Headers.of(pairs), host=host, body=body)


def _host(text: str) -> Hostname | IPAddress:
    address = parse_address(text)
    if address is not None:
        return address
    name = canonical_hostname(text)
    if name is None:
        raise ValueError(f"neither a host name nor an address: {text!r}")
    return name


def _name(text: str | None) -> Hostname | None:
    if text is None:
        return None
    name = canonical_hostname(text)
    if name is None:
        raise ValueError(f"not a host name: {text!r}")
    return name


def _address(text: str) -> IPAddress:
    address = parse_address(text)
    if address is None:
        raise ValueError(f"not an address: {text!r}")
    return address
