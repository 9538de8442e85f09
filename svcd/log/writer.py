"""The buffered writer of all log lines: of connections and of events of the daemon.

A line through twisted.logger costs 20 µs, a line from a template of LogWriter less than 2; a whole connection costs
18. LogWriter opens no file and imports no reactor: sink, clock and timer are arguments.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from twisted.logger import ILogObserver, formatEvent
from zope.interface import implementer

from svcd.addresses import address_text, short_address
from svcd.log.events import LOG, LOST, PRIORITIES, Event
from svcd.log.formats import TextFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.logger import LogEvent

    from svcd.log.formats import LineFormat

__all__ = ["FLUSH_SECONDS", "LogObserver", "LogWriter"]

#: The longest time that a line is buffered, in seconds.
FLUSH_SECONDS = 0.2
#: The number of buffered lines at which the buffer is flushed at once.
FLUSH_LINES = 1000
#: The maximum number of lines that are kept while the sink fails; further lines are counted and discarded.
MAX_LINES = 10_000


class LogWriter:
    """Buffered writer of the lines of the log.

    Args:
        sink: takes lines without line ends, writes as many as it can, and returns their number. The others are kept, up
            to MAX_LINES, and passed again later; a `lost` line has the number of discarded lines.
        line_format: the format of lines; text with time by default.
        anonymize: whether to shorten clients' addresses and omit their names.
        clock: returns seconds since 1970.

    Attributes:
        quoted: returns a text value as a template takes it.
        anonymize: as given.
    """

    def __init__(
        self,
        sink: Callable[[Sequence[str]], int],
        line_format: LineFormat | None = None,
        *,
        anonymize: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sink = sink
        self._format = line_format = line_format or TextFormat()
        self.quoted: Callable[[object], str] = line_format.quoted
        # Depending on the format, an address has quotation marks or not.
        self._peer_template = line_format.quoted("-").replace("-", "%s")
        self.anonymize = anonymize
        self._clock = clock
        self._second = self._millisecond = -1
        self._prefix = self._suffix = self._now = ""
        self._lines: list[str] = []
        self._lost = 0
        self._max_priority = PRIORITIES["debug"]
        self._gap_index, self._gap_stamp = 0, ""
        self._call_later: Callable[[float, Callable[[], None]], object] | None = None
        self._call_from_thread: Callable[..., object] | None = None
        self._thread = 0
        self._scheduled = False

    def start_buffering(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        from_thread: Callable[..., object] | None = None,
    ) -> None:
        """Buffer lines from now on; before that, each line is written at once.

        Args:
            call_later: the reactor's callLater.
            from_thread: the reactor's callFromThread, for events of other threads.
        """
        self._call_later = call_later
        self._call_from_thread = from_thread
        self._thread = threading.get_ident()

    def template(self, event: Event, constants: Mapping[str, object], variables: Iterable[str]) -> str:
        """Return the %-format of a line, for `write`: constants are filled in, variables are left open.

        Values for text variables must have gone through `quoted`. The result is empty for an event that is not logged.
        """
        return self._format.template(event, constants, variables) if self.is_logged(event.level) else ""

    def set_level(self, level: str) -> None:
        """Write events of this level and above from now on; existing templates do not change.

        Raises:
            ValueError: there is no such level.
        """
        if level not in PRIORITIES:
            raise ValueError(level)
        self._max_priority = PRIORITIES[level]

    def is_logged(self, level: str) -> bool:
        """Return whether events of a level are written."""
        return PRIORITIES[level] <= self._max_priority

    def format_peer(self, host: str, port: int) -> str:
        """Return a client's address as text, shortened if `anonymize` is set; not quoted."""
        if self.anonymize:
            return short_address(host)
        # IPv4 without a call: twice for each connection.
        return address_text(host, port) if ":" in host else f"{host}:{port}"

    def quoted_peer(self, host: str, port: int) -> str:
        """Return a client's address like format_peer, quoted. Only a scoped link-local address can need quoting."""
        text = self.format_peer(host, port)
        return self.quoted(text) if "%" in text else self._peer_template % text

    def quoted_text(self, peer: str) -> str:
        """Quote a client's address that format_peer() has made; faster than `quoted`."""
        return self.quoted(peer) if "%" in peer else self._peer_template % peer

    def write(self, line: str) -> None:
        """Buffer a line, a filled template, with the current time. It reaches the sink within FLUSH_SECONDS."""
        lines = self._lines
        lines.append(self.stamp() + line)
        if not self._scheduled:
            self._schedule_flush()
        elif len(lines) == FLUSH_LINES:
            self.flush()

    def _schedule_flush(self) -> None:
        self._scheduled = True
        if self._call_later is None:
            self.flush()
        else:
            self._call_later(FLUSH_SECONDS, self.flush)

    def record(self, event: Event, values: Mapping[str, object]) -> None:
        """Write an event of the daemon, slower than write(), and flush. It may be called in any thread."""
        if self._call_from_thread is not None and threading.get_ident() != self._thread:
            self._call_from_thread(self.record_here, event, values)
        else:
            self.record_here(event, values)

    def record_here(self, event: Event, values: Mapping[str, object]) -> None:
        """Write an event as `record` does, in this thread."""
        # A `log` line has the level of its message.
        if not self.is_logged(str(values.get("level", event.level)) if event is LOG else event.level):
            return
        known = {name: values[name] for name in event.fields if name in values}
        self.write(self._format.template(event, known, ()) % ())
        self.flush()

    @property
    def waiting(self) -> int:
        """The number of lines that the sink has not taken, discarded lines included."""
        return len(self._lines) + self._lost

    def flush(self) -> None:
        """Pass all lines to the sink now, with a `lost` line where lines were discarded."""
        self._scheduled = False
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self._lost:
            values = {"lines": self._lost, "reason": "the log could not be written"}
            lines.insert(self._gap_index, self._gap_stamp + self.template(LOST, values, ()))
        written = self._sink(lines)
        if self._lost:
            if written > self._gap_index:
                self._lost = 0
            else:
                del lines[self._gap_index]
                self._gap_index -= written
        if written < len(lines):
            self._keep_unwritten(lines[written:])

    def _keep_unwritten(self, lines: list[str]) -> None:
        excess = len(lines) - MAX_LINES
        if excess > 0:
            if not self._lost:
                self._gap_index, self._gap_stamp = MAX_LINES, self.stamp()
            self._lost += excess
            del lines[MAX_LINES:]
        self._lines = lines
        if self._call_later is not None:
            self._schedule_flush()

    def read_time_zone(self) -> None:
        """Use the current time zone for the next line."""
        self._second = self._millisecond = -1

    def stamp(self) -> str:
        """Return the start of a line that is written now."""
        if not self._format.stamp:
            return ""
        now = int(self._clock() * 1000)
        if now != self._millisecond:
            # Under load many lines share a millisecond.
            self._millisecond = now
            second, milliseconds = divmod(now, 1000)
            if second != self._second:
                self._stamp(second)
            self._now = f"{self._prefix}{milliseconds:03d}{self._suffix}"
        return self._now

    def _stamp(self, second: int) -> None:
        self._second = second
        local = time.localtime(second)
        offset = time.strftime("%z", local)
        opening, _, closing = self._format.stamp.partition("%s")
        self._prefix = opening + time.strftime("%Y-%m-%dT%H:%M:%S.", local)
        self._suffix = f"{offset[:3]}:{offset[3:]}{closing}"


@implementer(ILogObserver)
class LogObserver:
    """A twisted.logger observer that writes the daemon's events to a LogWriter.

    svcd's own events keep their fields; all other events become `log` lines, with their tracebacks.

    Args:
        log_writer: the writer.
    """

    def __init__(self, log_writer: LogWriter) -> None:
        self._log_writer = log_writer

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        own = event.get("svcd_event")
        if isinstance(own, Event):
            self._log_writer.record(own, event)
            return
        text = formatEvent(event)
        failure = event.get("log_failure")
        if failure is not None:
            text = f"{text}\n{failure.getTraceback()}".strip()
        level = event.get("log_level")
        self._log_writer.record(LOG, {"level": level.name if level else "info", "message": text})
