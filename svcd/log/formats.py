"""Line formats: text, JSON, text or JSON behind a syslog priority, and entries of systemd's journal.

A format makes templates: %-formats with all that is the same for all lines of a kind filled in, so that a line costs
one formatting operation however many fields it has.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Protocol

from svcd.log.events import FORMATS, LOG, NUMBERS, PRIORITIES, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "JournaldFormat",
    "JsonFormat",
    "LineFormat",
    "SyslogPriorityFormat",
    "TerminalFormat",
    "TextFormat",
    "quote",
]

_PLAIN = re.compile(r"[\w.:/@%+,\-\[\]]+", re.ASCII).fullmatch


def quote(value: object) -> str:
    """Return a value as text: unchanged if it has only plain characters, otherwise as a JSON string in ASCII."""
    text = str(value)
    return text if _PLAIN(text) else json.dumps(text)


def _quoted(_name: str, value: object) -> str:
    return quote(value)


class LineFormat(Protocol):
    """Format of the lines of a log.

    Attributes:
        stamp: a %-format for the time at the start of a line; empty if lines have no time.
    """

    stamp: str

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of a line: constants are filled in, variables are left open."""

    def quoted(self, value: object) -> str:
        """Return a text value as a template takes it."""


class TextFormat:
    """Lines of text: `TIME EVENT key=value ...`.

    Args:
        stamped: whether lines begin with the time.
    """

    def __init__(self, *, stamped: bool = True) -> None:
        self.stamp = "%s " if stamped else ""

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of a line."""
        return " ".join(
            [event.name, *(f"{name}={text}" for name, text in _fields(event, constants, variables, _quoted))]
        )

    def quoted(self, value: object) -> str:
        """Return a text value as a template takes it."""
        return quote(value)


class TerminalFormat(TextFormat):
    """Text for people at a terminal: as TextFormat, but a message of several lines, such as a traceback, is lines.

    The further lines are indented and their control characters escaped, so that a message can't imitate other lines.
    """

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of an entry."""
        first, *others = str(constants.get("message", "")).splitlines() or [""]
        if event is not LOG or not others:
            return super().template(event, constants, variables)
        entry = super().template(event, {**constants, "message": first}, variables)
        return "\n".join([entry, *("    " + _printable(line).replace("%", "%%") for line in others)])


def _printable(line: str) -> str:
    """Return a line with escapes for characters that may act on a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line)


class JsonFormat:
    """Lines with a JSON object, whose first members are the time, the event and its level.

    Args:
        stamped: whether lines have the time.
    """

    def __init__(self, *, stamped: bool = True) -> None:
        self.stamp = '{"time":"%s",' if stamped else ""
        self._opening = "" if stamped else "{"

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of a line."""

        def written(name: str, value: object) -> str:
            return json.dumps(value) if name in NUMBERS else self.quoted(value)

        parts = (f'"{name}":{text}' for name, text in _fields(event, constants, variables, written))
        # A `log` line has the level of its message, as a field.
        level = [] if event is LOG else [f'"level":"{event.level}"']
        return self._opening + ",".join([f'"event":"{event.name}"', *level, *parts]) + "}"

    def quoted(self, value: object) -> str:
        """Return a text value as a template takes it."""
        return json.dumps(str(value))


class SyslogPriorityFormat:
    """Lines of another format after their severity, such as `<6>`: for syslog, and for loggers with levels.

    Args:
        line_format: the other format, without time, since syslog and loggers add their own.
    """

    stamp = ""

    def __init__(self, line_format: LineFormat) -> None:
        self._format = line_format

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of a line."""
        return f"<{_priority(event, constants)}>{self._format.template(event, constants, variables)}"

    def quoted(self, value: object) -> str:
        """Return a text value as a template takes it."""
        return self._format.quoted(value)


class JournaldFormat(TextFormat):
    """Entries of systemd's journal: fields `NAME=value` with line ends between them, for svcd.log.sinks.JournaldSink.

    MESSAGE is the line of text. Every value also has its own field, SVCD_ and its key. The message of a `log` line,
    which may be a traceback of many lines, is MESSAGE unchanged; journalctl can show several lines. SVCD_TIME is the
    time of the event: journald records the time when the entry arrives, and lines are buffered before.
    """

    #: SYSLOG_FACILITY 3 is daemon, as systemd sets it for lines of the standard output.
    _SAME = "SYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=svcd"

    def __init__(self) -> None:
        self.stamp = "SVCD_TIME=%s\n"

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of an entry."""
        variables = set(variables)
        lines = [f"PRIORITY={_priority(event, constants)}", self._SAME, f"SVCD_EVENT={event.name}"]
        fields = dict(_fields(event, constants, variables, _quoted))
        message = fields.pop("message", "") if event is LOG else ""
        lines += [f"SVCD_{name.upper()}={text}" for name, text in fields.items()]
        return "\n".join([*lines, f"MESSAGE={message or super().template(event, constants, variables)}"])


def _fields(
    event: Event, constants: Mapping[str, object], variables: Iterable[str], written: Callable[[str, object], str]
) -> Iterator[tuple[str, str]]:
    """Yield the names and %-formats of the fields of a line, in the event's order."""
    open_names = set(variables)
    for name in event.fields:
        if name in constants:
            yield name, written(name, constants[name]).replace("%", "%%")
        elif name in open_names:
            yield name, FORMATS.get(name, "%s").replace("%", f"%({name})", 1)


def _priority(event: Event, constants: Mapping[str, object]) -> int:
    """Return the syslog severity (RFC 5424, 6.2.1); a `log` line has the level of its message."""
    return PRIORITIES[str(constants.get("level", event.level)) if event is LOG else event.level]
