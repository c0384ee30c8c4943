"""Sends a bearer token (RFC 6750) with each request of the domains whose rules ask for it."""

from __future__ import annotations

__all__ = ["Bearer"]

from sbxproxy_bearer.bearer import Bearer
