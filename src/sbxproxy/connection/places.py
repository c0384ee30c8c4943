"""Where connections have led lately, so that the next one like it need not be read and judged from the beginning.

A program connects to the same few places over and over: the same CONNECT asks for it, or the kernel names the same target; the
same name is in the ClientHello; and within an era (see ``verdicts``) the same is decided. A head's meaning is kept for good, being
a matter of its bytes alone; what was decided, for one era. What is surprising is what is not kept: heads with credentials, and
answers whose size was up to the client.
"""

from __future__ import annotations

__all__ = ["Place", "Places", "Road"]

from sbxproxy.connection.context import Context
from sbxproxy.errors import ClientProtocolError
from sbxproxy.fronts.ask import StreamAsk
from sbxproxy.fronts.http import ESTABLISHED, ConnectAsk, open_connect
from sbxproxy.net.bare import BareStream
from sbxproxy.policy.decision import Facts, Relay
from sbxproxy.wire.result import Sniffed

MOST_PLACES = 256
"""Heads, and targets, that are known. Whoever asks differently each time only has all of them forgotten."""

MOST_ROADS = 64
"""Kinds of first bytes whose decision is kept for one place."""

MOST_ALPN = 8
LONGEST = 512
"""Bounds of first bytes worth keeping: protocols, and bytes of these and the name."""


class Road:
    """A plain relay to judged addresses, and what is needed to set out for the first of them.

    Attributes:
        facts: what it was decided on.
        relay: the decision.
        address: the first address.
        port: the port.
        text: the address as text.
        others: whether there are more addresses.
        sole: whether *address* alone is what was judged.
        connected: *facts* once it is connected to.
    """

    __slots__ = ("address", "connected", "facts", "others", "port", "relay", "sole", "text")

    def __init__(self, facts: Facts, relay: Relay) -> None:
        """Take a decision with at least one address."""
        self.facts = facts
        self.relay = relay
        self.address = relay.dial.addresses[0]
        self.port = relay.dial.port
        self.text = str(self.address)
        self.others = len(relay.dial.addresses) > 1
        self.sole = facts.addresses == (self.address,)
        self.connected = facts if self.sole else facts.at((self.address,))


class Place:
    """What a client wants.

    Attributes:
        front: the front's name.
        wished: the facts that the front gives.
        told: what a client is told that may go ahead; empty where there is nothing to say.
        era: the era that all below is of.
        waiting: the facts on which the first bytes are waited for; ``None`` if that is not known to be so.
        roads: by what the first bytes are, or ``None`` where they don't matter.
    """

    __slots__ = ("era", "front", "roads", "told", "waiting", "wished")

    def __init__(self, ask: ConnectAsk | StreamAsk) -> None:
        """Know nothing more than *ask*, which is not kept."""
        self.front = ask.front
        self.wished = Facts(host=ask.host, port=ask.port, wire=ask.wire)
        self.told = ESTABLISHED if isinstance(ask, ConnectAsk) else b""
        self.era: object = None
        self.waiting: Facts | None = None
        self.roads: dict[object, Road] = {}

    def ask(self, client: BareStream) -> ConnectAsk | StreamAsk:
        """Return *client*'s wish again."""
        host, port = self.wished.host, self.wished.port
        return ConnectAsk(host, port, client) if self.told else StreamAsk(host, port, front=self.front)

    def renew(self, era: object) -> None:
        """Forget what was decided if *era* is another."""
        if self.era is not era:
            self.era = era
            self.waiting = None
            self.roads = {}

    def keep(self, key: object, road: Road) -> Road:
        """Keep *road*, if *key* is of reasonable size, and return it."""
        if isinstance(key, Sniffed) and (
            len(key.alpn) > MOST_ALPN or len(key.server_name or b"") + sum(map(len, key.alpn)) > LONGEST
        ):
            return road
        if len(self.roads) < MOST_ROADS:
            self.roads[key] = road
        return road


class Places:
    """The places of one group of listeners."""

    __slots__ = ("_heads", "_limits", "_targets")

    def __init__(self, context: Context) -> None:
        """Know none."""
        self._limits = context.limits
        self._heads: dict[bytes, Place] = {}
        self._targets: dict[tuple[object, int], Place] = {}

    def of(self, ask: StreamAsk) -> Place:
        """Return the place of a target that the kernel knows."""
        key = ask.host, ask.port
        place = self._targets.get(key)
        if place is None:
            if len(self._targets) >= MOST_PLACES:
                self._targets.clear()
            place = self._targets[key] = Place(ask)
        return place

    def find(self, client: BareStream) -> Place | None:
        """Take the CONNECT that *client* begins with; ``None``, with nothing consumed, if it is none, or a bad or unusual one."""
        known, head = self._heads, client.peeked
        place = known.get(head)
        if place is not None:
            client.peeked = b""
            return place
        try:
            ask = open_connect(client, self._limits)
        except ClientProtocolError:  # who is told so on the ordinary way
            return None
        if ask is None:
            return None
        if len(known) >= MOST_PLACES:
            known.clear()
        head = head[: len(head) - len(client.peeked)]
        place = known[head] = known.get(head) or Place(ask)
        return place
