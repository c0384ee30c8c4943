"""What a person sees while a sandbox runs: a line a flow, with what would allow what was denied."""

from __future__ import annotations

__all__ = ["Log"]

import os
import sys
import time
from typing import IO, ClassVar, Self

from sbxproxy.events import DnsAnswered, Event, FlowClosed, FlowOpened, JsonLines, PolicyChanged, Problem, RequestDone
from sbxproxy.policy.decision import Reason

BURST = 20
"""Lines a second at most; a program that is denied ten thousand times a second gets a count instead."""


class Log:
    """An observer that writes lines to a terminal, or JSON lines where there is none.

    It never shows more than ``BURST`` lines a second: the rest is counted and told once there is room.
    """

    def __init__(self, *, verbosity: int, stream: IO[str] | None = None) -> None:
        """Write to *stream*, by default standard error; *verbosity* is -1 (nothing), 0 (denials, problems) or 1 (all)."""
        self._stream = stream or sys.stderr
        terminal = self._stream.isatty()
        self._coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        self._json = None if terminal else JsonLines(self._stream)
        self._verbosity = verbosity
        self._second = 0.0
        self._shown = 0
        self._held = 0

    def __call__(self, event: Event) -> None:
        """Show *event* if it is of interest."""
        if self._verbosity < 0 or not self._wanted(event):
            return
        now = time.monotonic()
        if now - self._second >= 1:
            if self._held:
                self.say(f"… and {self._held} more", "dim")
            self._second, self._shown, self._held = now, 0, 0
        if self._shown >= BURST:
            self._held += 1
            return
        self._shown += 1
        if self._json is not None:
            self._json(event)
        else:
            self._print(_line(event))

    def say(self, text: str, style: str = "") -> None:
        """Write a line of our own."""
        if self._verbosity >= 0:
            self._print(_Line().append(f"sbxproxy: {text}", style))

    def close(self) -> None:
        """Tell what was held back."""
        if self._held:
            self.say(f"… and {self._held} more", "dim")
            self._held = 0
        if self._json is not None:
            self._json.close()

    def _print(self, line: _Line) -> None:
        print(line.text(coloured=self._coloured), file=self._stream, flush=True)

    def _wanted(self, event: Event) -> bool:
        match event:
            case FlowClosed(reason=Reason.PROXY_AUTH):
                # git and others ask without a password first, and come again with it once they are challenged (RFC 9110 11.7.1).
                return self._verbosity > 0
            case FlowClosed():
                return self._verbosity > 0 or event.decision in {"deny", "error"}
            case RequestDone():
                return self._verbosity > 0 or (event.reason is not None and event.status in {0, 400, 403, 405, 421, 502, 504})
            case DnsAnswered():
                return self._verbosity > 0 or event.decision in {"deny", "error"}
            case FlowOpened():
                return False
            case PolicyChanged():
                return self._verbosity > 0 or bool(event.cut)
            case Problem():
                return True


class _Line:
    """Text in colours, without Rich, whose import the command would have to wait for."""

    _CODES: ClassVar = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

    def __init__(self) -> None:
        self._parts: list[tuple[str, str]] = []

    def append(self, text: str, style: str = "") -> Self:
        self._parts.append((text, ";".join(self._CODES[word] for word in style.split())))
        return self

    def text(self, *, coloured: bool) -> str:
        return "".join(f"\x1b[{codes}m{text}\x1b[0m" if codes and coloured else text for text, codes in self._parts)


def _clean(text: str) -> str:
    """Make control characters visible: a path must not paint the terminal."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def _line(event: Event) -> _Line:
    line = _Line()
    match event:
        case FlowClosed() if event.decision in {"deny", "error"}:
            word = "denied" if event.decision == "deny" else "failed"
            where = event.server_name or event.target or "a connection"
            line.append(f"✗ {word} ", "bold red").append(_clean(where)).append(f"  {event.reason}", "red")
            line.append(f"  {_clean(event.detail)}", "dim")
            if event.remedy:
                line.append(f"  to allow it: {_clean(event.remedy)}", "yellow")
        case FlowClosed():
            line.append("✓ ", "green").append(_clean(event.server_name or event.target))
            line.append(f"  {event.decision} by {event.rule or event.reason}", "cyan")
            line.append(f"  ↑{event.bytes_up} ↓{event.bytes_down} bytes  {event.duration:.2f} s  {event.ended}", "dim")
        case RequestDone():
            line.append("  → " if event.reason is None else "✗ ", "green" if event.reason is None else "bold red")
            line.append(f"{event.method} {event.host}{_clean(event.path)}  {event.status}")
            line.append(f"  {event.reason or ('' if event.rule is None else f'rule {event.rule}')}", "cyan")
        case PolicyChanged():
            line.append(f"sbxproxy: policy is now {event.mode}; {len(event.cut)} flows cut, {event.kept} kept", "yellow")
        case Problem():
            line.append(f"sbxproxy: {event.reason}: {_clean(event.detail)}", "bold yellow")
        case DnsAnswered():
            mark, colour = ("✓", "green") if event.decision == "allow" else ("✗", "bold red")
            line.append(f"{mark} ", colour).append(f"{event.name or 'a query'} {event.type}  {event.rcode}")
            line.append(f"  {event.rule or event.reason}", "cyan")
            if event.remedy:
                line.append(f"  to allow it: {_clean(event.remedy)}", "yellow")
        case FlowOpened():
            line.append(f"… {_clean(event.target)}")
    return line
