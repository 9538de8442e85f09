"""Line formats other than text: behind a syslog priority, and as entries of systemd's journal."""

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
    READY,
    REFUSE,
    Event,
    log_event,
)
from svcd.log.formats import JournaldFormat, JsonFormat, SyslogPriorityFormat, TextFormat, quote
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
    """The fields of an entry, as the journal would have them."""
    lines: list[str] = []
    journal = LogWriter(list_sink(lines), JournaldFormat(), clock=lambda: NOW)
    filled = {name: journal.quoted(value) if isinstance(value, str) else value for name, value in variables.items()}
    journal.write(journal.template(event, constants, variables) % (filled or ()))
    (line,) = lines
    return {name: value.decode() for name, value in parse_entry(datagram(line)).items()}


@pytest.mark.parametrize(
    ("event", "priority"),
    [(ACCEPT, 6), (END, 6), (HANDLER_OUTPUT, 6), (REFUSE, 4), (FAIL, 4), (LISTEN, 5), (READY, 5), (LAUNCHER, 5),
     (LAUNCHER_LOST, 4), (DESCRIPTORS, 4), (LOST, 3)],
)  # fmt: skip
def test_an_event_has_its_priority(event: Event, priority: int) -> None:
    """Connections are info, refusals and losses warn, actions of the daemon notice."""
    for form in (TextFormat(stamped=False), JsonFormat(stamped=False)):
        assert SyslogPriorityFormat(form).template(event, {}, ()) == f"<{priority}>{form.template(event, {}, ())}"
    assert _entry(event, {})["PRIORITY"] == str(priority)


@pytest.mark.parametrize(("level", "priority"), [("debug", 7), ("info", 6), ("warn", 4), ("error", 3), ("critical", 2)])
def test_a_log_line_has_its_writers_priority(level: str, priority: int) -> None:
    """What others log has the level that they gave it."""
    line = SyslogPriorityFormat(TextFormat(stamped=False)).template(LOG, {"level": level, "message": "x"}, ())
    assert line == f"<{priority}>log level={level} message=x"


def test_every_event_can_be_told_and_written() -> None:
    """Whatever level an event has, twisted.logger and syslog have one for it."""
    lines: list[str] = []
    log = Logger(observer=LogObserver(LogWriter(list_sink(lines), SyslogPriorityFormat(JsonFormat(stamped=False)))))
    for each in _EVENTS:
        log_event(log, each)
    assert [json.loads(line[3:])["event"] for line in lines] == [each.name for each in _EVENTS]
    assert [int(line[1]) for line in lines] == [PRIORITIES[each.level] for each in _EVENTS]


def test_json_has_a_level_and_one_type_for_each_field() -> None:
    """Each line of each event has its level; numbers are numbers, whole or not, and all else is a string."""
    values = dict.fromkeys((name for event in _EVENTS for name in event.fields), 'a "text"')
    whole: dict[str, object] = {**values, **dict.fromkeys(NUMBERS, 5)}
    for numbers in (whole, {**whole, **dict.fromkeys(NUMBERS, 0.25)}):
        for event in _EVENTS:
            known = {name: numbers[name] for name in event.fields if event is not LOG or name != "level"}
            found = json.loads(JsonFormat(stamped=False).template(event, {**known, "level": "warn"}, ()) % ())
            assert found.pop("event") == event.name
            assert found.pop("level") == ("warn" if event is LOG else event.level)
            assert found == known


def test_a_priority_stands_before_everything() -> None:
    """Before the brace of a JSON object, and there is no time."""
    lines: list[str] = []
    LogWriter(list_sink(lines), SyslogPriorityFormat(JsonFormat(stamped=False))).record(READY, {"services": 1})
    assert lines == ['<5>{"event":"ready","level":"notice","services":1}']


def test_a_connections_line_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the line of text without its time, and every value has a field of its own."""
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


def test_a_message_of_many_lines_stays_one() -> None:
    """A traceback is the entry's message as it was, with the level beside it."""
    text = 'it broke\nTraceback:\n  x="1"\n'
    entry = _entry(LOG, {"level": "error", "message": text})
    assert (entry["MESSAGE"], entry["SVCD_LEVEL"], entry["PRIORITY"]) == (text, "error", "3")
    assert "SVCD_MESSAGE" not in entry


@given(st.text(), st.text())
def test_any_value_arrives_as_it_is(constant: str, variable: str) -> None:
    """Line ends, quotes, percent signs and zeros too; and no value makes a field of its own."""
    entry = _entry(FAIL, {"service": constant}, reason=variable)
    assert entry["SVCD_SERVICE"] == constant
    assert entry["SVCD_REASON"] == variable
    assert entry["MESSAGE"] == f"fail service={quote(constant)} reason={quote(variable)}"
    assert set(entry) == {"MESSAGE", "PRIORITY", "SYSLOG_FACILITY", "SYSLOG_IDENTIFIER", "SVCD_EVENT", "SVCD_TIME",
                          "SVCD_SERVICE", "SVCD_REASON"}  # fmt: skip


def test_half_a_character_does_not_stop_the_log() -> None:
    """What has no bytes in UTF-8 is shown as what it is."""
    assert _entry(FAIL, {}, reason="a\ud800b\n")["SVCD_REASON"] == "a\\ud800b\n"


def test_a_value_can_be_cut() -> None:
    """Where an entry must be small, its values are, and its fields stay."""
    entry = 'PRIORITY=6\nA="1\\n2345"\nMESSAGE=said text="1\\n2345"'
    assert parse_entry(datagram(entry, 4)) == {"PRIORITY": b"6", "A": b"1\n23", "MESSAGE": b"said"}
