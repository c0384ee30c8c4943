"""Events as lines: one event is one line whatever is in it, and no stream can hold up the program that logs to it."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.events import (
    DnsAnswered,
    FlowClosed,
    FlowOpened,
    JsonLines,
    PolicyChanged,
    Problem,
    RequestDone,
    as_dict,
    as_json,
    from_dict,
    telling,
)

HANG = 20.0


def problem(detail="", **fields) -> Problem:
    return Problem(sandbox="s", flow=1, reason="r", detail=detail, **fields)


ALL = [
    (
        FlowOpened(sandbox="s", flow=1, target="a:443", server_name="a", decision="relay", reason="r", rule=None, address=None),
        "flow-opened",
    ),
    (
        FlowClosed(
            sandbox="s",
            flow=1,
            front="connect",
            target="a:443",
            wire="tls",
            server_name="a",
            decision="relay",
            reason="r",
            rule=None,
            address=None,
            bytes_up=1,
            bytes_down=2,
            requests=0,
            duration=0.5,
            ended="eof",
        ),
        "flow-closed",
    ),
    (
        RequestDone(
            sandbox="s",
            flow=1,
            method="GET",
            host="a",
            path="/",
            rule=0,
            reason=None,
            status=200,
            bytes_up=0,
            bytes_down=1,
            duration=0.1,
        ),
        "request",
    ),
    (PolicyChanged(sandbox="s", mode="allow-all", cut=(1, 2), kept=3), "policy-changed"),
    (problem(), "problem"),
    (
        DnsAnswered(
            sandbox="s", name="a.example", type="A", rcode="NOERROR", answers=1, decision="allow", reason="r", rule="*.example"
        ),
        "dns",
    ),
]


def lines(*events) -> list[str]:
    stream = io.StringIO(newline="")
    log = JsonLines(stream)
    for event in events:
        log(event)
    assert log.close(HANG)
    assert (log.lost, log.error) == (0, None)
    return stream.getvalue().split("\n")


@pytest.mark.parametrize(("event", "kind"), ALL)
def test_every_event_is_one_line_with_its_kind_and_all_its_fields(event, kind):
    line, end = lines(event)
    assert end == ""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    assert json.loads(line) == json.loads(json.dumps({"event": kind, **fields}))
    assert as_dict(event)["event"] == kind


def test_events_are_stamped_and_frozen():
    before = time.time()
    event = problem()
    assert before <= event.time <= time.time()
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.detail = "x"


HOSTILE = '\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x1b[31m\x00\x7f\ud800"}\\'


@pytest.mark.parametrize(("event", "kind"), ALL)
def test_x14_control_and_escape_bytes_in_any_text_stay_in_one_printable_line(event, kind):
    """A name with a line break must not forge a second event, nor one with an escape sequence paint the reader's terminal."""
    texts = {field.name: HOSTILE for field in dataclasses.fields(event) if isinstance(getattr(event, field.name), str)}
    assert texts
    line, end = lines(dataclasses.replace(event, **texts))
    assert end == ""
    assert line.splitlines() == [line]
    assert all(" " <= character < "\x7f" for character in line)
    assert json.loads(line)["sandbox"] == HOSTILE


@given(st.text(st.characters(), max_size=50))
def test_x14_any_text_stays_in_one_line_and_comes_back(text):
    line = json.dumps(as_dict(problem(text)))
    assert line.isprintable()
    assert line.isascii()
    (written, _) = lines(problem(text))
    assert json.loads(written)["detail"] == text


def test_events_keep_their_order():
    written = lines(*(problem(str(number)) for number in range(1000)))
    assert [json.loads(line)["detail"] for line in written if line] == [str(number) for number in range(1000)]


def test_no_thread_is_started_before_the_first_event():
    before = set(threading.enumerate())
    log = JsonLines(io.StringIO())
    assert set(threading.enumerate()) <= before  # those of other tests may end
    assert log.close()


def test_x14_a_full_pipe_holds_nobody_and_what_finds_the_queue_full_is_counted():
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    log = JsonLines(stream, queue=10)
    started = time.monotonic()
    for _ in range(100):
        log(problem("x" * 10_000))  # a pipe holds 64 KiB
    assert log.lost > 50
    assert log.close(0.05) is False
    assert time.monotonic() - started < HANG
    dropped = log.lost
    received = b""
    while received.count(b"\n") + dropped < 100:
        received += os.read(reader, 65536)
    assert received.count(b"\n") + dropped == 100
    log._thread.join(HANG)
    assert not log._thread.is_alive()
    stream.close()
    os.close(reader)
    for line in received.splitlines():
        json.loads(line)


class Failing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.broken = error

    def write(self, text):
        if self.broken:
            raise self.broken
        return super().write(text)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("I/O operation on closed file")])
def test_a_failing_write_is_kept_and_counted_and_writing_goes_on_when_it_can(error):
    stream = Failing(error)
    log = JsonLines(stream)
    log(problem("first"))
    deadline = time.monotonic() + HANG
    while log.lost == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    stream.broken = None
    log(problem("second"))
    assert log.close(HANG)
    assert (log.lost, log.error) == (1, error)
    assert json.loads(stream.getvalue())["detail"] == "second"


def test_what_comes_after_close_is_lost_and_counted():
    stream = io.StringIO()
    log = JsonLines(stream)
    log(problem("first"))
    assert log.close(HANG)
    log(problem("second"))
    assert log.lost == 1
    assert stream.getvalue().count("\n") == 1
    assert log.close(HANG)


def test_the_end_of_the_process_writes_what_waits():
    code = (
        "import sys; from sbxproxy.events import *; log = JsonLines(sys.stdout)\n"
        "for n in range(500): log(Problem(sandbox='s', flow=None, reason='r', detail=str(n)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == 500


def test_l9_an_observer_that_raises_keeps_nothing_from_the_others():
    told = []

    def fail(_event):
        raise RuntimeError

    def stop(_event):
        raise KeyboardInterrupt

    tell = telling([told.append, fail, told.append])
    tell(problem("one"))
    assert [event.detail for event in told] == ["one", "one"]
    with pytest.raises(KeyboardInterrupt):  # which is meant for the program
        telling([stop])(problem("two"))


def test_kinds_tell_types_and_never_texts():
    """Of nested groups too, each once."""
    from sbxproxy.events import kinds

    group = BaseExceptionGroup(
        "canary", [ValueError("canary"), ExceptionGroup("canary", [OSError("canary"), ValueError("canary")])]
    )
    assert kinds(group) == "OSError, ValueError"
    assert kinds(KeyError("canary")) == "KeyError"


@pytest.mark.parametrize("event", [event for event, _ in ALL])
def test_an_event_is_the_same_after_json(event):
    """Worker processes tell theirs to the one that has the observers."""
    assert from_dict(json.loads(json.dumps(as_dict(event)))) == event


@pytest.mark.parametrize("change", [{"event": "else"}, {"event": None}, {"more": 1}])
def test_what_is_no_event_is_not_made_one(change):
    with pytest.raises(ValueError, match="not an event"):
        from_dict({**as_dict(problem()), **change})


class Text(str):
    """A text that is more than one."""

    __slots__ = ()


TEXT = st.one_of(
    st.text(st.characters(), max_size=30), st.sampled_from([HOSTILE, "%s", "%(time)s %", '","', "\\", "\ud800\udc00", "\ud800"])
)
NUMBER = st.one_of(st.integers(-(2**70), 2**70), st.booleans())
FLOAT = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 1e-9, 1e300, 5e-324, 1, True]))


@st.composite
def any_event(draw):
    """An event with anything in its fields that their types allow, and a little more."""
    event, _ = draw(st.sampled_from(ALL))
    values = {}
    for one in dataclasses.fields(event):
        match str(one.type).replace(" | None", ""):
            case "str":
                value = draw(st.one_of(TEXT, TEXT.map(Text)))
            case "float":
                value = draw(FLOAT)
            case "int":
                value = draw(NUMBER)
            case _:
                value = tuple(draw(st.lists(st.integers(0, 2**64), max_size=3)))
        values[one.name] = None if "None" in str(one.type) and draw(st.booleans()) else value
    return type(event)(**values)


@settings(max_examples=400, deadline=None)
@given(any_event())
def test_x14_a_line_is_what_json_makes_of_the_event(event):
    """The template that is filled in here has to escape as the standard library's encoder does."""
    line = as_json(event)
    assert line == json.dumps(as_dict(event), separators=(",", ":"))
    assert json.loads(line) == json.loads(json.dumps(as_dict(event)))
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_none_is_written_as_json_dumps_does(value):
    event = problem(time=value)
    assert as_json(event) == json.dumps(as_dict(event), separators=(",", ":"))


def test_what_is_kept_of_texts_is_told_apart_by_type():
    """Equal values of two types are written in two ways."""
    for value, text in ((1, "1"), (True, "true"), (1.0, "1.0")):
        assert f'"time":{text}' in as_json(problem(time=value))
