"""The transform. It is made from a rule's ``config``, so the names of its fields are the names of the options."""

from __future__ import annotations

__all__ = ["Bearer"]

from dataclasses import dataclass

from sbxproxy import Flow, Secret
from sbxproxy.http.message import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """Sends *token* with every request of the domains whose rules name this plugin.

    Whatever ``Authorization`` the program sent is replaced.

    Attributes:
        token: written ``"${secret:NAME}"`` in the policy.
    """

    token: Secret

    async def on_request(self, flow: Flow, request: Request) -> Request:  # noqa: ARG002
        """Return *request* with the token."""
        return request.with_header("authorization", f"Bearer {self.token.reveal()}")
