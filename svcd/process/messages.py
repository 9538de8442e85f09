"""What the daemon, the zygote and the launchers tell one another: messages in packets of SOCK_SEQPACKET pairs.

The daemon's side does not trust what it reads: whoever serves a connection has the rights of its launcher. A descriptor
travels beside a packet (SCM_RIGHTS, unix(7)), at most one with each.

Bare interpreters read this module too, so it imports little.
"""

from __future__ import annotations

import contextlib
import struct
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from svcd.process.stderr import OutputLimit

__all__ = [
    "FD_STRUCT",
    "MAX_PACKET",
    "MAX_REASON",
    "Changed",
    "CheckModule",
    "ChildExited",
    "Connection",
    "Dropped",
    "Ended",
    "Failed",
    "Idle",
    "Kill",
    "LauncherStarted",
    "Message",
    "MessageWriter",
    "Ready",
    "Signal",
    "StartLauncher",
    "Started",
    "Starting",
    "StderrLine",
    "pack",
    "parse",
    "parse_all",
]

#: No message is longer, in bytes.
MAX_PACKET = 65_536
#: The longest text of a Ready or a Changed message, in bytes.
MAX_REASON = 4096
#: How a descriptor is packed for SCM_RIGHTS.
FD_STRUCT = struct.Struct("i")
#: What was noted does not wait when it is longer than so many bytes.
_MAX_QUEUED = 4096
#: How many lines were dropped is told after so many seconds, not with each.
_DROPPED_INTERVAL = 1.0


class Connection(NamedTuple):
    """To a launcher, with the descriptor: serve it.

    Attributes:
        number: of the connection, unique in the daemon's life.
        environment: NAME=VALUE with NULs between them, for the variables that depend on the connection.
    """

    connection_id: int
    environment: bytes


class Signal(NamedTuple):
    """To a launcher, or when that is lost to the zygote: send a signal to the process group of a handler.

    Attributes:
        number: of the connection.
        pid: of the handler.
        signal: its number.
    """

    connection_id: int
    pid: int
    signal: int


class Ready(NamedTuple):
    """From a launcher: it serves; or, with a problem, it can't and ends."""

    problem: bytes = b""


class CheckModule(NamedTuple):
    """To a launcher, after a reload: read the time zone again (tzset(3)), and say whether a module has changed on disk.

    It is the module of the handler, or one that came with it.
    """


class Changed(NamedTuple):
    """From a launcher, as the answer to that if so: the name of the module that has changed."""

    module: bytes


class Idle(NamedTuple):
    """From a launcher: it has had no handler for `launcher_idle`, and ends if its socket is closed now."""


class Starting(NamedTuple):
    """From a launcher, before it starts a handler: if it is lost after this, nobody knows whether there is one."""

    connection_id: int


class Started(NamedTuple):
    """From a launcher: a connection has its process. Handlers in threads have the launcher's."""

    connection_id: int
    pid: int


class Failed(NamedTuple):
    """From a launcher: nothing could be started for a connection, and it is closed; `errno` is the system's reason."""

    connection_id: int
    errno: int


class Ended(NamedTuple):
    """From a launcher: a handler has ended.

    Attributes:
        number: of the connection.
        status: as wait(2) gives it.
        user, system: processor time in seconds.
        bytes_in, bytes_out: received from the client, and acknowledged by it; -1 when nobody counted.
    """

    connection_id: int
    status: int
    user: float = 0.0
    system: float = 0.0
    bytes_in: int = -1
    bytes_out: int = -1


class StderrLine(NamedTuple):
    """From a launcher: what a handler wrote for the log, a line without its end or a whole traceback."""

    connection_id: int
    text: bytes


class Dropped(NamedTuple):
    """From a launcher: so many lines and bytes were written for the log beyond `stderr_rate` since the last report."""

    lines: int
    bytes: int


class Kill(NamedTuple):
    """To the zygote: end a launcher of its own by SIGKILL."""

    pid: int


class StartLauncher(NamedTuple):
    """To the zygote: start the launcher of a service, which is known by its row in the table.

    Attributes:
        row: of the table.
        options: what is otherwise than the table says (launcher_options()); empty for nothing.
    """

    row: int
    options: bytes = b""


class LauncherStarted(NamedTuple):
    """From the zygote, with the launcher's socket: it runs; or, with an errno and none, it could not be forked."""

    row: int
    pid: int
    errno: int = 0


class ChildExited(NamedTuple):
    """From the zygote: a launcher has ended, or a handler whose launcher ended before it; `status` as wait(2)."""

    pid: int
    status: int


Message: TypeAlias = (
    Connection
    | Signal
    | CheckModule
    | Ready
    | Idle
    | Starting
    | Started
    | Failed
    | Ended
    | StderrLine
    | Dropped
    | Changed
    | StartLauncher
    | Kill
    | LauncherStarted
    | ChildExited
)

#: Of each message: the first byte, the layout of the numbers that follow, and whether bytes end it.
_LAYOUTS: dict[type[Message], tuple[bytes, struct.Struct, bool]] = {
    Connection: (b"C", struct.Struct("=Q"), True),
    Signal: (b"S", struct.Struct("=Qii"), False),
    CheckModule: (b"K", struct.Struct("="), False),
    Ready: (b"R", struct.Struct("="), True),
    Idle: (b"I", struct.Struct("="), False),
    Starting: (b"B", struct.Struct("=Q"), False),
    Started: (b"P", struct.Struct("=Qi"), False),
    Failed: (b"F", struct.Struct("=Qi"), False),
    Ended: (b"E", struct.Struct("=Qiddqq"), False),
    StderrLine: (b"T", struct.Struct("=Q"), True),
    Dropped: (b"D", struct.Struct("=QQ"), False),
    Changed: (b"M", struct.Struct("="), True),
    StartLauncher: (b"L", struct.Struct("=I"), True),
    Kill: (b"X", struct.Struct("=i"), False),
    LauncherStarted: (b"N", struct.Struct("=Iii"), False),
    ChildExited: (b"G", struct.Struct("=ii"), False),
}
_TYPES: dict[bytes, tuple[Any, struct.Struct, bool]] = {
    code: (kind, layout, tail) for kind, (code, layout, tail) in _LAYOUTS.items()
}


def pack(message: Message) -> bytes:
    """A message as the bytes of a packet; what makes it too long is cut off."""
    code, layout, tail = _LAYOUTS[type(message)]
    if not tail:
        return code + layout.pack(*message)
    values: tuple[Any, ...] = message
    return bytes(code + layout.pack(*values[:-1]) + values[-1])[:MAX_PACKET]


def parse(packet: bytes) -> Message:
    """The message of a packet.

    Raises:
        ValueError: it is none, or more than one.
    """
    messages = parse_all(packet)
    if len(messages) != 1:
        raise ValueError("a packet of several messages")
    return messages[0]


def parse_all(packet: bytes) -> list[Message]:
    """The messages of a packet, one or more; what ends in bytes is the last.

    Raises:
        ValueError: it has none, or something else, or is longer than MAX_PACKET.
    """
    if len(packet) > MAX_PACKET:
        raise ValueError("a packet that is too long")
    messages: list[Message] = []
    end = 0
    while not messages or end < len(packet):
        try:
            kind, layout, tail = _TYPES[packet[end : end + 1]]
            numbers = layout.unpack_from(packet, end + 1)
        except (KeyError, struct.error) as error:
            raise ValueError("a packet that is no message") from error
        end += 1 + layout.size
        if tail:
            messages.append(kind(*numbers, packet[end:]))
            break
        messages.append(kind(*numbers))
    return messages


class MessageWriter:
    """Sends messages to the daemon, if it is still there.

    Args:
        control: to the daemon.
        limit: how much of what handlers write is sent; None for all.
        clock: seconds, monotonic.

    Attributes:
        due: by the clock, when the number of dropped lines is to be told; None if none was dropped.
    """

    def __init__(self, control: socket.socket, limit: OutputLimit | None, clock: Callable[[], float]) -> None:
        self._control = control
        self._queued = b""
        self._limit = limit
        self._clock = clock
        self._lock = allocate_lock()
        self._lines = self._bytes = 0
        self.due: float | None = None

    def send(self, message: Message) -> None:
        """Tell it now; in a launcher with threads, any of them may."""
        self._send(pack(message))

    def send_output(self, number: int, text: bytes) -> None:
        """Tell what a handler wrote, within the limit; any thread may."""
        with self._lock:
            if self._limit is not None and not self._limit.take(len(text)):
                self._lines += 1
                self._bytes += len(text)
                self.due = self.due or self._clock() + _DROPPED_INTERVAL
                return
        self.send(StderrLine(number, text))

    def send_dropped(self) -> None:
        """Tell how much was dropped, if it is time for that."""
        with self._lock:
            if self.due is None or self._clock() < self.due:
                return
            message, self.due = Dropped(self._lines, self._bytes), None
            self._lines = self._bytes = 0
        self.send(message)

    def queue(self, message: Message) -> None:
        """Tell it by the next flush(), in one packet with what else there is: each packet wakes the daemon."""
        self._queued += pack(message)
        if len(self._queued) > _MAX_QUEUED:
            self.flush()

    def flush(self) -> None:
        """Send what was noted."""
        if self._queued:
            packet, self._queued = self._queued, b""
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(packet)
