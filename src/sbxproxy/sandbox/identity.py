"""Who a sandbox is to the programs in it. It needs no event loop, so that it can be there before there is one."""

from __future__ import annotations

__all__ = ["Identity"]

from typing import TYPE_CHECKING

from sbxproxy.errors import ConfigurationError
from sbxproxy.sandbox.trust import TrustFiles
from sbxproxy.settings import Settings

if TYPE_CHECKING:
    from sbxproxy.tls.authority import Authority, Founding

MAX_NAME = 200


class Identity:
    """A sandbox's name, its certificate authority, and the files that make its programs trust that.

    Attributes:
        name: stands in events and in the certificate.
        trust: writes the files; whoever made the identity closes it, or gives it to a sandbox, which does.
    """

    __slots__ = ("_authority", "_founding", "_leaves", "name", "trust")

    def __init__(self, name: str, settings: Settings, *, founding: Founding | None = None) -> None:
        """Take the name; the authority is made when it is needed, of *founding* if that is given.

        Raises:
            ConfigurationError: the name is empty or too long.
        """
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise ConfigurationError(f"a sandbox's name has 1 to {MAX_NAME} printable characters")
        self.name = name
        self._leaves = settings.limits.leaves
        self._authority: Authority | None = None
        self._founding = founding
        self.trust = TrustFiles(
            lambda: self.authority.certificate_pem, roots=settings.upstream_roots, extra_roots=settings.extra_upstream_roots
        )

    @property
    def authority(self) -> Authority:
        """The sandbox's own authority."""
        if self._authority is None:
            from sbxproxy.tls.authority import Authority  # noqa: PLC0415 - its libraries take a while

            self._authority = Authority(name=self.name, leaves=self._leaves, founding=self._founding)
        return self._authority
