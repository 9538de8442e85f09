"""Where the log goes: the places that twistd's own options name, for events and connection lines alike."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
from typing import TYPE_CHECKING, TextIO

from twisted.logger import ILogObserver, Logger

from svcd.errors import StartFailure
from svcd.journal import Journal, JournalObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

__all__ = ["LogOutput"]

#: How long a write waits for the reader of a pipe that has read so far.
_PATIENCE_MS = 100


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
        self._write: Callable[[Sequence[str]], int] = _through_twisted
        self._path = str(options.get("logfile") or "")
        self._foreign = bool(options.get("logger"))
        syslog = bool(options.get("syslog"))
        self.on_terminal = (
            not self._foreign and not syslog and (self._path == "-" or (not self._path and self._nodaemon))
        )
        self.journal = Journal(self._sink, as_json=as_json, stamped=not (self._foreign or syslog))

    def _sink(self, lines: Sequence[str]) -> int:
        return self._write(lines)

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
        else:
            if self.on_terminal and not self._nodaemon:
                raise _failure("a daemon has no standard output to log to; use --logfile FILE, or -n")
            # twistd puts its own log in place of sys.stdout soon; this is the real one.
            place = _Place("" if self.on_terminal else self._path or "twistd.log", sys.stdout)
            place.reopen()
            self._write = place.write
            if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):
                signal.signal(signal.SIGUSR1, place.on_signal)
        return JournalObserver(self.journal)


class _Place:
    """A file, or the standard output, that lines are appended to: whole lines, or none of a line.

    Args:
        path: of the file; empty for the standard output.
        stream: the standard output.
    """

    def __init__(self, path: str, stream: TextIO) -> None:
        # Kept whole, since the daemon changes its folder (--rundir).
        self._path = os.path.abspath(path) if path else ""  # noqa: PTH100 - the name of what may not exist
        self._descriptor = -1 if path else stream.fileno()
        self._patience = _PATIENCE_MS
        self._room = select.poll()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """SIGUSR1: the file was moved away, as logrotate(8) does; begin a new one."""
        if self._path:
            with contextlib.suppress(StartFailure):
                self.reopen()

    def reopen(self) -> None:
        """Open the file; what is open stays in use when that fails.

        Raises:
            StartFailure: it can't be opened.
        """
        if not self._path:
            self._look()
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        try:
            opened = os.open(self._path, flags, 0o640)
        except OSError as error:
            raise _failure(f"can't write the log {self._path}: {error.strerror}; use --logfile FILE") from error
        if self._descriptor >= 0:
            os.dup2(opened, self._descriptor, inheritable=False)
            os.close(opened)
        else:
            self._descriptor = opened
        self._look()

    def _look(self) -> None:
        self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._room.register(self._descriptor, select.POLLOUT)

    def write(self, lines: Sequence[str]) -> int:
        """Append lines; returns how many are written."""
        descriptor = self._descriptor
        if not self._regular:
            return self._write_slowly(lines)
        data = "".join(f"{line}\n" for line in lines).encode()
        end = os.lseek(descriptor, 0, os.SEEK_END)
        done = 0
        try:
            while done < len(data):
                done += os.write(descriptor, data[done:])
        except OSError:
            # A full disk: no half line may stay, for the next would be glued to it.
            whole = data.rfind(b"\n", 0, done) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end + whole)
            return data.count(b"\n", 0, whole)
        return len(lines)

    def _write_slowly(self, lines: Sequence[str]) -> int:
        """To a pipe or a terminal, while its reader takes them: one that does not must not stop the daemon."""
        for number, line in enumerate(lines):
            data = f"{line}\n".encode()
            if not self._takes_more():
                return number
            try:
                while data:
                    # So much fits in at once (pipe(7)); what is left of a longer line has to wait for the reader.
                    data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]
            except BlockingIOError:
                return number
            except OSError:
                # Nobody reads any more, nor will: there is no place for the lines.
                return len(lines)
        return len(lines)

    def _takes_more(self) -> bool:
        """Whether the reader has room; one that reads at all is waited for, one that does not only once."""
        ready = bool(self._room.poll(self._patience))
        self._patience = _PATIENCE_MS if ready else 0
        return ready


def _failure(reason: str) -> StartFailure:
    print(f"svcd: {reason}", file=sys.stderr)
    return StartFailure(os.EX_CANTCREAT, reason)


def _to_syslog(prefix: str) -> Callable[[Sequence[str]], int]:
    import syslog

    syslog.openlog(prefix, syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(lines: Sequence[str]) -> int:
        for line in lines:
            syslog.syslog(syslog.LOG_INFO, line)
        return len(lines)

    return write


_log = Logger(namespace="svcd")


def _through_twisted(lines: Sequence[str]) -> int:
    for line in lines:
        _log.info("{line}", line=line)
    return len(lines)
