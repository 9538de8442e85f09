"""Where the log goes: the places that twistd's own options name, for events and connection lines alike."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from twisted.logger import ILogObserver, Logger
from twisted.python.logfile import LogFile

from svcd.errors import StartFailure
from svcd.journal import Journal, JournalObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

__all__ = ["LogOutput"]


class LogOutput:
    """The log of one daemon.

    It takes twistd's --logfile, --syslog and --prefix as twistd itself does. With a --logger of the user's own the
    lines go through twisted.logger to that.

    Args:
        options: twistd's options.
        as_json: JSON lines instead of text.

    Attributes:
        journal: where everything is written.
        on_terminal: whether the log is the standard output.
    """

    def __init__(self, options: Mapping[str, object], *, as_json: bool) -> None:
        self._options = options
        self._write: Callable[[Sequence[str]], None] = _through_twisted
        self._path = str(options.get("logfile") or "")
        self._foreign = bool(options.get("logger"))
        syslog = bool(options.get("syslog"))
        self.on_terminal = (
            not self._foreign and not syslog and (self._path == "-" or (not self._path and self._nodaemon))
        )
        self.journal = Journal(self._sink, as_json=as_json, stamped=not (self._foreign or syslog))

    def _sink(self, lines: Sequence[str]) -> None:
        self._write(lines)

    @property
    def _nodaemon(self) -> bool:
        return bool(self._options.get("nodaemon") or self._options.get("debug"))

    def observer(self) -> ILogObserver | None:
        """Open the place, as an observer for the application; None with a --logger of the user's own.

        Raises:
            StartFailure: it can't be opened.
        """
        if self._foreign:
            return None
        if self._options.get("syslog"):
            self._write = _to_syslog(str(self._options.get("prefix") or "twisted"))
        elif self.on_terminal:
            if not self._nodaemon:
                raise _failure("a daemon has no standard output to log to; use --logfile FILE, or -n")
            self._write = _to_stream()
        else:
            self._write = self._to_file(self._path or "twistd.log")
        return JournalObserver(self.journal)

    def _to_file(self, path: str) -> Callable[[Sequence[str]], None]:
        try:
            file = LogFile.fromFullPath(path)
        except OSError as error:
            raise _failure(f"can't write the log {path}: {error.strerror}; use --logfile FILE") from error
        if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):

            def rotate(_number: int, _frame: FrameType | None) -> None:
                from twisted.internet import reactor  # installed by now

                reactor.callFromThread(file.rotate)  # type: ignore[attr-defined]

            signal.signal(signal.SIGUSR1, rotate)
        return lambda lines: file.write("".join(f"{line}\n" for line in lines))


def _failure(reason: str) -> StartFailure:
    print(f"svcd: {reason}", file=sys.stderr)
    return StartFailure(os.EX_CANTCREAT, reason)


def _to_stream() -> Callable[[Sequence[str]], None]:
    # twistd puts its own log in place of sys.stdout soon; this is the real one.
    stream = sys.stdout

    def write(lines: Sequence[str]) -> None:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()

    return write


def _to_syslog(prefix: str) -> Callable[[Sequence[str]], None]:
    import syslog

    syslog.openlog(prefix, syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(lines: Sequence[str]) -> None:
        for line in lines:
            syslog.syslog(syslog.LOG_INFO, line)

    return write


_log = Logger(namespace="svcd")


def _through_twisted(lines: Sequence[str]) -> None:
    for line in lines:
        _log.info("{line}", line=line)
