"""HTTP/1.1 between a client whose TLS was terminated and verified upstreams; h11 frames whatever is not plain."""

from __future__ import annotations

__all__ = [
    "Denied",
    "Ended",
    "Forward",
    "Headers",
    "Origin",
    "Pool",
    "Record",
    "Request",
    "RequestHandler",
    "Response",
    "serve",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.http.handler import Denied, Ended, Forward, Origin, Record, RequestHandler
    from sbxproxy.http.message import Headers, Request, Response
    from sbxproxy.http.pool import Pool
    from sbxproxy.http.serve import serve

face(
    __name__,
    {
        "handler": "Denied Ended Forward Origin Record RequestHandler",
        "message": "Headers Request Response",
        "pool": "Pool",
        "serve": "serve",
    },
)
