"""Destinations of the log: a file, a pipe or a terminal; syslog; twisted.logger; systemd's journal.

Each takes lines and returns the number of lines that it has written, as svcd.log.writer.LogWriter requires of its sink.
A sink waits for a slow reader, but not for a stopped one, so none blocks the daemon for long.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import socket
import stat
import struct
import sys
import syslog
import termios
from typing import TYPE_CHECKING, TextIO

from twisted.logger import Logger, LogLevel

from svcd.errors import StartFailure
from svcd.log.events import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "JOURNALD_SOCKET",
    "FileSink",
    "JournaldSink",
    "datagram",
    "log_start_failure",
    "syslog_sink",
    "twisted_sink",
]

#: The longest wait of a write for a reader that has kept up so far, in milliseconds.
_WAIT_MS = 100
#: The socket of journald.
JOURNALD_SOCKET = "/run/systemd/journal/socket"
#: The send buffer to journald in bytes, if the system allows it: as in sd_journal_sendv(3).
_JOURNALD_BUFFER = 8 << 20
#: The characters of a value that are kept if an entry is too large for a datagram and memory files are forbidden.
_MAX_VALUE = 8192
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class _WritableWait:
    """Bounded wait for a reader: 100 ms each time while the reader keeps up, no wait otherwise.

    Args:
        fd: the descriptor to write to.
    """

    def __init__(self, fd: int) -> None:
        self._timeout = _WAIT_MS
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def has_room(self) -> bool:
        """Return whether data can be written, now or within the wait."""
        ready = bool(self._poll.poll(self._timeout))
        self._timeout = _WAIT_MS if ready else 0
        return ready


class FileSink:
    """File or standard output to which lines are appended, each completely or not at all.

    Args:
        path: the path of the file; empty for the standard output.
        stream: the standard output; None with a path.
        owner: the uid and gid of a file that does not exist yet; -1 for no change (chown(2)).
    """

    def __init__(self, path: str, stream: TextIO | None = None, owner: tuple[int, int] = (-1, -1)) -> None:
        self._owner = owner
        # Absolute, since the daemon changes its working directory (--rundir).
        self._path = os.path.abspath(path) if path else ""  # noqa: PTH100 - the name of what may not exist
        self._fd = -1 if path or stream is None else stream.fileno()

    def reopen(self) -> None:
        """Open the file again; if that fails, the open file stays in use.

        Raises:
            StartFailure: the file can't be opened.
        """
        if not self._path:
            self._inspect()
            return
        try:
            self.open()
        except OSError as error:
            raise log_start_failure(
                f"can't write the log {self._path}: {error.strerror}; use --logfile FILE"
            ) from error

    def open(self) -> None:
        """Open the file, which must have a path, for the first time or again.

        Raises:
            OSError: it can't be opened; the open file stays in use.
        """
        new_fd = self._open()
        if self._fd >= 0:
            os.dup2(new_fd, self._fd, inheritable=False)
            os.close(new_fd)
        else:
            self._fd = new_fd
        self._inspect()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self) -> int:
        """Open the file; a new one gets the owner."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        try:
            # With O_EXCL a symbolic link is not followed: no other file can get the owner.
            new_fd = os.open(self._path, flags | os.O_EXCL, 0o640)
        except FileExistsError:
            return os.open(self._path, flags, 0o640)
        # After root is given up the file has the right owner already, and this fails.
        with contextlib.suppress(PermissionError):
            os.fchown(new_fd, *self._owner)
        return new_fd

    def _inspect(self) -> None:
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._reader = _WritableWait(self._fd)

    def write(self, lines: Sequence[str]) -> int:
        """Append lines; return how many were written."""
        fd = self._fd
        if not self._regular:
            return self._write_slowly(lines)
        data = "".join(f"{line}\n" for line in lines).encode()
        end = os.lseek(fd, 0, os.SEEK_END)
        done = 0
        try:
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError:
            # The disk is full. A partial line is removed, since the next line would be appended to it.
            whole = data.rfind(b"\n", 0, done) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(fd, end + whole)
            return data.count(b"\n", 0, whole)
        return len(lines)

    def _write_slowly(self, lines: Sequence[str]) -> int:
        """Write to a pipe or a terminal while its reader keeps up: a stopped reader must not stop the daemon."""
        for number, line in enumerate(lines):
            data = f"{line}\n".encode()
            if not self._reader.has_room():
                return number
            try:
                while data:
                    # PIPE_BUF bytes fit at once (pipe(7)); the rest of a longer line waits for the reader.
                    data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]
            except BlockingIOError:
                return number
            except OSError:
                # The reader has closed the pipe or the terminal: the lines are discarded.
                return len(lines)
        return len(lines)


class JournaldSink:
    """systemd's journal, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

    Args:
        path: the path of journald's socket.

    Raises:
        OSError: journald does not listen on it.
    """

    def __init__(self, path: str = JOURNALD_SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Connected now: so poll() can wait for the reader, and after a chroot(2) the path is not visible.
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _JOURNALD_BUFFER)
        self._reader = _WritableWait(self._socket.fileno())

    def write(self, lines: Sequence[str]) -> int:
        """Send entries of svcd.log.formats.JournaldFormat; return how many were sent."""
        for number, line in enumerate(lines):
            try:
                self._send(line)
            except OSError:
                return number
        return len(lines)

    @property
    def unread(self) -> bool:
        """Whether journald has yet to read an entry (unix(7), SIOCOUTQ).

        When journald reads an entry, it looks up the unit of the process that has sent it. If the process has exited by
        then, `journalctl --unit` does not find the entry.
        """
        return any(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))

    def _send(self, line: str) -> None:
        data = datagram(line)
        try:
            self._offer(self._socket.send, data)
        except OSError as error:
            # As in sd_journal_sendv(3), an entry that is too large is sent as a memory file.
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            try:
                memory = _sealed_memfd(data)
            except OSError:
                # A sandbox forbids memory files. An entry that can't be sent must not block the entries after it.
                self._offer(self._socket.send, datagram(line, _MAX_VALUE))
                return
            try:
                self._offer(socket.send_fds, self._socket, [], [memory])
            finally:
                os.close(memory)

    def _offer(self, send: Callable[..., object], *arguments: object) -> None:
        try:
            send(*arguments)
        except BlockingIOError:
            if not self._reader.has_room():
                raise
            send(*arguments)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE):
                raise
            # journald has restarted and has a new socket.
            self._socket.connect(self._path)
            send(*arguments)


def datagram(entry: str, max_chars: int | None = None) -> bytes:
    """Return the bytes of an entry of systemd's journal, for a datagram or a memory file. It has no size limit.

    Args:
        entry: the fields as lines of ASCII, `NAME=value`; a value that begins with a quotation mark is a JSON string.
        max_chars: the maximum number of characters of a value; None for no limit.
    """
    if '="' not in entry and max_chars is None:
        # Entries of connections rarely have JSON strings and need no conversion then.
        return entry.encode("ascii") + b"\n"
    return b"".join(_field(*line.partition("=")[::2], max_chars) for line in entry.split("\n"))


def _field(name: str, text: str, max_chars: int | None) -> bytes:
    if text.startswith('"'):
        text = json.loads(text)
    # A JSON string may hold half a surrogate pair, for which UTF-8 has no bytes.
    value = text[:max_chars].encode("utf-8", "backslashreplace")
    if b"\n" not in value:
        return b"%b=%b\n" % (name.encode("ascii"), value)
    # "the field name, followed by a newline, the size as 64-bit little-endian value, the value, and a newline".
    return b"%b\n%b%b\n" % (name.encode("ascii"), struct.pack("<Q", len(value)), value)


def _sealed_memfd(data: bytes) -> int:
    """Return the descriptor of a sealed memory file with this content, as journald requires."""
    fd = os.memfd_create("svcd-journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def syslog_sink(ident: str) -> Callable[[Sequence[str]], int]:
    """Return a sink that writes lines of svcd.log.formats.SyslogPriorityFormat to syslog.

    Args:
        ident: the name in each line.
    """
    syslog.openlog(ident, syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(lines: Sequence[str]) -> int:
        for line in lines:
            # `<6>accept ...`
            syslog.syslog(int(line[1]), line[3:])
        return len(lines)

    return write


_log = Logger(namespace="svcd")
#: The levels of twisted.logger by syslog severity.
_LEVELS = {number: getattr(LogLevel, level, LogLevel.info) for level, number in PRIORITIES.items()}


def twisted_sink(lines: Sequence[str]) -> int:
    """Write lines of svcd.log.formats.SyslogPriorityFormat to a --logger of the user's own."""
    for line in lines:
        _log.emit(_LEVELS[int(line[1])], "{line}", line=line[3:])
    return len(lines)


def log_start_failure(reason: str) -> StartFailure:
    """Print why the log can't be written, and return the exception that ends the start."""
    print(f"svcd: {reason}", file=sys.stderr)
    return StartFailure(os.EX_CANTCREAT, reason)
