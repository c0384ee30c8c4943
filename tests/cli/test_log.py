"""What a person sees of events."""

import io
import re
from dataclasses import replace

import pytest

from sbxproxy.cli.log import BURST, Log
from sbxproxy.events import DnsAnswered, FlowClosed, PolicyChanged, Problem

DENIED = FlowClosed(
    sandbox="s",
    flow=1,
    front="connect",
    target="bad.example:443",
    wire="tls",
    server_name="bad.example",
    decision="deny",
    reason="domain-not-allowed",
    rule=None,
    detail="no pattern matches bad.example",
    remedy='"allow": ["bad.example"]',
    address=None,
    bytes_up=0,
    bytes_down=0,
    requests=0,
    duration=0.1,
    ended="denied",
)
RELAYED = replace(DENIED, decision="relay", reason="domain-allowed", detail="", remedy=None, rule="*.example", ended="eof")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def colourless(monkeypatch):
    """So that any escape that is left would be an event's."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


def shown(*events, verbosity=0):
    stream = Terminal()
    log = Log(verbosity=verbosity, stream=stream)
    for event in events:
        log(event)
    log.close()
    return stream.getvalue()


def test_a_denial_is_one_line_with_what_why_and_what_would_allow_it():
    text = shown(DENIED)
    for part in ("bad.example", "domain-not-allowed", "no pattern matches", '"allow": ["bad.example"]'):
        assert part in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(("verbosity", "lines"), [(-1, 0), (0, 1), (1, 2)])
def test_verbosity(verbosity, lines):
    assert shown(DENIED, RELAYED, verbosity=verbosity).count("\n") == lines


def test_a_challenge_for_the_password_is_no_news():
    """git asks without a password first; a line that says "denied" for each of its requests would mislead."""
    challenge = replace(DENIED, reason="proxy-auth", target="", server_name=None, remedy=None)
    assert shown(challenge) == ""
    assert "proxy-auth" in shown(challenge, verbosity=1)


def test_control_characters_never_reach_the_terminal():
    hostile = replace(DENIED, target="a\x1b[2Jb\r\n\u202ec", server_name=None, detail="x\x07y")
    text = shown(hostile, Problem(sandbox="s", flow=None, reason="r", detail="z\x1b]0;t\x07"))
    assert text.count("\n") == 2
    assert not any(character in text for character in "\x1b\x07\r\u202e")


def test_a_flood_is_counted(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    text = shown(*[DENIED] * (BURST + 312))
    assert text.count("denied bad.example") == BURST
    assert "and 312 more" in text


def test_what_an_update_cut_is_told():
    assert "1 flows cut" in shown(PolicyChanged(sandbox="s", mode="deny-all", cut=(7,), kept=0))


def test_without_a_terminal_events_are_json_lines():
    stream = io.StringIO()
    log = Log(verbosity=0, stream=stream)
    log(DENIED)
    log.close()
    assert stream.getvalue().startswith('{"event":"flow-closed"')


def test_a_dns_query_is_a_line_if_it_was_denied_or_failed():
    denied = DnsAnswered(
        sandbox="s",
        name="evil.example",
        type="A",
        rcode="NXDOMAIN",
        answers=0,
        decision="deny",
        reason="domain-not-allowed",
        rule=None,
    )
    assert shown(denied).split() == ["✗", "evil.example", "A", "NXDOMAIN", "domain-not-allowed"]
    allowed = replace(denied, rcode="NOERROR", decision="allow", reason="domain-allowed", rule="*.example")
    assert shown(allowed) == ""
    assert shown(allowed, verbosity=1).split() == ["✓", "evil.example", "A", "NOERROR", "*.example"]


def test_a_terminal_that_has_colours_gets_them_and_one_that_does_not_want_them_gets_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    plain = shown(DENIED)
    monkeypatch.delenv("NO_COLOR")
    coloured = shown(DENIED)
    assert coloured.startswith("\x1b[1;31m✗ denied \x1b[0mbad.example\x1b[31m  domain-not-allowed\x1b[0m")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    stream = io.StringIO()  # no terminal
    Log(verbosity=0, stream=stream).say("hello", "bold red")
    assert stream.getvalue() == "sbxproxy: hello\n"
