"""Line formats other than text: with a syslog priority, and as entries of systemd's journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger

from svcd.log import events
from svcd.log.events import (
    ACCEPT,
    DESCRIPTORS,
    END,
    FAIL,
    HANDLER_OUTPUT,
    LAUNCHER,
    LAUNCHER_LOST,
    LISTEN,
    LOG,
    LOST,
    NUMBERS,
    PRIORITIES,
    PROBLEM,
    READY,
    REFUSE,
    Event,
    log_event,
)
from svcd.log.formats import JournaldFormat, JsonFormat, SyslogPriorityFormat, TerminalFormat, TextFormat, quote
from svcd.log.sinks import datagram
from svcd.log.writer import LogObserver, LogWriter
from tests.doubles import list_sink
from tests.journald import parse_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVENTS = [each for each in vars(events).values() if isinstance(each, Event)]
#: 2026-01-21T13:05:09.500 UTC.
NOW = 1_769_000_709.5


def _entry(event: Event, constants: Mapping[str, object], **variables: object) -> dict[str, str]:
    """Return the fields of an event's journal entry, as journald receives them."""
    lines: list[str] = []
    log_writer = LogWriter(list_sink(lines), JournaldFormat(), clock=lambda: NOW)
    filled = {name: log_writer.quoted(value) if isinstance(value, str) else value for name, value in variables.items()}
    log_writer.write(log_writer.template(event, constants, variables) % (filled or ()))
    (line,) = lines
    return {name: value.decode() for name, value in parse_entry(datagram(line)).items()}


@pytest.mark.parametrize(
    ("event", "priority"),
    [(ACCEPT, 6), (END, 6), (HANDLER_OUTPUT, 6), (REFUSE, 4), (FAIL, 4), (LISTEN, 5), (READY, 5), (LAUNCHER, 5),
     (LAUNCHER_LOST, 4), (DESCRIPTORS, 4), (LOST, 3)],
)  # fmt: skip
def test_an_event_has_its_priority(event: Event, priority: int) -> None:
    """Connections have priority info, refusals and losses warning, actions of the daemon notice."""
    for form in (TextFormat(stamped=False), JsonFormat(stamped=False)):
        assert SyslogPriorityFormat(form).template(event, {}, ()) == f"<{priority}>{form.template(event, {}, ())}"
    assert _entry(event, {})["PRIORITY"] == str(priority)


@pytest.mark.parametrize(("level", "priority"), [("debug", 7), ("info", 6), ("warn", 4), ("error", 3), ("critical", 2)])
def test_a_log_line_has_the_priority_of_its_level(level: str, priority: int) -> None:
    """A line from other code has the priority of its log level."""
    line = SyslogPriorityFormat(TextFormat(stamped=False)).template(LOG, {"level": level, "message": "x"}, ())
    assert line == f"<{priority}>log level={level} message=x"


def test_every_event_can_be_written() -> None:
    """Every level of an event has a level of twisted.logger and a syslog priority."""
    lines: list[str] = []
    log = Logger(observer=LogObserver(LogWriter(list_sink(lines), SyslogPriorityFormat(JsonFormat(stamped=False)))))
    for each in _EVENTS:
        log_event(log, each)
    assert [json.loads(line[3:])["event"] for line in lines] == [each.name for each in _EVENTS]
    assert [int(line[1]) for line in lines] == [PRIORITIES[each.level] for each in _EVENTS]


def test_json_has_a_level_and_one_type_for_each_field() -> None:
    """A line of JSON has a level; the fields in NUMBERS are numbers, all others strings."""
    values = dict.fromkeys((name for event in _EVENTS for name in event.fields), 'a "text"')
    whole: dict[str, object] = {**values, **dict.fromkeys(NUMBERS, 5)}
    for numbers in (whole, {**whole, **dict.fromkeys(NUMBERS, 0.25)}):
        for event in _EVENTS:
            known = {name: numbers[name] for name in event.fields if event is not LOG or name != "level"}
            found = json.loads(JsonFormat(stamped=False).template(event, {**known, "level": "warn"}, ()) % ())
            assert found.pop("event") == event.name
            assert found.pop("level") == ("warn" if event is LOG else event.level)
            assert found == known


def test_the_priority_comes_first() -> None:
    """The priority precedes the brace of a JSON object, and there is no time."""
    lines: list[str] = []
    LogWriter(list_sink(lines), SyslogPriorityFormat(JsonFormat(stamped=False))).record(READY, {"services": 1})
    assert lines == ['<5>{"event":"ready","level":"notice","services":1}']


def test_the_entry_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """MESSAGE is the line of text without its time, and each value has a field of its own."""
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)
    entry = _entry(END, {"service": "echo/tcp"}, peer="[2001:db8::1]:5", id=7, seconds=0.12345, reason="done")
    assert entry.pop("SVCD_TIME").startswith("2026-01-21T13:05:09.500")
    assert entry == {
        "MESSAGE": "end service=echo/tcp peer=[2001:db8::1]:5 id=7 seconds=0.123 reason=done",
        "PRIORITY": "6",
        "SYSLOG_FACILITY": "3",
        "SYSLOG_IDENTIFIER": "svcd",
        "SVCD_EVENT": "end",
        "SVCD_SERVICE": "echo/tcp",
        "SVCD_PEER": "[2001:db8::1]:5",
        "SVCD_ID": "7",
        "SVCD_SECONDS": "0.123",
        "SVCD_REASON": "done",
    }


def test_a_message_of_several_lines() -> None:
    """A message of several lines, such as a traceback, is MESSAGE unchanged."""
    text = 'it broke\nTraceback:\n  x="1"\n'
    entry = _entry(LOG, {"level": "error", "message": text})
    assert (entry["MESSAGE"], entry["SVCD_LEVEL"], entry["PRIORITY"]) == (text, "error", "3")
    assert "SVCD_MESSAGE" not in entry


@given(st.text(), st.text())
def test_values_arrive_unchanged(constant: str, variable: str) -> None:
    """Values arrive unchanged, with line ends, quotes, percent signs and NULs, and add no field."""
    entry = _entry(FAIL, {"service": constant}, reason=variable)
    assert entry["SVCD_SERVICE"] == constant
    assert entry["SVCD_REASON"] == variable
    assert entry["MESSAGE"] == f"fail service={quote(constant)} reason={quote(variable)}"
    assert set(entry) == {"MESSAGE", "PRIORITY", "SYSLOG_FACILITY", "SYSLOG_IDENTIFIER", "SVCD_EVENT", "SVCD_TIME",
                          "SVCD_SERVICE", "SVCD_REASON"}  # fmt: skip


def test_a_lone_surrogate_is_escaped() -> None:
    """A lone surrogate, which UTF-8 can't encode, is escaped."""
    assert _entry(FAIL, {}, reason="a\ud800b\n")["SVCD_REASON"] == "a\\ud800b\n"


def test_a_value_can_be_cut() -> None:
    """datagram() with a limit cuts the values of an entry and keeps its fields."""
    entry = 'PRIORITY=6\nA="1\\n2345"\nMESSAGE=said text="1\\n2345"'
    assert parse_entry(datagram(entry, 4)) == {"PRIORITY": b"6", "A": b"1\n23", "MESSAGE": b"said"}


def test_a_traceback_is_lines_on_a_terminal_and_one_record_elsewhere() -> None:
    """Its lines are indented, without control characters, so that no part of it looks like another line."""
    values = {"level": "error", "message": 'it failed: 100%\n  File "x"\nbad \x1b[2J\t%s\r\x85end'}
    lines = TerminalFormat(stamped=False).template(LOG, values, ()) % ()
    assert lines.split("\n") == [
        'log level=error message="it failed: 100%"',
        '      File "x"',
        "    bad \\x1b[2J\t%s",
        "    ",
        "    end",
    ]
    for line_format in (TextFormat(stamped=False), JsonFormat(stamped=False)):
        assert "\n" not in line_format.template(LOG, values, ()) % ()
    one = {"level": "info", "message": "one line"}
    assert TerminalFormat().template(LOG, one, ()) == TextFormat().template(LOG, one, ())
    other = {"text": "two\nlines"}
    assert TerminalFormat().template(PROBLEM, other, ()) == TextFormat().template(PROBLEM, other, ())
