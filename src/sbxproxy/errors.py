"""Errors, named by who is to blame, carrying data instead of prose alone.

Nothing raised here ever holds a secret's value or bytes that came from the sandboxed program: messages end up in logs, in
tracebacks and in error pages.
"""

from __future__ import annotations

__all__ = [
    "ClientError",
    "ClientProtocolError",
    "ConfigurationError",
    "LimitError",
    "PolicyError",
    "PolicyProblem",
    "SbxproxyError",
    "SecretError",
    "StageError",
    "UpstreamConnectError",
    "UpstreamError",
    "UpstreamNoAddressError",
    "UpstreamProtocolError",
    "UpstreamResolveError",
    "UpstreamTlsError",
]

from dataclasses import dataclass


class SbxproxyError(Exception):
    """The base of everything that sbxproxy raises on purpose."""


class ConfigurationError(SbxproxyError, ValueError):
    """The operator's settings are wrong; the message names the setting, the fault and what would be right."""


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One fault of a policy document.

    Attributes:
        place: where it is, as the reader would write it: ``allow["*.x.com"][0].transform[0].headers["authorization"]``;
            empty for the document as a whole.
        problem: what is wrong, without any value that may be secret.
        expected: what would be right.
    """

    place: str
    problem: str
    expected: str = ""

    def __str__(self) -> str:
        """Read as one line: place, fault, remedy."""
        where = f"{self.place}: " if self.place else ""
        remedy = f" ({self.expected})" if self.expected else ""
        return f"{where}{self.problem}{remedy}"


class PolicyError(SbxproxyError, ValueError):
    """A policy document is invalid; it names every fault and was not put in force."""

    def __init__(self, *problems: PolicyProblem) -> None:
        """Take the faults in document order; there is at least one."""
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        """List the faults, a line each."""
        return "\n".join(str(problem) for problem in self.problems)


class SecretError(SbxproxyError):
    """A secret can't be had, or can't stand in a header; the message names the secret and never its value."""


class StageError(SbxproxyError):
    """A pipeline part (a plugin of ours or of others) failed; the flow or request it failed on was denied."""


class LimitError(SbxproxyError):
    """A bound of ``Limits`` was reached; ``limit`` is the field's name."""

    def __init__(self, limit: str) -> None:
        """Name the field of ``Limits`` that was reached."""
        super().__init__(f"limit reached: {limit}")
        self.limit = limit


class ClientError(SbxproxyError):
    """The program in the sandbox did something wrong."""


class ClientProtocolError(ClientError):
    """The client broke a protocol; ``reason`` is a stable id and ``status`` the HTTP status that tells it so."""

    def __init__(self, reason: str, message: str, *, status: int = 400) -> None:
        """Take a reason id, a fixed text (never the client's bytes) and an HTTP status."""
        super().__init__(message)
        self.reason = reason
        self.status = status


class UpstreamError(SbxproxyError):
    """The other end failed; ``reason`` is a stable id, safe to show to the client; ``status`` is 502 or 504."""

    reason = "upstream-failed"
    status = 502

    def __init__(self, message: str, *, reason: str | None = None, status: int | None = None) -> None:
        """Take a fixed text; ``reason`` and ``status`` refine the class's own."""
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        if status is not None:
            self.status = status


class UpstreamResolveError(UpstreamError):
    """The name has no address, or the resolver did not answer in time."""

    reason = "name-not-resolved"


class UpstreamNoAddressError(UpstreamResolveError):
    """The name is there, and has no usable address: to a client of DNS that is another answer than "no such name"."""


class UpstreamConnectError(UpstreamError):
    """No permitted address accepted a connection; ``reason`` tells refused, unreachable and timed out apart."""

    reason = "connect-failed"


class UpstreamTlsError(UpstreamError):
    """The upstream's TLS handshake or certificate is not acceptable; no application byte was sent to it."""

    reason = "upstream-tls"


class UpstreamProtocolError(UpstreamError):
    """The upstream broke HTTP framing, or another protocol; nothing of its ambiguous message was passed on."""

    reason = "upstream-protocol"
