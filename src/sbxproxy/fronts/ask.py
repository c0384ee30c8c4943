"""What a front hands on: where the client wants to go, and how to tell it yes or no in its own protocol."""

from __future__ import annotations

__all__ = ["Ask", "ListenerAuth", "Refusal", "StreamAsk", "ToldAsk"]

import base64
import hmac
from dataclasses import dataclass, field
from typing import Protocol

import trio

from sbxproxy.address import IPAddress
from sbxproxy.errors import UpstreamError
from sbxproxy.hostname import Hostname
from sbxproxy.net.peek import PeekedStream
from sbxproxy.policy.decision import Deny

Refusal = Deny | UpstreamError
"""A verdict, or the reason why what was allowed can't be had."""


class Ask(Protocol):
    """A client's wish. ``accept`` or ``refuse`` is called once, unless the flow ends before; neither closes the stream.

    Attributes:
        front: the front's name in events.
        host: canonical name or address.
        port: 1 to 65535.
        wire: what the first bytes are, where the front can tell already.
        mute: nothing can be said before the first bytes; a denial is then told in the protocol that these are.
    """

    front: str
    host: Hostname | IPAddress
    port: int
    wire: str | None
    mute: bool

    async def accept(self) -> None:
        """Tell the client to go ahead."""
        ...

    async def refuse(self, refusal: Refusal) -> None:
        """Tell the client why not; raises nothing if the client is gone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerAuth:
    """User name and password that a shared port asks for: HTTP Basic (RFC 7617) or SOCKS (RFC 1929).

    They tell who may use the port, not which sandbox it is: that is the listener's.
    """

    user: str
    password: str = field(repr=False)

    def allows(self, user: bytes, password: bytes) -> bool:
        """Compare in constant time."""
        same_user = hmac.compare_digest(user, self.user.encode())
        same_password = hmac.compare_digest(password, self.password.encode())
        return same_user and same_password

    def allows_basic(self, header: str | None) -> bool:
        """Compare a ``Proxy-Authorization`` value."""
        scheme, _, encoded = (header or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except ValueError:
            return False
        return self.allows(user, password)


@dataclass(slots=True)
class ToldAsk:
    """What the wishes share that a client tells in a protocol of the front's own.

    Attributes:
        client: its stream, which is answered.
    """

    host: Hostname | IPAddress
    port: int
    client: PeekedStream
    front: str = ""
    wire: str | None = None
    mute: bool = False


@dataclass(slots=True)
class StreamAsk:
    """A target that comes from the embedder, the kernel or a PROXY header: there is nobody to answer before the first byte."""

    host: Hostname | IPAddress
    port: int
    front: str = "stream"
    wire: str | None = None
    mute: bool = True

    async def accept(self) -> None:
        """Nothing to say."""
        await trio.lowlevel.checkpoint()

    async def refuse(self, refusal: Refusal) -> None:  # noqa: ARG002
        """Nothing to say here."""
        await trio.lowlevel.checkpoint()
