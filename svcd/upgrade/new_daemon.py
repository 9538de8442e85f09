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

from svcd.process.pidfd import PidfdChild, is_ending
from svcd.upgrade.channel import FAULTS, GO, MAINPID, PREDECESSOR, READY, SERVING, UpgradeChannel
from svcd.upgrade.handover import HANDOVER, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["CommandLine", "NewDaemon", "UpgradeListener"]

#: Names that are longer together are in the handover alone, in bytes (execve(2), MAX_ARG_STRLEN).
_LONGEST_VARIABLE = 100_000
#: So many descriptors the new daemon may have beyond those that it is given, until it raises its limit.
_MORE_FILES = 256
#: Run by a bare interpreter, which becomes the program: only so can LISTEN_PID be right (sd_listen_fds(3)). Its
#: argument is the descriptor of the handover, which lists all descriptors: the sockets', the pair's, its own and, if
#: there is one, the standard error's. Each is moved to its place, from 3 on, with one more at a time, since there may
#: be as many as the limit allows; and the limit stays above them, or the program could not open a file.
_CODE = f"""
import fcntl, json, os, resource, sys
told = json.load(open(int(sys.argv[1]), closefd=False))
numbers, names, words, folder = told["descriptors"], told["names"], told["words"], told["folder"]
owners = {{each: index for index, each in enumerate(numbers)}}
for index in range(len(numbers)):
    source, target = numbers[index], 3 + index
    del owners[source]
    if source == target:
        continue
    if target in owners:
        owner = owners.pop(target)
        numbers[owner] = fcntl.fcntl(target, fcntl.F_DUPFD, 3)
        owners[numbers[owner]] = owner
    os.dup2(source, target)
    os.close(source)
pair = 3 + len(names)
stderr = pair + 2 if len(numbers) > len(names) + 2 else -1
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), {HANDOVER}=str(pair + 1),
    {PREDECESSOR}=f"{{os.getpid()}} {{pair}} {{stderr}}")
listed = ":".join(names)
if len(listed) < {_LONGEST_VARIABLE}:
    os.environ["LISTEN_FDNAMES"] = listed
soft, hard = told["open_files"]
if soft >= 0:
    soft = max(soft, len(numbers) + {_MORE_FILES})
    soft = soft if hard < 0 else min(soft, hard)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.chdir(folder)
    os.execv(words[0], words)
except OSError as error:
    sys.exit(f"svcd: can't start {{' '.join(words)}} in {{folder}}: {{error.strerror}}")
"""
#: So much of what it says is kept, its end, in bytes.
_MOST_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class CommandLine:
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


class UpgradeListener(Protocol):
    """Who is told of the new daemon."""

    def new_daemon_ready(self) -> None:
        """It could serve."""

    def new_daemon_serves(self, pid: int, unserved: frozenset[int]) -> None:
        """It does. It may be lost all the same, until it is left.

        Args:
            pid: of its process.
            unserved: the inodes of sockets that processes have and none of its services asks for.
        """

    def new_daemon_lost(self, reason: str, text: str, exit_status: int) -> None:
        """It has ended before it was left.

        Args:
            reason: in a few words.
            text: what it has said itself.
            exit_status: of the process that was started; negative for a signal.
        """


class NewDaemon:
    """The daemon that is to take our place.

    Args:
        reactor: watches it.
        program: what is started.
        sockets: what it gets, by name.
        upgrade_listener: is told.
        unanswered: names that lead to no address now, for which it need not wait either.

    Attributes:
        faults: what keeps services of it from being served, once it is ready.

    Raises:
        OSError: it can't be started.
    """

    def __init__(
        self,
        reactor: FdReactor,
        program: CommandLine,
        sockets: Sequence[tuple[str, socket.socket]],
        upgrade_listener: UpgradeListener,
        unanswered: Iterable[str] = (),
    ) -> None:
        self._reactor = reactor
        self._upgrade_listener = upgrade_listener
        self._serves = False
        self.faults: list[str] = []
        self._exit: _Exit | None = None
        self._status: int | None = None
        self._over = False
        self._gone = False
        self._handle = -1
        self._pid = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        try:
            self._child = _spawn(program, sockets, theirs, writing, unanswered)
        except BaseException:
            ours.close()
            os.close(reading)
            raise
        finally:
            theirs.close()
            os.close(writing)
        self._messages = _StderrReader(reactor, reading)
        self._channel = UpgradeChannel(reactor, ours, self._heard, self._lost)
        PidfdChild(reactor, self._child, self._ended)

    def _heard(self, name: str, value: str) -> None:
        if name == MAINPID:
            self._pid = int(value)
            # Should it have ended just now, we are about to hear of that.
            with contextlib.suppress(OSError):
                self._handle = os.pidfd_open(self._pid)
        elif name == FAULTS:
            self.faults = value.splitlines()
        elif name == READY:
            self._upgrade_listener.new_daemon_ready()
        elif name == SERVING and not self._over:
            # From now on its end is what tells that it is lost: it closes the pair, and whoever has started it in the
            # background has ended.
            self._serves = True
            self._upgrade_listener.new_daemon_serves(
                self._pid, frozenset(int(inode) for inode in value.split(",") if inode)
            )
            if self._handle >= 0:
                self._exit = _Exit(self._reactor, self._handle, self._lost_again)

    def go(self, held: Mapping[int, int]) -> None:
        """Let it serve, but for sockets that processes have: their pids by the inode of each."""
        self._channel.say(GO, ",".join(f"{inode}:{pid}" for inode, pid in held.items()))

    def leave(self) -> bool:
        """Let it be on its own, as it serves.

        Returns:
            Whether it does; else it is about to be lost.
        """
        if is_ending(self._pid, self._handle):
            if self._handle < 0:
                self._lost_again()
            return False
        self._finish()
        return True

    def _lost_again(self) -> None:
        if not self._over:
            text = self._messages.text()
            self._finish()
            self._upgrade_listener.new_daemon_lost("it has ended as soon as it served", text, self._status or 1)

    def _lost(self) -> None:
        self._gone = True
        self._tell()

    def _ended(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self._tell()

    def _tell(self) -> None:
        """It is lost when nobody has the other end any more, and its status is known."""
        if self._over or self._serves or not self._gone or self._status is None:
            return
        self._finish()
        code = self._status
        reason = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it has ended, with status {code}"
        self._upgrade_listener.new_daemon_lost(reason, self._messages.text(), code)

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
        if self._exit is not None:
            self._exit.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _spawn(
    program: CommandLine,
    sockets: Sequence[tuple[str, socket.socket]],
    pair: socket.socket,
    writing: int,
    unanswered: Iterable[str],
) -> int:
    """Start the program with sockets, its end of the pair, and its standard error; returns its pid."""
    given = [*(each.fileno() for _, each in sockets), pair.fileno()]
    # Where the program opens its first descriptor is not known yet: the place is kept free for the handover itself.
    extra = [os.open(os.devnull, os.O_RDONLY)]
    try:
        if program.foreground:
            # Another number of our own standard error: the program has the pipe there for now.
            extra.append(os.dup(2))
        values = {
            "descriptors": [*given, *extra],
            "names": [name for name, _ in sockets],
            "open_files": program.open_files,
            "folder": program.folder,
            "words": program.words,
            "unanswered": list(unanswered),
        }
        handover = write(values)
        os.dup2(handover, extra[0], inheritable=False)
        os.close(handover)
        # To a descriptor's own number: it stays open then (posix_spawn_file_actions_adddup2(3)).
        actions = [(os.POSIX_SPAWN_DUP2, each, each) for each in [*given, *extra]]
        actions.append((os.POSIX_SPAWN_DUP2, writing, 2))
        words = [sys.executable, "-I", "-S", "-c", _CODE, str(extra[0])]
        return os.posix_spawn(sys.executable, words, dict(program.environment), file_actions=actions)
    finally:
        for each in extra:
            os.close(each)


@implementer(IReadDescriptor)
class _Exit:
    """The end of a process that is no child.

    Args:
        reactor: watches it.
        pidfd: of the process, which the caller closes.
        ended: called once, when it has ended.
    """

    def __init__(self, reactor: FdReactor, pidfd: int, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self._pidfd = pidfd
        self._ended = ended
        reactor.addReader(self)

    def doRead(self) -> None:
        """It has ended."""
        self.close()
        self._ended()

    def close(self) -> None:
        """Watch it no more."""
        self._reactor.removeReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._pidfd

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "upgrade"


@implementer(IReadDescriptor)
class _StderrReader:
    """What the program says on its standard error.

    Args:
        reactor: watches it.
        reading: the pipe's end; it is closed by close().
    """

    def __init__(self, reactor: FdReactor, reading: int) -> None:
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
