"""New daemon: the program of the daemon started again, with the sockets of the old daemon and a channel to it."""

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
from svcd.upgrade.channel import CHANNEL_VARIABLE, FAULTS, GO, MAINPID, READY, SERVING, UpgradeChannel
from svcd.upgrade.handover import HANDOVER_VARIABLE, write_handover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["CommandLine", "NewDaemon", "UpgradeListener"]

#: The longest value of LISTEN_FDNAMES, in bytes (execve(2), MAX_ARG_STRLEN); a longer value is in the handover only.
_MAX_VARIABLE = 100_000
#: The number of descriptors that the new daemon may open, in addition to passed ones, before it raises its limit.
_SPARE_FILES = 256
#: Code of an interpreter that execs the program, since LISTEN_PID must be its own pid (sd_listen_fds(3)). Its argument
#: is the descriptor of the handover, which lists all descriptors: the sockets, the pair, the handover and optionally
#: standard error. Each is moved to its number, from 3 on, using a single extra descriptor at a time, since the limit
#: may be exhausted; the limit stays above them, so that the program can open files.
_CODE = f"""
import fcntl, json, os, resource, sys
handover = json.load(open(int(sys.argv[1]), closefd=False))
numbers, names = handover["descriptors"], handover["names"]
argv, directory = handover["argv"], handover["directory"]
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
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), {HANDOVER_VARIABLE}=str(pair + 1),
    {CHANNEL_VARIABLE}=f"{{os.getpid()}} {{pair}} {{stderr}}")
listed = ":".join(names)
if len(listed) < {_MAX_VARIABLE}:
    os.environ["LISTEN_FDNAMES"] = listed
soft, hard = handover["open_files"]
if soft >= 0:
    soft = max(soft, len(numbers) + {_SPARE_FILES})
    soft = soft if hard < 0 else min(soft, hard)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.chdir(directory)
    os.execv(argv[0], argv)
except OSError as error:
    sys.exit(f"svcd: can't start {{' '.join(argv)}} in {{directory}}: {{error.strerror}}")
"""
#: The maximum length of standard error that is kept, in bytes; the end is kept.
_MAX_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Command line of the daemon, and the state in which it was started.

    Attributes:
        argv: the arguments, including the interpreter.
        directory: the working directory.
        environment: the environment, without the variables that are for that process alone.
        open_files: the soft and hard RLIMIT_NOFILE.
        foreground: whether the daemon stayed in the foreground, so that its standard error is in use.
    """

    argv: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    open_files: tuple[int, int]
    foreground: bool


class UpgradeListener(Protocol):
    """Receiver of events of the new daemon."""

    def new_daemon_ready(self) -> None:
        """Handle READY=1: the new daemon is ready to serve."""

    def new_daemon_serves(self, pid: int, unserved: frozenset[int]) -> None:
        """Handle SERVING=: the new daemon serves. It may still be lost until release().

        Args:
            pid: the pid of its process.
            unserved: the inodes of sockets that processes hold and for which the new daemon has no service.
        """

    def new_daemon_lost(self, reason: str, text: str, exit_status: int) -> None:
        """Handle the exit of the new daemon before release().

        Args:
            reason: a short text.
            text: its output on standard error.
            exit_status: the exit status of the process that was started; negative for a signal.
        """


class NewDaemon:
    """New daemon, seen from the old daemon.

    Args:
        reactor: watches the descriptors.
        program: the command line to start.
        sockets: the sockets to pass, with their names.
        upgrade_listener: gets the events of the new daemon.
        unanswered: names in bind= without an address now; the new daemon looks them up with a short time limit.

    Attributes:
        faults: the reasons why it can't serve some services; set when it is ready.

    Raises:
        OSError: the program can't be started.
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
        self._serving = False
        self.faults: list[str] = []
        self._process_exit: _ProcessExit | None = None
        self._status: int | None = None
        self._finished = False
        self._pair_closed = False
        self._pidfd = -1
        self._pid = 0
        own_end, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipe, stderr = os.pipe()
        try:
            self._child_pid = _spawn(program, sockets, other_end, stderr, unanswered)
        except BaseException:
            own_end.close()
            os.close(pipe)
            raise
        finally:
            other_end.close()
            os.close(stderr)
        self._stderr = _StderrReader(reactor, pipe)
        self._channel = UpgradeChannel(reactor, own_end, self._received, self._channel_closed)
        PidfdChild(reactor, self._child_pid, self._child_exited)

    def _received(self, name: str, value: str) -> None:
        if name == MAINPID:
            self._pid = int(value)
            # The exit of a process that has just ended is noticed by end of file on the pair.
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self._pid)
        elif name == FAULTS:
            self.faults = value.splitlines()
        elif name == READY:
            self._upgrade_listener.new_daemon_ready()
        elif name == SERVING and not self._finished:
            # From now on only the pidfd shows the exit: the new daemon closes the pair, and the process that was
            # started has exited if the new daemon runs in the background.
            self._serving = True
            self._upgrade_listener.new_daemon_serves(
                self._pid, frozenset(int(inode) for inode in value.split(",") if inode)
            )
            if self._pidfd >= 0:
                self._process_exit = _ProcessExit(self._reactor, self._pidfd, self._lost_while_serving)

    def send_go(self, holders: Mapping[int, int]) -> None:
        """Send GO=: the new daemon has to start serving.

        Args:
            holders: the pids of processes that hold sockets, by inode; the new daemon waits for their exit.
        """
        self._channel.send(GO, ",".join(f"{inode}:{pid}" for inode, pid in holders.items()))

    def release(self) -> bool:
        """Stop watching a new daemon that serves.

        Returns:
            Whether the new daemon is running; otherwise new_daemon_lost() follows.
        """
        if is_ending(self._pid, self._pidfd):
            if self._pidfd < 0:
                self._lost_while_serving()
            return False
        self._finish()
        return True

    def _lost_while_serving(self) -> None:
        """Report the exit of a new daemon that has just begun to serve."""
        if not self._finished:
            text = self._stderr.text()
            self._finish()
            self._upgrade_listener.new_daemon_lost("it has ended as soon as it served", text, self._status or 1)

    def _channel_closed(self) -> None:
        self._pair_closed = True
        self._check_lost()

    def _child_exited(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self._check_lost()

    def _check_lost(self) -> None:
        """Report the loss once the other end of the pair is closed and the exit status is known."""
        if self._finished or self._serving or not self._pair_closed or self._status is None:
            return
        self._finish()
        code = self._status
        reason = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it has ended, with status {code}"
        self._upgrade_listener.new_daemon_lost(reason, self._stderr.text(), code)

    def kill(self) -> str:
        """Kill the new daemon; return its output on standard error."""
        if self._status is None:
            # The process is not reaped yet, so its pid is not reused.
            os.kill(self._child_pid, signal.SIGKILL)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._finish()
        self._channel.close()
        return self._stderr.text()

    def _finish(self) -> None:
        self._finished = True
        self._stderr.close()
        if self._process_exit is not None:
            self._process_exit.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _spawn(
    program: CommandLine,
    sockets: Sequence[tuple[str, socket.socket]],
    pair: socket.socket,
    stderr: int,
    unanswered: Iterable[str],
) -> int:
    """Start the program with the sockets, its end of the pair, and its standard error; return its pid."""
    given = [*(each.fileno() for _, each in sockets), pair.fileno()]
    # This reserves a descriptor for the handover, which has to contain its own number.
    extra = [os.open(os.devnull, os.O_RDONLY)]
    try:
        if program.foreground:
            # A duplicate of the real standard error: descriptor 2 of the program is the pipe for now.
            extra.append(os.dup(2))
        values = {
            "descriptors": [*given, *extra],
            "names": [name for name, _ in sockets],
            "open_files": program.open_files,
            "directory": program.directory,
            "argv": program.argv,
            "unanswered": list(unanswered),
        }
        handover = write_handover(values)
        os.dup2(handover, extra[0], inheritable=False)
        os.close(handover)
        # Duplicating a descriptor onto itself clears FD_CLOEXEC (posix_spawn_file_actions_adddup2(3)).
        actions = [(os.POSIX_SPAWN_DUP2, each, each) for each in [*given, *extra]]
        actions.append((os.POSIX_SPAWN_DUP2, stderr, 2))
        argv = [sys.executable, "-I", "-S", "-c", _CODE, str(extra[0])]
        return os.posix_spawn(sys.executable, argv, dict(program.environment), file_actions=actions)
    finally:
        for each in extra:
            os.close(each)


@implementer(IReadDescriptor)
class _ProcessExit:
    """Watcher of the exit of a process that is no child.

    Args:
        reactor: watches the pidfd.
        pidfd: the pidfd of the process; the caller keeps ownership.
        on_exit: called once, when the process has exited.
    """

    def __init__(self, reactor: FdReactor, pidfd: int, on_exit: Callable[[], None]) -> None:
        self._reactor = reactor
        self._pidfd = pidfd
        self._on_exit = on_exit
        reactor.addReader(self)

    def doRead(self) -> None:
        """Call on_exit()."""
        self.close()
        self._on_exit()

    def close(self) -> None:
        """Stop watching the process."""
        self._reactor.removeReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor that the reactor watches."""
        return self._pidfd

    def logPrefix(self) -> str:
        """Return the log prefix of the reactor's messages."""
        return "upgrade"


@implementer(IReadDescriptor)
class _StderrReader:
    """Reader of the new daemon's standard error.

    Args:
        reactor: watches the pipe.
        pipe: the read end of the pipe. Takes ownership of it.
    """

    def __init__(self, reactor: FdReactor, pipe: int) -> None:
        self._reactor = reactor
        self._pipe = pipe
        self._text = b""
        os.set_blocking(pipe, False)
        reactor.addReader(self)

    def doRead(self) -> None:
        """Read output; stop reading at its end."""
        if not self._read():
            self._reactor.removeReader(self)

    def _read(self) -> bytes:
        try:
            data = os.read(self._pipe, _MAX_TEXT)
        except BlockingIOError:
            return b""
        self._text = (self._text + data)[-_MAX_TEXT:]
        return data

    def text(self) -> str:
        """Return the end of the output read so far."""
        return self._text.decode(errors="replace").strip()

    def close(self) -> None:
        """Read the rest of the pipe's content, and close the pipe."""
        if self._pipe >= 0:
            self._reactor.removeReader(self)
            while self._read():
                pass
            os.close(self._pipe)
            self._pipe = -1

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor that the reactor watches."""
        return self._pipe

    def logPrefix(self) -> str:
        """Return the log prefix of the reactor's messages."""
        return "upgrade"
