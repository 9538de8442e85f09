"""Destination and format of the log, from the options of twistd and svcd."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, TextIO

from svcd.errors import StartFailure
from svcd.log.events import PROBLEM
from svcd.log.files import LogFiles
from svcd.log.formats import JournaldFormat, JsonFormat, LineFormat, SyslogPriorityFormat, TerminalFormat, TextFormat
from svcd.log.sinks import FileSink, JournaldSink, log_start_failure, syslog_sink, twisted_sink
from svcd.log.writer import LogObserver, LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from twisted.logger import ILogObserver

__all__ = ["LOG_FORMATS", "LogSetup"]

#: The time that finish() waits for the sink to take all lines, and the pause between two attempts, in seconds.
_FINISH_SECONDS = 0.9
_FINISH_PAUSE = 0.01
#: The values of --log-format.
LOG_FORMATS = ("text", "json", "journald")


class LogSetup:
    """Log of the daemon.

    twistd's --logfile, --syslog and --prefix work as in twistd itself. With a --logger of the user's own the lines are
    passed to that through twisted.logger. The default format is text, unless the log is the standard output and
    systemd's journal reads that: then lines are entries of the journal, with their fields.

    Args:
        options: twistd's options.
        log_format: one of LOG_FORMATS; None for the default.
        anonymize: whether to shorten clients' addresses.

    Attributes:
        log_writer: the writer of all lines.
        files: the log files of services.
        on_terminal: whether the log is the standard output, or the journal that reads the standard output.
    """

    def __init__(
        self, options: Mapping[str, object], log_format: str | None = None, *, anonymize: bool = False
    ) -> None:
        self._options = options
        self._write: Callable[[Sequence[str]], int] = twisted_sink
        self._path = str(options.get("logfile") or "")
        self._has_logger = bool(options.get("logger"))
        self._syslog = bool(options.get("syslog"))
        self._native = log_format == "journald"
        self._file_sink: FileSink | None = None
        self.files = LogFiles(self._owner(), self._catch_signal)
        self._journald: JournaldSink | None = None
        self.on_terminal = (
            not (self._has_logger or self._syslog or self._native)
            and (self._path == "-" or (not self._path and self._nodaemon))
        )  # fmt: skip
        self.is_screen = self.on_terminal and _is_terminal(sys.stdout)
        if log_format is None and self.on_terminal and _is_journal(sys.stdout):
            # If journald does not listen, as in some containers, the log stays text on the standard output.
            with contextlib.suppress(OSError):
                self._use_journald()
        # One line for each reason of a failed start is enough where both streams have the same reader. With the log on
        # the standard output that is so, unless only the standard error is a terminal.
        as_json = log_format == "json"
        same = self.on_terminal and (_is_standard_error() or not _is_terminal(sys.stderr))
        self._has_standard_error = _is_journal(sys.stderr) if self._native else as_json and same
        plain = self.on_terminal and not (as_json or self._native)
        self._is_standard_error = plain and _is_standard_error()
        self.log_writer = LogWriter(self._sink, self._line_format(log_format == "json"), anonymize=anonymize)

    def _use_journald(self) -> None:
        self._journald = JournaldSink()
        self._write = self._journald.write
        self._native = True

    def _line_format(self, as_json: bool) -> LineFormat:
        if self._native:
            return JournaldFormat()
        # syslog and twisted.logger add the time and the level themselves.
        bare = self._has_logger or self._syslog
        if self.is_screen and not as_json:
            return TerminalFormat()
        line_format = JsonFormat(stamped=not bare) if as_json else TextFormat(stamped=not bare)
        return SyslogPriorityFormat(line_format) if bare else line_format

    def _sink(self, lines: Sequence[str]) -> int:
        return self._write(lines)

    @property
    def _nodaemon(self) -> bool:
        return bool(self._options.get("nodaemon") or self._options.get("debug"))

    def observer(self) -> ILogObserver | None:
        """Open the destination and return an observer for the application; None with a --logger of the user's own.

        Raises:
            StartFailure: the destination can't be opened.
        """
        if self._has_logger:
            return None
        if self._syslog:
            self._write = syslog_sink(str(self._options.get("prefix") or "twisted"))
        elif not self._native:
            self._write = self._file()
        elif self._write is twisted_sink:
            try:
                self._use_journald()
            except OSError as error:
                raise log_start_failure(f"can't reach journald: {error.strerror}; use another --log-format") from error
        return LogObserver(self.log_writer)

    def report_start_failure(self, failure: StartFailure) -> None:
        """Print the reasons of a failed start to the standard error, and write them to the log as problems.

        A text log that is the standard error has them by that. Nothing is printed to the standard error of a log on the
        standard output if that is JSON or the journal: there each reason is one record with a level.
        """
        if not self._has_standard_error:
            failure.report()
        if not self._record_start_failure(failure.lines) and self._has_standard_error:
            failure.report()

    def _record_start_failure(self, lines: Sequence[str]) -> bool:
        """Write the reasons to the log; return whether it has them."""
        # A --logger of the user's own has not started yet.
        if self._has_logger or self._is_standard_error:
            return False
        # A failure to write the log must not hide the reason.
        with contextlib.suppress(StartFailure, OSError):
            if self._write is twisted_sink:
                self.observer()
            for line in lines:
                self.log_writer.record_here(PROBLEM, {"text": line})
            return not self.log_writer.waiting
        return False

    def finish(self, seconds: float = _FINISH_SECONDS) -> None:
        """Write the buffered lines before the process ends, and wait until journald has read them.

        Args:
            seconds: how long to wait for a reader that reads nothing; the limit for a slow reader is twice as long.
                After that, the number of lines that are left is written to the standard error.
        """
        now = time.monotonic()
        end, limit = now + seconds, now + 2 * seconds
        self.files.flush()
        self.log_writer.flush()
        before = self.log_writer.waiting
        while (waiting := self.log_writer.waiting) or (self._journald is not None and self._journald.unread):
            now = time.monotonic()
            if waiting < before:
                before, end = waiting, min(now + seconds, limit)
            if now >= end:
                break
            time.sleep(_FINISH_PAUSE)
            self.log_writer.flush()
        error = sys.__stderr__
        # The standard error may be a pipe that is not read either; writing must not block.
        if waiting and error is not None and select.select([], [error], [], 0)[1]:
            text = f"the log does not have the last {waiting} lines, which could not be written within {seconds:g} s"
            print(f"svcd: {text}", file=error)

    def _file(self) -> Callable[[Sequence[str]], int]:
        if self.on_terminal and not self._nodaemon:
            raise log_start_failure("a daemon has no standard output to log to; use --logfile FILE, or -n")
        if self.on_terminal and sys.stdout is None:
            raise log_start_failure("the standard output is closed; use --logfile FILE")
        # twistd replaces sys.stdout later; now it is still the real standard output.
        sink = FileSink("" if self.on_terminal else self._path or "twistd.log", sys.stdout, self._owner())
        sink.reopen()
        self._file_sink = sink
        self._catch_signal()
        return sink.write

    def _catch_signal(self) -> None:
        if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):
            signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGUSR1: the files were renamed, as by logrotate(8); open new files."""
        self.files.reopen()
        if self._file_sink is not None and not self.on_terminal:
            with contextlib.suppress(StartFailure):
                self._file_sink.reopen()

    def start_buffering(
        self, call_later: Callable[[float, Callable[[], None]], object], from_thread: Callable[..., object]
    ) -> None:
        """Buffer lines from now on; see LogWriter.start_buffering()."""
        self.log_writer.start_buffering(call_later, from_thread)
        self.files.start_buffering(call_later)

    def _owner(self) -> tuple[int, int]:
        """Return the uid and gid to which twistd changes after the start (--uid, --gid); -1 for no change.

        The daemon opens the file again after a rotation, when it has them.
        """
        user, group = self._options.get("uid"), self._options.get("gid")
        if isinstance(user, int) and not isinstance(group, int):
            # A uid that does not exist is an error later.
            with contextlib.suppress(KeyError, OverflowError):
                group = pwd.getpwuid(user).pw_gid
        return user if isinstance(user, int) else -1, group if isinstance(group, int) else -1


def _stat(stream: TextIO | None) -> os.stat_result | None:
    """Return the status of the file, pipe or socket of a stream; None if it was closed."""
    try:
        return None if stream is None else os.fstat(stream.fileno())
    except OSError:
        return None


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and _stat(stream) is not None and os.isatty(stream.fileno())


def _is_standard_error() -> bool:
    """Return whether the standard output is the same file, pipe or socket as the standard error."""
    output, error = _stat(sys.stdout), _stat(sys.stderr)
    return output is not None and error is not None and os.path.samestat(output, error)


def _is_journal(stream: TextIO | None) -> bool:
    """Return whether systemd's journal reads a stream: $JOURNAL_STREAM has its device and inode (systemd.exec(5))."""
    found = _stat(stream)
    return found is not None and os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
