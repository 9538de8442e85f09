"""LogWriter: lines, quoting, buffer, and failing sinks."""

from __future__ import annotations

import json
import queue
import shlex
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from svcd.log import writer as writer_module
from svcd.log.events import ACCEPT, CLOSE, END, LISTEN, PAUSE, READY, log_event
from svcd.log.formats import JsonFormat, LineFormat, TextFormat, quote
from svcd.log.writer import FLUSH_LINES, FLUSH_SECONDS, MAX_LINES, LogObserver, LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: 2026-01-21 14:05:09.5 in Berlin
NOW = 1_769_000_709.5


class _Sink:
    """Log sink that records lines, or fails.

    Attributes:
        lines: the lines written.
        calls: how often the sink was called.
        failing: whether it accepts no lines.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.calls = 0
        self.failing = False

    def __call__(self, lines: Sequence[str]) -> int:
        self.calls += 1
        if self.failing:
            return 0
        self.lines += lines
        return len(lines)


@pytest.fixture
def sink() -> _Sink:
    """Return a sink."""
    return _Sink()


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set Berlin's time zone; yield the patch."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield patch
    time.tzset()


def _format(as_json: bool, *, stamped: bool = True) -> LineFormat:
    return (JsonFormat if as_json else TextFormat)(stamped=stamped)


def _end(log_writer: LogWriter, peer: str = "192.0.2.1:5") -> str:
    template = log_writer.template(
        END, {"service": "echo/tcp"}, ("peer", "id", "in", "out", "seconds", "reason", "count")
    )
    return template % {
        "peer": log_writer.quoted(peer),
        "id": 7,
        "in": 1,
        "out": 2,
        "seconds": 0.12345,
        "reason": log_writer.quoted("done"),
        "count": 0,
    }


@pytest.mark.usefixtures("zone")
def test_a_line_of_text(sink: _Sink) -> None:
    """A line has the time with offset and milliseconds, the event, and fields in the event's order."""
    log_writer = LogWriter(sink, clock=lambda: NOW)
    log_writer.write(_end(log_writer))
    assert sink.lines == [
        (
            "2026-01-21T14:05:09.500+01:00 "
            "end service=echo/tcp peer=192.0.2.1:5 id=7 in=1 out=2 seconds=0.123 reason=done count=0"
        )
    ]


@pytest.mark.usefixtures("zone")
def test_a_line_of_json(sink: _Sink) -> None:
    """A line of JSON is one object with the same fields, numbers as numbers."""
    log_writer = LogWriter(sink, JsonFormat(), clock=lambda: NOW)
    log_writer.write(_end(log_writer))
    (line,) = sink.lines
    assert json.loads(line) == {
        "time": "2026-01-21T14:05:09.500+01:00",
        "event": "end",
        "level": "info",
        "service": "echo/tcp",
        "peer": "192.0.2.1:5",
        "id": 7,
        "in": 1,
        "out": 2,
        "seconds": 0.123,
        "reason": "done",
        "count": 0,
    }
    assert list(json.loads(line))[:4] == ["time", "event", "level", "service"]


def test_lines_for_syslog_have_no_time(sink: _Sink) -> None:
    """Lines for syslog have no time."""
    for as_json in (False, True):
        log_writer = LogWriter(sink, _format(as_json, stamped=False))
        log_writer.write(_end(log_writer))
    assert sink.lines[0].startswith("end service=")
    assert json.loads(sink.lines[1])["event"] == "end"


def test_the_time_follows_the_clock_and_the_zone(sink: _Sink, zone: pytest.MonkeyPatch) -> None:
    """Each line has the time of its write; the offset follows the time zone and summer time."""
    moment = [NOW]
    log_writer = LogWriter(sink, clock=lambda: moment[0])
    for after in (0.0, 0.0009, 0.4999, 0.5, 15_552_000.0):
        moment[0] = NOW + after
        log_writer.write("x")
    zone.setenv("TZ", "NST3:30")
    time.tzset()
    moment[0] = NOW + 1
    log_writer.write("x")
    assert [line.removesuffix(" x") for line in sink.lines] == [
        "2026-01-21T14:05:09.500+01:00",
        "2026-01-21T14:05:09.500+01:00",
        "2026-01-21T14:05:09.999+01:00",
        "2026-01-21T14:05:10.000+01:00",
        "2026-07-20T15:05:09.500+02:00",
        "2026-01-21T09:35:10.500-03:30",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain_1.:/@%+,-[]", "plain_1.:/@%+,-[]"),
        (7, "7"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nb\r\0\x1b", '"a\\nb\\r\\u0000\\u001b"'),
        ("é\u2028", '"\\u00e9\\u2028"'),
    ],
)
def test_quoting(value: object, text: str) -> None:
    """A value with any other than plain characters is quoted as a JSON string in ASCII."""
    assert quote(value) == text


@given(st.text())
def test_a_value_cannot_forge_a_line(value: str) -> None:
    """Any value leaves its line one line with the same fields, and can be read back."""
    texts, objects = _Sink(), _Sink()
    for as_json, each in ((False, texts), (True, objects)):
        log_writer = LogWriter(each, _format(as_json), clock=lambda: NOW)
        log_writer.write(_end(log_writer, value))
    (line,) = texts.lines
    assert line.isascii()
    assert line.isprintable()
    assert [word.split("=")[0] for word in shlex.split(line)][1:] == [
        "end", "service", "peer", "id", "in", "out", "seconds", "reason", "count",
    ]  # fmt: skip
    word = line.partition("peer=")[2].rpartition(" id=7 ")[0]
    assert (json.loads(word) if word.startswith('"') else word) == value
    (line,) = objects.lines
    assert line.isprintable()
    assert json.loads(line)["peer"] == value


@given(st.text())
def test_a_constant_cannot_break_a_template(value: str) -> None:
    """A constant such as a service's name may contain percent signs and quotes."""
    for as_json in (False, True):
        sink = _Sink()
        log_writer = LogWriter(sink, _format(as_json), clock=lambda: NOW)
        log_writer.write(log_writer.template(ACCEPT, {"service": value}, ("id",)) % {"id": 3})
        if as_json:
            assert json.loads(sink.lines[0])["service"] == value
        assert "id" in sink.lines[0]


def test_fields_that_were_not_chosen_are_left_out(sink: _Sink) -> None:
    """A template has the given constants and variables only, in the order of the event."""
    log_writer = LogWriter(sink)
    assert (
        log_writer.template(ACCEPT, {"pid": 5, "service": "a"}, ("count",)) == "accept service=a count=%(count)d pid=5"
    )


def test_before_the_reactor_runs_lines_are_written_at_once(sink: _Sink) -> None:
    """Before start_buffering() lines are written at once."""
    log_writer = LogWriter(sink)
    log_writer.write("a")
    log_writer.write("b")
    assert len(sink.lines) == 2


def test_lines_are_buffered_for_a_bounded_time(sink: _Sink) -> None:
    """Lines are buffered for FLUSH_SECONDS and written in one call."""
    clock = Clock()
    log_writer = LogWriter(sink)
    log_writer.start_buffering(clock.callLater)
    for line in "abc":
        log_writer.write(line)
    clock.advance(FLUSH_SECONDS - 0.001)
    assert not sink.lines
    clock.advance(0.001)
    assert (len(sink.lines), sink.calls) == (3, 1)
    log_writer.write("d")
    assert len(sink.lines) == 3
    clock.advance(FLUSH_SECONDS)
    assert (len(sink.lines), sink.calls) == (4, 2)
    assert not clock.getDelayedCalls()


def test_a_full_buffer_is_written_at_once(sink: _Sink) -> None:
    """A buffer of FLUSH_LINES lines is written at once."""
    clock = Clock()
    log_writer = LogWriter(sink)
    log_writer.start_buffering(clock.callLater)
    for _ in range(FLUSH_LINES - 1):
        log_writer.write("x")
    assert not sink.lines
    log_writer.write("x")
    assert len(sink.lines) == FLUSH_LINES


def test_a_flush_without_lines(sink: _Sink) -> None:
    """A flush without lines does not call the sink."""
    LogWriter(sink).flush()
    assert sink.calls == 0


def test_a_failing_sink(sink: _Sink) -> None:
    """Lines are kept in order while the sink fails, and written without a `lost` line."""
    clock = Clock()
    log_writer = LogWriter(sink, TextFormat(stamped=False))
    log_writer.start_buffering(clock.callLater)
    sink.failing = True
    log_writer.write("a")
    clock.advance(FLUSH_SECONDS)
    log_writer.write("b")
    clock.advance(FLUSH_SECONDS)
    sink.failing = False
    log_writer.write("c")
    clock.advance(FLUSH_SECONDS)
    assert sink.lines == ["a", "b", "c"]


def test_dropped_lines_are_counted(sink: _Sink) -> None:
    """Above MAX_LINES the oldest lines are kept, and a `lost` line counts the dropped ones."""
    clock = Clock()
    log_writer = LogWriter(sink, TextFormat(stamped=False))
    log_writer.start_buffering(clock.callLater)
    sink.failing = True
    for number in range(MAX_LINES + 25):
        log_writer.write(str(number))
    clock.advance(FLUSH_SECONDS)
    sink.failing = False
    log_writer.write("after")
    clock.advance(FLUSH_SECONDS)
    lost = sink.lines[MAX_LINES]
    assert lost.startswith("lost lines=")
    kept = [line for line in sink.lines if line != lost]
    dropped = int(lost.split("=")[1].split()[0])
    assert dropped + len(kept) == MAX_LINES + 26
    assert len(kept) >= MAX_LINES
    assert kept[0] == "0"
    sink.lines.clear()
    log_writer.write("x")
    log_writer.flush()
    assert sink.lines == ["x"]


def test_the_place_of_the_lost_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `lost` line is written where lines are missing, with that time, even to a sink that accepts few lines."""
    monkeypatch.setattr(writer_module, "MAX_LINES", 4)
    taken: list[str] = []
    room, moment, clock = [0], [NOW], Clock()

    def sink(lines: Sequence[str]) -> int:
        count = min(room[0], len(lines))
        taken.extend(lines[:count])
        return count

    log_writer = LogWriter(sink, clock=lambda: moment[0])
    log_writer.start_buffering(clock.callLater)
    for number in range(6):
        moment[0] += 1
        log_writer.write(str(number))
    clock.advance(FLUSH_SECONDS)
    for number in range(6, 9):
        moment[0] += 1
        log_writer.write(str(number))
    clock.advance(FLUSH_SECONDS)
    room[0] = 3
    moment[0] += 1
    log_writer.write("late")
    for _ in range(4):
        clock.advance(FLUSH_SECONDS)
    assert [line.split(" ", 1)[1].split(" reason")[0] for line in taken] == ["0", "1", "2", "3", "lost lines=5", "late"]
    assert taken == sorted(taken)


def test_an_event_of_another_thread(sink: _Sink) -> None:
    """An event from another thread is written in the reactor's thread."""
    calls: queue.Queue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.Queue()
    log_writer = LogWriter(sink, TextFormat(stamped=False))
    log_writer.start_buffering(Clock().callLater, lambda call, *arguments: calls.put((call, arguments)))
    thread = threading.Thread(target=log_writer.record, args=(READY, {"services": 1}))
    thread.start()
    thread.join()
    assert not sink.lines
    log_writer.record(READY, {"services": 2})
    call, arguments = calls.get_nowait()
    call(*arguments)
    assert sink.lines == ["ready services=2", "ready services=1"]


def _logger(sink: _Sink, *, as_json: bool = True) -> Logger:
    return Logger(observer=LogObserver(LogWriter(sink, _format(as_json), clock=lambda: NOW)))


def test_the_daemons_own_events_keep_their_fields(sink: _Sink) -> None:
    """An event of svcd that comes through twisted.logger keeps its fields."""
    log = _logger(sink)
    log_event(log, LISTEN, service="echo/tcp", address="0.0.0.0:7", runs="echo", other="not a field")
    log_event(log, READY, services=1, listeners=2, reactor="UV")
    log_event(log, PAUSE, reason="descriptors", connections=5, limit=5)
    log_event(log, CLOSE, service="echo/tcp", address="0.0.0.0:7", datagrams=3)
    found = [json.loads(line) for line in sink.lines]
    for each in found:
        del each["time"]
    assert found == [
        {"event": "listen", "level": "notice", "service": "echo/tcp", "address": "0.0.0.0:7", "runs": "echo"},
        {"event": "ready", "level": "notice", "services": 1, "listeners": 2, "reactor": "UV"},
        {"event": "pause", "level": "warn", "reason": "descriptors", "connections": 5, "limit": 5},
        {"event": "close", "level": "notice", "service": "echo/tcp", "address": "0.0.0.0:7", "datagrams": 3},
    ]


def test_an_event_has_a_text_for_other_observers() -> None:
    """For other observers, as with --logger, the text of an event is its line."""
    events: list[dict[str, Any]] = []
    log_event(Logger(observer=events.append), PAUSE, reason="descriptors", connections=5, limit=6)  # type: ignore[arg-type]
    (event,) = events
    assert event["log_level"] is LogLevel.warn
    assert event["log_format"].format(**event) == "pause reason=descriptors connections=5 limit=6"


def test_events_of_other_code(sink: _Sink) -> None:
    """An event of other code is one line with its level and message."""
    _logger(sink, as_json=False).warn("{a}\nand more", a="first")
    (line,) = sink.lines
    assert line.endswith(' log level=warn message="first\\nand more"')


def test_a_traceback_is_one_line(sink: _Sink) -> None:
    """A traceback is part of the message, so that each line has its time."""
    log = _logger(sink)
    try:
        raise ZeroDivisionError("told")
    except ZeroDivisionError:
        log.failure("it broke", Failure())
    (line,) = sink.lines
    message = json.loads(line)["message"]
    assert message.startswith("it broke\n")
    assert "Traceback" in message
    assert "ZeroDivisionError: told" in message
    assert json.loads(line)["level"] == "critical"


def test_an_event_is_written_at_once(sink: _Sink) -> None:
    """An event of the daemon is written at once, after the buffered lines."""
    clock = Clock()
    log_writer = LogWriter(sink, TextFormat(stamped=False))
    log_writer.start_buffering(clock.callLater)
    log_writer.write("accept")
    log_writer.record(READY, {"services": 1})
    assert sink.lines == ["accept", "ready services=1"]
