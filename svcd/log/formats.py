"""How a line of the log is written: as text, as JSON, behind its priority, or as an entry of systemd's journal.

A form makes templates: %-formats with what is the same for all lines of a kind filled in, so that a line costs one
formatting however many things it says.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Protocol

from svcd.log.events import FORMATS, LOG, NUMBERS, PRIORITIES, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["JournaldFormat", "JsonFormat", "LineFormat", "SyslogPriorityFormat", "TextFormat", "quote"]

_PLAIN = re.compile(r"[\w.:/@%+,\-\[\]]+", re.ASCII).fullmatch


def quote(value: object) -> str:
    """A value as text: as it is where it is plain, else as a JSON string in ASCII."""
    text = str(value)
    return text if _PLAIN(text) else json.dumps(text)


def _quoted(_name: str, value: object) -> str:
    return quote(value)


class LineFormat(Protocol):
    """How lines are written.

    Attributes:
        stamp: a %-format for what a line begins with, of its time; empty if it begins without.
    """

    stamp: str

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """A line's %-format: constants are filled in, variables are left open."""

    def quoted(self, value: object) -> str:
        """A value of text as a template takes it."""


class TextFormat:
    """`TIME EVENT key=value ...`.

    Args:
        stamped: whether the time is there.
    """

    def __init__(self, *, stamped: bool = True) -> None:
        self.stamp = "%s " if stamped else ""

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """A line's %-format."""
        return " ".join(
            [event.name, *(f"{name}={text}" for name, text in _fields(event, constants, variables, _quoted))]
        )

    def quoted(self, value: object) -> str:
        """A value of text as a template takes it."""
        return quote(value)


class JsonFormat:
    """One JSON object, with the time, the event and its level first.

    Args:
        stamped: whether the time is there.
    """

    def __init__(self, *, stamped: bool = True) -> None:
        self.stamp = '{"time":"%s",' if stamped else ""
        self._opening = "" if stamped else "{"

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """A line's %-format."""

        def written(name: str, value: object) -> str:
            return json.dumps(value) if name in NUMBERS else self.quoted(value)

        parts = (f'"{name}":{text}' for name, text in _fields(event, constants, variables, written))
        # A `log` line has the level of who wrote it, as a field.
        level = [] if event is LOG else [f'"level":"{event.level}"']
        return self._opening + ",".join([f'"event":"{event.name}"', *level, *parts]) + "}"

    def quoted(self, value: object) -> str:
        """A value of text as a template takes it."""
        return json.dumps(str(value))


class SyslogPriorityFormat:
    """Another form's line behind its priority, as `<6>`: for syslog, and for loggers that have levels.

    Args:
        form: writes the line; without a time, since whoever takes it has its own.
    """

    stamp = ""

    def __init__(self, form: LineFormat) -> None:
        self._form = form

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """A line's %-format."""
        return f"<{_priority(event, constants)}>{self._form.template(event, constants, variables)}"

    def quoted(self, value: object) -> str:
        """A value of text as a template takes it."""
        return self._form.quoted(value)


class JournaldFormat(TextFormat):
    """An entry of systemd's journal: fields `NAME=value` with line ends between them, for svcd.log.sinks.JournaldSink.

    MESSAGE is the line of text, and every value of it has a field of its own besides, SVCD_ and its key. The message of
    a `log` line, which may be a traceback of many lines, is MESSAGE as it is: a journal shows those well. The time is
    SVCD_TIME, since what the journal has for it is when the entry came, and lines wait for company.
    """

    #: SYSLOG_FACILITY 3 is daemon, which lines have that come by the standard output as well.
    _SAME = "SYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=svcd"

    def __init__(self) -> None:
        self.stamp = "SVCD_TIME=%s\n"

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """An entry's %-format."""
        variables = set(variables)
        lines = [f"PRIORITY={_priority(event, constants)}", self._SAME, f"SVCD_EVENT={event.name}"]
        fields = dict(_fields(event, constants, variables, _quoted))
        message = fields.pop("message", "") if event is LOG else ""
        lines += [f"SVCD_{name.upper()}={text}" for name, text in fields.items()]
        return "\n".join([*lines, f"MESSAGE={message or super().template(event, constants, variables)}"])


def _fields(
    event: Event, constants: Mapping[str, object], variables: Iterable[str], written: Callable[[str, object], str]
) -> Iterator[tuple[str, str]]:
    """Names and %-formats of what a line says, in the event's order."""
    open_names = set(variables)
    for name in event.fields:
        if name in constants:
            yield name, written(name, constants[name]).replace("%", "%%")
        elif name in open_names:
            yield name, FORMATS.get(name, "%s").replace("%", f"%({name})", 1)


def _priority(event: Event, constants: Mapping[str, object]) -> int:
    """The syslog severity (RFC 5424, 6.2.1); a `log` line has the level of who wrote it."""
    return PRIORITIES[str(constants.get("level", event.level)) if event is LOG else event.level]
