"""Fronts: how a client names its target."""

from __future__ import annotations

__all__ = ["Ask", "ListenerAuth", "Refusal", "StreamAsk", "open_explicit", "open_proxy_protocol", "open_transparent"]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.fronts.ask import Ask, ListenerAuth, Refusal, StreamAsk
    from sbxproxy.fronts.explicit import open_explicit
    from sbxproxy.fronts.proxy_protocol import open_proxy_protocol
    from sbxproxy.fronts.transparent import open_transparent

face(
    __name__,
    {
        "ask": "Ask ListenerAuth Refusal StreamAsk",
        "explicit": "open_explicit",
        "proxy_protocol": "open_proxy_protocol",
        "transparent": "open_transparent",
    },
)
