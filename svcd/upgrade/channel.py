"""An upgrade, as the two daemons speak of it: the one that serves, and the one that takes its place.

They share a pair of sockets, on which each packet is an assignment as of sd_notify(3). The new one says `MAINPID=n` as
soon as it is the process that will serve, `FAULTS=` with a line for each fault that keeps a service from being served,
`READY=1` when everything is done that may fail, and `SERVING=1` when it
serves, with the inodes of sockets that it has no service for. Before that it hears `GO=inode:pid,...` from the old
one, which has stopped accepting then: the sockets that processes have (wait=yes), be they the old one's or of a daemon
before it; the new one watches them itself. Each knows by the end of the pair that the other one is gone: the old one
goes on then, and so does the new one, which has all the sockets. An old daemon that is told to stop therefore ends the
new one first.
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

__all__ = ["FAULTS", "GO", "MAINPID", "PREDECESSOR", "READY", "SERVING", "OldDaemon", "UpgradeChannel"]

#: Names the process that it is meant for, the descriptor of the pair, and the one of the standard error, or -1.
PREDECESSOR = "SVCD_PREDECESSOR"
GO, READY, SERVING, MAINPID, FAULTS = "GO", "READY", "SERVING", "MAINPID", "FAULTS"
#: The longest packet, in bytes: inodes of all sockets that there may be.
_LONGEST = 131_072
#: The longest text of faults, in bytes.
_LONGEST_TEXT = 60_000


@implementer(IReadDescriptor)
class UpgradeChannel:
    """One end of the pair.

    Args:
        reactor: watches it.
        end: it.
        heard: called with the name and the value of each assignment.
        gone: called when the other side has closed its end.
    """

    def __init__(
        self, reactor: FdReactor, end: socket.socket, heard: Callable[[str, str], None], gone: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._heard = heard
        self._gone = gone
        end.setblocking(False)
        reactor.addReader(self)

    def doRead(self) -> None:
        """The other side says something, or nothing any more."""
        try:
            packet = self._end.recv(_LONGEST)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if not packet:
            self.close()
            self._gone()
            return
        name, _, value = packet.decode(errors="replace").partition("=")
        self._heard(name, value)

    def close(self) -> None:
        """There is nothing more to say, or to hear."""
        if self._end.fileno() >= 0:
            self._reactor.removeReader(self)
            self._end.close()

    def say(self, name: str, value: object = 1) -> None:
        """Say it; whether the other side is there to hear it shows when it is heard no more."""
        say(self._end, name, value)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._end.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "upgrade"


def say(end: socket.socket, name: str, value: object = 1) -> None:
    """Say something at an end of the pair."""
    try:
        end.send(f"{name}={value}".encode())
    except OSError:
        return


class _Pipe(io.FileIO):
    """A pipe that takes what is written also when nobody reads any more."""

    def write(self, data: Any) -> int:  # noqa: ANN401 - bytes, or what is like them
        """Write it, or lose it."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


class OldDaemon:
    """The daemon before us, which has started us and serves until we can.

    Our messages for whoever starts a daemon go to it meanwhile: it tells its user. The standard error of processes that
    we start, and of the interpreter itself, is the real one.

    Args:
        end: of the pair.
        stderr: what is to be our standard error; -1 for none.
        handover: what it has told us; None from older versions, which had it all in the environment.

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
        """The one that the environment names; its variable is taken out, for it is not our children's."""
        words = environment.pop(PREDECESSOR, "").split()
        if len(words) != 3 or words[0] != str(pid):
            return None
        return cls(socket.socket(fileno=int(words[1])), int(words[2]), Handover.from_environment(environment))

    def begin(self) -> None:
        """Say which process will serve."""
        say(self._end, MAINPID, os.getpid())

    def ready(
        self,
        reactor: FdReactor,
        faults: Iterable[str],
        go: Callable[[Mapping[int, int]], None],
        gone: Callable[[], None],
    ) -> None:
        """Say that we could serve.

        Args:
            reactor: watches the pair.
            faults: what keeps services from being served, for whoever has asked for the upgrade.
            go: called when we are to, with the processes that have sockets, by the inode of each.
            gone: called when the other daemon has ended before, instead.
        """

        def heard(name: str, value: str) -> None:
            if name == GO:
                held = (each.split(":") for each in value.split(",") if each)
                go({int(inode): int(pid) for inode, pid in held})

        self._channel = UpgradeChannel(reactor, self._end, heard, gone)
        text = "\n".join(faults).encode(errors="replace")
        if text:
            self._channel.say(FAULTS, text[:_LONGEST_TEXT].decode(errors="ignore"))
        self._channel.say(READY)

    def serving(self, unserved: Iterable[int]) -> None:
        """Say that we serve.

        Args:
            unserved: the inodes of sockets that processes have and no service of ours asks for.
        """
        assert self._channel is not None  # noqa: S101 - ready() comes first
        self._channel.say(SERVING, ",".join(map(str, unserved)))
        self._channel.close()
        sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]
        if sys.stderr is self._messages:
            sys.stderr = sys.__stderr__
        self._messages.close()
