"""Messages between the daemon, the zygote and the launchers: packets of SOCK_SEQPACKET pairs.

The daemon does not trust the messages: a launcher has the rights of its handlers. The packet of a Connection carries
its descriptors, that of a LauncherStarted message one (SCM_RIGHTS, unix(7)).

Imports little, for bare interpreters.
"""

from __future__ import annotations

import contextlib
import struct
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from svcd.process.stderr import OutputLimit

__all__ = [
    "FD_STRUCT",
    "MAX_ENVIRONMENT",
    "MAX_FDS",
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
    "pack_fds",
    "parse",
    "parse_all",
    "unpack_fds",
]

#: The longest packet, in bytes.
MAX_PACKET = 65_536
#: The longest environment of a Connection message, in bytes.
MAX_ENVIRONMENT = MAX_PACKET - 16
#: The longest text of a Ready or a Changed message, in bytes.
MAX_REASON = 4096
#: How a descriptor is packed for SCM_RIGHTS, and the most descriptors of a Connection message.
FD_STRUCT = struct.Struct("i")
MAX_FDS = 2
#: Total length of queued messages from which they are sent at once, in bytes.
_MAX_QUEUED = 4096
#: Interval at which the number of dropped lines is sent, in seconds.
_DROPPED_INTERVAL = 1.0


class Connection(NamedTuple):
    """To a launcher, with the descriptor of a connection: serve it.

    For a CGI program the descriptor is the pipe of its output. A second one is the pipe of its input; without it the
    input is empty.

    Attributes:
        connection_id: the id of the connection, unique since the start of the daemon.
        environment: the variables that depend on the connection: NAME=VALUE, separated by NULs.
    """

    connection_id: int
    environment: bytes


class Signal(NamedTuple):
    """To a launcher, or to the zygote if the launcher was lost: send a signal to the process group of a handler.

    Attributes:
        connection_id: the connection.
        pid: the pid of the handler.
        signal: the number of the signal.
    """

    connection_id: int
    pid: int
    signal: int


class Ready(NamedTuple):
    """From a launcher: it is ready; or with a problem: it can't serve and exits."""

    problem: bytes = b""


class CheckModule(NamedTuple):
    """To a launcher, after a reload: read the time zone again (tzset(3)), and report if a module has changed on disk.

    The check covers the handler's module and the modules imported with it.
    """


class Changed(NamedTuple):
    """From a launcher, in answer to CheckModule: the name of a module that has changed."""

    module: bytes


class Idle(NamedTuple):
    """From a launcher: it has had no handler for `launcher_idle`, and exits if its socket is closed now."""


class Starting(NamedTuple):
    """From a launcher, before it starts a handler: if the launcher is lost after this, the handler may exist."""

    connection_id: int


class Started(NamedTuple):
    """From a launcher: the connection has a process.

    Attributes:
        connection_id: the connection.
        pid: the process; that of the launcher for a handler in a thread.
        nph: whether it is a CGI program that writes a whole HTTP response (RFC 3875, section 5).
    """

    connection_id: int
    pid: int
    nph: bool = False


class Failed(NamedTuple):
    """From a launcher: no process could be started for a connection, which is closed; `errno` is the reason."""

    connection_id: int
    errno: int


class Ended(NamedTuple):
    """From a launcher: a handler has exited.

    Attributes:
        connection_id: the connection.
        status: the exit status as of wait(2).
        user, system: CPU time in seconds.
        bytes_in, bytes_out: the bytes received from the client, and those acknowledged by it; -1 if not counted.
    """

    connection_id: int
    status: int
    user: float = 0.0
    system: float = 0.0
    bytes_in: int = -1
    bytes_out: int = -1


class StderrLine(NamedTuple):
    """From a launcher: handler output for the log, a line without its end or a whole traceback."""

    connection_id: int
    text: bytes


class Dropped(NamedTuple):
    """From a launcher: lines and bytes of handler output beyond `stderr_rate` since the last report."""

    lines: int
    bytes: int


class Kill(NamedTuple):
    """To the zygote: kill a launcher (SIGKILL)."""

    pid: int


class StartLauncher(NamedTuple):
    """To the zygote: start the launcher of a service.

    Attributes:
        row: the row of the service in the zygote's table.
        options: launcher options that differ from the table (launcher_options()); empty for none.
    """

    row: int
    options: bytes = b""


class LauncherStarted(NamedTuple):
    """From the zygote, with the launcher's socket: it runs; or with an errno and no socket: it was not started."""

    row: int
    pid: int
    errno: int = 0


class ChildExited(NamedTuple):
    """From the zygote: a launcher has exited, or a handler whose launcher exited before; `status` as of wait(2)."""

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

#: For each message: the first byte, the layout of the numbers that follow, and whether it ends in bytes.
_LAYOUTS: dict[type[Message], tuple[bytes, struct.Struct, bool]] = {
    Connection: (b"C", struct.Struct("=Q"), True),
    Signal: (b"S", struct.Struct("=Qii"), False),
    CheckModule: (b"K", struct.Struct("="), False),
    Ready: (b"R", struct.Struct("="), True),
    Idle: (b"I", struct.Struct("="), False),
    Starting: (b"B", struct.Struct("=Q"), False),
    Started: (b"P", struct.Struct("=Qi?"), False),
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
    """Return a message as the bytes of a packet, cut off at MAX_PACKET."""
    code, layout, tail = _LAYOUTS[type(message)]
    if not tail:
        return code + layout.pack(*message)
    values: tuple[Any, ...] = message
    return bytes(code + layout.pack(*values[:-1]) + values[-1])[:MAX_PACKET]


def parse(packet: bytes) -> Message:
    """Return the message of a packet.

    Raises:
        ValueError: it is not exactly one message.
    """
    messages = parse_all(packet)
    if len(messages) != 1:
        raise ValueError("a packet of several messages")
    return messages[0]


def parse_all(packet: bytes) -> list[Message]:
    """Return the messages of a packet, one or more; a message that ends in bytes is the last.

    Raises:
        ValueError: the packet is empty, has invalid content, or is longer than MAX_PACKET.
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


def pack_fds(fds: tuple[int, ...]) -> bytes:
    """Return descriptors as the data of SCM_RIGHTS."""
    return b"".join(map(FD_STRUCT.pack, fds))


def unpack_fds(rights: Iterable[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """Return the descriptors of a packet from its ancillary data."""
    return tuple(fd for _, _, data in rights for (fd,) in FD_STRUCT.iter_unpack(data[: len(data) // 4 * 4]))


class MessageWriter:
    """Sends a launcher's messages to the daemon as long as it runs.

    Args:
        control: the socket to the daemon.
        limit: the limit on handler output; None for no limit.
        clock: returns seconds, monotonic.

    Attributes:
        due: the time at which to send the number of dropped lines, by the clock; None if none was dropped.
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
        """Send a message now; any thread may call it."""
        self._send(pack(message))

    def send_output(self, number: int, text: bytes) -> None:
        """Send handler output, within the limit; any thread may call it."""
        with self._lock:
            if self._limit is not None and not self._limit.take(len(text)):
                self._lines += 1
                self._bytes += len(text)
                self.due = self.due or self._clock() + _DROPPED_INTERVAL
                return
        self.send(StderrLine(number, text))

    def send_dropped(self) -> None:
        """Send the number of dropped lines, if this is due."""
        with self._lock:
            if self.due is None or self._clock() < self.due:
                return
            message, self.due = Dropped(self._lines, self._bytes), None
            self._lines = self._bytes = 0
        self.send(message)

    def queue(self, message: Message) -> None:
        """Send a message by the next flush(), in one packet with others: each packet wakes the daemon."""
        self._queued += pack(message)
        if len(self._queued) > _MAX_QUEUED:
            self.flush()

    def flush(self) -> None:
        """Send the queued messages."""
        if self._queued:
            packet, self._queued = self._queued, b""
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(packet)
