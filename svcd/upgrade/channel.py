"""Messages of an upgrade between the old daemon, which serves, and the new daemon, which replaces it.

The daemons are connected by a pair of sockets (SOCK_SEQPACKET). Each packet is an assignment as in sd_notify(3):

1. `MAINPID=pid`, from the new daemon: the pid of the process that will serve.
2. `FAULTS=text`, from the new daemon: a line for each reason why a service can't be served.
3. `READY=1`, from the new daemon: all steps that may fail are done.
4. `GO=inode:pid,...`, from the old daemon, which has stopped accepting: the sockets that handler processes hold
   (wait=yes), whether this daemon or an earlier one started them; the new daemon watches these processes.
5. `SERVING=inode,...`, from the new daemon, which serves now: the held sockets for which it has no service.

End of file on the pair means that the other daemon has exited. The old daemon continues to serve then. The new daemon,
which has all sockets, starts to serve; therefore an old daemon that stops kills the new daemon first.
"""

from __future__ import annotations

import io
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from svcd.upgrade.handover import Handover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["CHANNEL_VARIABLE", "FAULTS", "GO", "MAINPID", "READY", "SERVING", "OldDaemon", "UpgradeChannel"]

#: Environment variable: pid of the new daemon, descriptor of the pair, and descriptor of standard error or -1.
CHANNEL_VARIABLE = "SVCD_PREDECESSOR"
GO, READY, SERVING, MAINPID, FAULTS = "GO", "READY", "SERVING", "MAINPID", "FAULTS"
#: The longest packet, in bytes: the inodes of all sockets that a daemon may have.
_MAX_PACKET = 131_072
#: The longest text of FAULTS=, in bytes.
_MAX_FAULTS = 60_000


@implementer(IReadDescriptor)
class UpgradeChannel:
    """End of the pair of sockets.

    Args:
        reactor: watches the socket.
        end: the socket. Takes ownership of it.
        received: called with the name and the value of each assignment.
        on_close: called when the other end is closed.
    """

    def __init__(
        self, reactor: FdReactor, end: socket.socket, received: Callable[[str, str], None], on_close: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._received = received
        self._on_close = on_close
        end.setblocking(False)
        reactor.addReader(self)

    def doRead(self) -> None:
        """Receive a packet, or end of file."""
        try:
            packet = self._end.recv(_MAX_PACKET)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if not packet:
            self.close()
            self._on_close()
            return
        name, _, value = packet.decode(errors="replace").partition("=")
        self._received(name, value)

    def close(self) -> None:
        """Close this end of the pair; do nothing if it is closed."""
        if self._end.fileno() >= 0:
            self._reactor.removeReader(self)
            self._end.close()

    def send(self, name: str, value: object = 1) -> None:
        """Send an assignment; errors are ignored, since end of file is received, too."""
        send(self._end, name, value)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor that the reactor watches."""
        return self._end.fileno()

    def logPrefix(self) -> str:
        """Return the log prefix of the reactor's messages."""
        return "upgrade"


def send(end: socket.socket, name: str, value: object = 1) -> None:
    """Send an assignment through an end of the pair; ignore errors."""
    try:
        end.send(f"{name}={value}".encode())
    except OSError:
        return


class _Pipe(io.FileIO):
    """Pipe that discards output after its reader has closed."""

    def write(self, data: Any) -> int:  # noqa: ANN401 - any bytes-like object
        """Write data; return its length even if the reader has closed."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


class OldDaemon:
    """Old daemon, seen from the new daemon that it has started; it serves until the new daemon serves.

    Until then sys.stderr is a pipe to the old daemon, which passes messages on to the user that requested the upgrade.
    Descriptor 2, which child processes and the interpreter itself use, is the real standard error.

    Args:
        end: the new daemon's end of the pair.
        stderr: the descriptor to move to standard error; -1 for none. Takes ownership of it.
        handover: data from the old daemon; None from older versions, which passed it in the environment.

    Attributes:
        handover: as given.
    """

    def __init__(self, end: socket.socket, stderr: int, handover: Handover | None = None) -> None:
        self._end = end
        self.handover = handover
        end.set_inheritable(False)
        pipe = io.BufferedWriter(_Pipe(os.dup(2), "w"))
        self._messages = io.TextIOWrapper(pipe, line_buffering=True, errors="backslashreplace")
        if stderr >= 0:
            os.dup2(stderr, 2)
            os.close(stderr)
        sys.stderr = sys.__stderr__ = self._messages  # type: ignore[misc]
        self._channel: UpgradeChannel | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], pid: int) -> OldDaemon | None:
        """Return the old daemon from the environment; None if there is none, or if the pid is that of another process.

        The variables are removed, so that child processes do not inherit them.
        """
        fields = environment.pop(CHANNEL_VARIABLE, "").split()
        if len(fields) != 3 or fields[0] != str(pid):
            return None
        return cls(socket.socket(fileno=int(fields[1])), int(fields[2]), Handover.from_environment(environment))

    def send_pid(self) -> None:
        """Send the pid of the process that will serve."""
        send(self._end, MAINPID, os.getpid())

    def send_ready(
        self,
        reactor: FdReactor,
        faults: Iterable[str],
        go: Callable[[Mapping[int, int]], None],
        on_close: Callable[[], None],
    ) -> None:
        """Send FAULTS= and READY=1: the new daemon is ready to serve.

        Args:
            reactor: watches the pair.
            faults: reasons why services can't be served, for the user that requested the upgrade.
            go: called when the new daemon has to start serving, with the pids of processes that hold sockets, by inode.
            on_close: called instead if the old daemon exits before.
        """

        def received(name: str, value: str) -> None:
            if name == GO:
                held = (each.split(":") for each in value.split(",") if each)
                go({int(inode): int(pid) for inode, pid in held})

        self._channel = UpgradeChannel(reactor, self._end, received, on_close)
        text = "\n".join(faults).encode(errors="replace")
        if text:
            self._channel.send(FAULTS, text[:_MAX_FAULTS].decode(errors="ignore"))
        self._channel.send(READY)

    def send_serving(self, unserved: Iterable[int]) -> None:
        """Send SERVING=: the new daemon serves; and restore sys.stderr.

        Args:
            unserved: the inodes of sockets that processes hold and for which the new daemon has no service.
        """
        assert self._channel is not None  # noqa: S101 - send_ready() comes first
        self._channel.send(SERVING, ",".join(map(str, unserved)))
        self._channel.close()
        sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]
        if sys.stderr is self._messages:
            sys.stderr = sys.__stderr__
        self._messages.close()
