"""The program of the daemon itself, started once more: with its sockets, and in touch with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from svcd.handlers.child import Child
from svcd.transport.succession import GO, MAINPID, PREDECESSOR, READY, SERVING, Channel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from twisted.python.failure import Failure

    from svcd.interfaces import Watcher

__all__ = ["Heir", "Program", "Successor"]

#: Run by a bare interpreter, which becomes the program: only so can LISTEN_PID be right (sd_listen_fds(3)). Its
#: arguments are the descriptors, the sockets' first, then the pair's and, if there is one, the standard error's; how
#: many sockets there are; the limit of open files; the folder; and the program's command line.
_CODE = f"""
import fcntl, os, resource, sys
listed, sockets, soft, hard, folder, *words = sys.argv[1:]
numbers = [int(each) for each in listed.split(",")]
moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 3 + len(numbers)) for each in numbers]
for each in numbers:
    os.close(each)
for place, each in enumerate(moved):
    os.dup2(each, 3 + place)
pair = 3 + int(sockets)
stderr = pair + 1 if len(numbers) > int(sockets) + 1 else -1
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sockets, {PREDECESSOR}=f"{{os.getpid()}} {{pair}} {{stderr}}")
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
    os.chdir(folder)
    os.execv(words[0], words)
except OSError as error:
    sys.exit(f"svcd: can't start {{' '.join(words)}} in {{folder}}: {{error.strerror}}")
"""
#: So much of what it says is kept, its end, in bytes.
_MOST_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class Program:
    """How the daemon was started.

    Attributes:
        words: its command line, with the interpreter.
        folder: where.
        environment: with which, but for what was meant for that one process.
        open_files: with which limit of open files, soft and hard.
        foreground: whether it stayed there, so that its standard error is somebody's.
    """

    words: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    open_files: tuple[int, int]
    foreground: bool


class Heir(Protocol):
    """Who is told of the new daemon."""

    def successor_ready(self) -> None:
        """It could serve."""

    def successor_serves(self, pid: int, unserved: frozenset[int]) -> None:
        """It does.

        Args:
            pid: of its process.
            unserved: the inodes of sockets that processes have and none of its services asks for.
        """

    def successor_lost(self, reason: str, text: str, exit_status: int) -> None:
        """It has ended before that.

        Args:
            reason: in a few words.
            text: what it has said itself.
            exit_status: of the process that was started; negative for a signal.
        """


class Successor:
    """The daemon that is to take our place.

    Args:
        reactor: watches it.
        program: what is started.
        sockets: what it gets, by name.
        heir: is told.

    Raises:
        OSError: it can't be started.
    """

    def __init__(
        self, reactor: Watcher, program: Program, sockets: Sequence[tuple[str, socket.socket]], heir: Heir
    ) -> None:
        self._heir = heir
        self._status: int | None = None
        self._over = False
        self._gone = False
        self._handle = -1
        self._pid = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        try:
            given = [*(each.fileno() for _, each in sockets), theirs.fileno()]
            names = ":".join(name for name, _ in sockets)
            self._child = _spawn(program, given, names, writing)
        except BaseException:
            ours.close()
            os.close(reading)
            raise
        finally:
            theirs.close()
            os.close(writing)
        self._messages = _Messages(reactor, reading)
        self._channel = Channel(reactor, ours, self._heard, self._lost)
        Child(reactor, self._child, self._ended)

    def _heard(self, name: str, value: str) -> None:
        if name == MAINPID:
            self._pid = int(value)
            # Should it have ended just now, we are about to hear of that.
            with contextlib.suppress(OSError):
                self._handle = os.pidfd_open(self._pid)
        elif name == READY:
            self._heir.successor_ready()
        elif name == SERVING:
            # It closes the pair.
            self._finish()
            self._heir.successor_serves(self._pid, frozenset(int(inode) for inode in value.split(",") if inode))

    def go(self, held: Mapping[int, int]) -> None:
        """Let it serve, but for sockets that processes have: their pids by the inode of each."""
        self._channel.say(GO, ",".join(f"{inode}:{pid}" for inode, pid in held.items()))

    def _lost(self) -> None:
        self._gone = True
        self._tell()

    def _ended(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self._tell()

    def _tell(self) -> None:
        """It is lost when nobody has the other end any more, and its status is known."""
        if self._over or not self._gone or self._status is None:
            return
        self._finish()
        code = self._status
        reason = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it has ended, with status {code}"
        self._heir.successor_lost(reason, self._messages.text(), code)

    def end(self) -> str:
        """End it, whatever it does; what it has said."""
        if self._status is None:
            # It is not reaped yet, so the number is its own.
            os.kill(self._child, signal.SIGKILL)
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self._finish()
        self._channel.close()
        return self._messages.text()

    def _finish(self) -> None:
        self._over = True
        self._messages.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _spawn(program: Program, given: list[int], names: str, writing: int) -> int:
    """Start the program with descriptors: the sockets', and at the end the pair's; returns its pid."""
    sockets = len(given) - 1
    # Another number of our own standard error: the program has the pipe there for now.
    stderr = [os.dup(2)] if program.foreground else []
    given = [*given, *stderr]
    words = [sys.executable, "-I", "-S", "-c", _CODE, ",".join(map(str, given)), str(sockets)]
    words += [*map(str, program.open_files), program.folder, *program.words]
    # To a descriptor's own number: it stays open then (posix_spawn_file_actions_adddup2(3)).
    actions = [(os.POSIX_SPAWN_DUP2, each, each) for each in given]
    actions.append((os.POSIX_SPAWN_DUP2, writing, 2))
    environment = {**program.environment, "LISTEN_FDNAMES": names}
    try:
        return os.posix_spawn(sys.executable, words, environment, file_actions=actions)
    finally:
        for each in stderr:
            os.close(each)


@implementer(IReadDescriptor)
class _Messages:
    """What the program says on its standard error.

    Args:
        reactor: watches it.
        reading: the pipe's end; it is closed by close().
    """

    def __init__(self, reactor: Watcher, reading: int) -> None:
        self._reactor = reactor
        self._reading = reading
        self._kept = b""
        os.set_blocking(reading, False)
        reactor.addReader(self)

    def doRead(self) -> None:
        """It has said something."""
        if not self._read():
            self._reactor.removeReader(self)

    def _read(self) -> bytes:
        try:
            data = os.read(self._reading, _MOST_TEXT)
        except BlockingIOError:
            return b""
        self._kept = (self._kept + data)[-_MOST_TEXT:]
        return data

    def text(self) -> str:
        """All that there was."""
        return self._kept.decode(errors="replace").strip()

    def close(self) -> None:
        """Take what is there, and no more."""
        if self._reading >= 0:
            self._reactor.removeReader(self)
            while self._read():
                pass
            os.close(self._reading)
            self._reading = -1

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._reading

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "upgrade"
