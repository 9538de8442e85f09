"""The daemon's end of the nursery: starts it, asks it for launchers, hears of deaths."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

import svcd
from svcd.events import NURSERY, NURSERY_LOST, tell
from svcd.handlers.child import Child
from svcd.handlers.link import Link
from svcd.handlers.messages import LARGEST, ONE_DESCRIPTOR, Gone, Launch, Launched, pack, read
from svcd.handlers.nursery import TABLE_DESCRIPTOR
from svcd.handlers.orders import Orders
from svcd.handlers.spec import Spec, dump

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from svcd.handlers.reports import Reports
    from svcd.interfaces import Watcher

__all__ = ["Nurse"]

#: Run by a bare interpreter: the standard library first, then us, and nothing that an environment or a folder adds.
_CODE = "import sys; sys.path.append({root!r}); from svcd.handlers.nursery import main; main()"
#: A nursery that was lost is started again after so many seconds.
_PAUSE = 1.0


@implementer(IReadDescriptor)
class Nurse:
    """Has a nursery, and through it a launcher for each spawned service.

    Args:
        reactor: watches descriptors and time.
    """

    _log = Logger()

    def __init__(self, reactor: Watcher) -> None:
        self._reactor = reactor
        self._specs: list[Spec] = []
        self._links: list[Link] = []
        self._socket: socket.socket | None = None
        self._signals = Orders(reactor)
        self._stopping: Deferred[None] | None = None

    def link(self, spec: Spec, reports: Reports) -> Link:
        """Take a service in, before the nursery starts."""
        row = len(self._specs)
        self._specs.append(spec)
        link = Link(self._reactor, spec.name, lambda: self._ask(row), self._signals.signal, reports)
        self._links.append(link)
        return link

    @property
    def services(self) -> frozenset[str]:
        """The services that have a launcher here."""
        return frozenset(spec.name for spec in self._specs)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do any more."""
        return all(link.stopped for link in self._links)

    def start(self) -> None:
        """Start the nursery, with the rights that the daemon has now. Without services there is nothing to start.

        Raises:
            OSError: there can't be another process.
        """
        if not self._specs:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        table = os.memfd_create("svcd-services")
        try:
            os.write(table, dump(tuple(self._specs)))
            root = str(Path(svcd.__file__).parent.parent)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _CODE.format(root=root)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    # A descriptor that has the right number already would be closed by the execution.
                    (os.POSIX_SPAWN_DUP2, table, TABLE_DESCRIPTOR + 1),
                    (os.POSIX_SPAWN_DUP2, TABLE_DESCRIPTOR + 1, TABLE_DESCRIPTOR),
                    (os.POSIX_SPAWN_CLOSE, TABLE_DESCRIPTOR + 1),
                ],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(table)
        ours.setblocking(False)
        self._socket = ours
        self._signals.serve(ours)
        self._reactor.addReader(self)
        Child(self._reactor, pid, self._ended)
        tell(self._log, NURSERY, pid=pid, state="started")

    def _ask(self, row: int) -> None:
        if self._socket is None:
            self._links[row].lost("there is no nursery")
            return
        try:
            self._socket.send(pack(Launch(row)))
        except OSError as error:
            # It has just ended, which we are about to hear, or it has more to do than it can.
            self._links[row].lost(f"the nursery takes no order: {error.strerror}")

    def doRead(self) -> None:
        """The nursery says something."""
        assert self._socket is not None  # noqa: S101 - it is watched as long as it is there
        try:
            packet, rights, _, _ = self._socket.recvmsg(
                LARGEST, socket.CMSG_SPACE(ONE_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionResetError:
            # It ended with orders unread; what it said before comes after this (unix(7)).
            return
        if not packet:
            self._lose()
            return
        match read(packet):
            case Launched(row, pid, errno) if rights:
                (descriptor,) = ONE_DESCRIPTOR.unpack(rights[0][2])
                self._links[row].attach(socket.socket(fileno=descriptor), pid)
            case Launched(row, _, errno):
                self._links[row].lost(os.strerror(errno))
            case Gone(pid, status):
                for link in self._links:
                    link.orphan_ended(pid, status)

    def _lose(self) -> None:
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
            # Who is left now is nobody's child that we know.
            self._signals.take_signals()
            list(self._signals.lose())

    def _ended(self, status: int) -> None:
        """The process is gone: ours to end, or by accident, which launchers survive."""
        self._lose()
        if self._stopping is not None:
            self._stopping.callback(None)
            return
        code = os.waitstatus_to_exitcode(status)
        tell(self._log, NURSERY_LOST, state="lost", reason=f"signal {-code}" if code < 0 else f"exit {code}")
        for link in self._links:
            link.forget()
        self._reactor.callLater(_PAUSE, self._again)

    def _again(self) -> None:
        if self._stopping is not None:
            return
        try:
            self.start()
        except OSError as error:
            tell(self._log, NURSERY, state="lost", reason=error.strerror)
            self._reactor.callLater(_PAUSE, self._again)

    def stop(self) -> Deferred[None]:
        """Let the launchers end, then the nursery; fires when it is gone. Handlers that run go on."""
        for link in self._links:
            link.stop()
        if self._socket is None:
            return succeed(None)
        self._stopping = self._stopping or Deferred()
        self._lose()
        return self._stopping

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "nursery"
