"""The daemon's end of a launcher: hands connections over, passes reports on, has a lost launcher started again."""

from __future__ import annotations

import contextlib
import os
import socket
from signal import SIGTERM
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.events import LAUNCHER, tell
from svcd.handlers.backoff import Backoff
from svcd.handlers.messages import (
    LARGEST,
    ONE_DESCRIPTOR,
    Connection,
    Ended,
    Failed,
    Ready,
    Said,
    Signal,
    Started,
    pack,
    read,
)
from svcd.handlers.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.handlers.reports import Reports
    from svcd.interfaces import Watcher

__all__ = ["MOST_WAITING", "Link"]

#: So many connections at most wait in the daemon for their process; more wait in the kernel, not accepted.
MOST_WAITING = 64
#: A connection whose launcher was lost so often before it could be started is what kills it.
_MOST_TRIES = 3
#: Reports taken in one go before other descriptors have their turn.
_BATCH = 64


@implementer(IReadDescriptor)
class Link:
    """One service's launcher, as the daemon knows it.

    Args:
        reactor: watches descriptors and time.
        service: the service's name, for the log.
        launch: asks the nursery for a launcher; `attach` is called with it, or `lost` if there is none.
        reports: told what becomes of connections.

    Attributes:
        ready: whether it has a launcher that can serve.
        stopped: whether it has ended for good.
        pids: of the launcher's running handlers, by the number of their connection.
        orphans: of those whose launcher was lost, the same.
    """

    _log = Logger()

    def __init__(self, reactor: Watcher, service: str, launch: Callable[[], None], reports: Reports) -> None:
        self._reactor = reactor
        self._service = service
        self._launch = launch
        self._reports = reports
        self._socket: socket.socket | None = None
        self._pid = 0
        self._since = 0.0
        self.ready = False
        self._asked = False
        self._successor: Link | None = None
        self.stopped = False
        self._backoff = Backoff()
        self._retry: IDelayedCall | None = None
        self._waiting: dict[int, Waiting] = {}
        self.pids: dict[int, int] = {}
        self.orphans: dict[int, int] = {}

    @property
    def full(self) -> bool:
        """Whether no more connections may be handed over now."""
        return len(self._waiting) >= MOST_WAITING

    def start(self, number: int, environment: bytes, descriptor: int) -> None:
        """Let a connection have its process; the descriptor is the link's to close from now on."""
        self.inherit(number, Waiting(pack(Connection(number, environment)), descriptor))

    def drop(self, number: int) -> bool:
        """Close a connection that has no process yet; returns whether it had none."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            os.close(waiting.descriptor)
        return waiting is not None

    def signal(self, number: int, number_of_signal: int) -> None:
        """Send a signal to the process group of a connection."""
        pid = self.pids.get(number) or self.orphans.get(number)
        if pid and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(pack(Signal(number, pid, number_of_signal)))

    def wake(self) -> None:
        """Have a launcher, if none is there or on its way."""
        if self._socket is None and not self._asked and self._retry is None and not self.stopped:
            self._asked = True
            self._launch()

    def attach(self, sock: socket.socket, pid: int) -> None:
        """Here is the launcher that was asked for."""
        self._asked = False
        if self.stopped:
            sock.close()
            return
        sock.setblocking(False)
        self._socket = sock
        self._pid = pid
        self._since = self._reactor.seconds()
        self._reactor.addReader(self)

    def doRead(self) -> None:
        """The launcher says something."""
        for _ in range(_BATCH):
            if self._socket is None:
                return
            try:
                packet = self._socket.recv(LARGEST)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended with orders unread. What it said before comes after this (unix(7)), and then the end.
                continue
            if not packet:
                self.lost("its process has ended")
                return
            try:
                self._take(packet)
            except ValueError:
                self.lost("it said what no launcher says")
                return

    def _take(self, packet: bytes) -> None:
        report = read(packet)
        match report:
            case Started(number, pid):
                self.pids[number] = pid
                if self._begun(number):
                    self._reports.started(number, pid)
                else:
                    # It was given up while it was on its way.
                    self.signal(number, SIGTERM)
                    del self.pids[number]
            case Ended(number):
                if self.pids.pop(number, None) is not None:
                    self._reports.ended(report)
                    self._leave()
            case Failed(number, errno):
                # A thread is told as started first.
                if self._begun(number) or self.pids.pop(number, None) is not None:
                    self._reports.failed(number, errno)
                    self._leave()
            case Said(number, text):
                self._reports.said(number, text)
            case Ready(problem):
                self._begin(problem.decode(errors="replace"))
            case _:
                raise ValueError("no report")

    def _begin(self, problem: str) -> None:
        if problem:
            self.lost(problem)
            return
        tell(self._log, LAUNCHER, service=self._service, pid=self._pid, state="ready")
        self.ready = True
        for waiting in list(self._waiting.values()):
            self._send(waiting)

    def _begun(self, number: int) -> bool:
        """The launcher has the connection: our copy goes, and another may have its place."""
        was_full = self.full
        if not self.drop(number):
            return False
        for waiting in self._waiting.values():
            if not waiting.sent:
                self._send(waiting)
                break
        if was_full:
            self._reports.room()
        return True

    def _send(self, waiting: Waiting) -> None:
        assert self._socket is not None  # noqa: S101 - only a ready launcher is sent to
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ONE_DESCRIPTOR.pack(waiting.descriptor))]
        # What can't be sent now is sent when the launcher has taken something, or by the end of this one to the next.
        with contextlib.suppress(OSError):
            self._socket.sendmsg([waiting.packet], rights)
            waiting.sent = True
            waiting.tries += 1

    def lost(self, reason: str) -> None:
        """There is no launcher any more, or there was to be none: after a pause there will be another."""
        self._asked = self.ready = False
        self.orphans |= self.pids
        self.pids.clear()
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
        if self.stopped:
            return
        pause = self._backoff.pause(self._reactor.seconds() - self._since if self._pid else 0.0)
        tell(self._log, LAUNCHER, service=self._service, pid=self._pid, state="lost", reason=reason, retry=pause)
        self._pid = 0
        for number, waiting in list(self._waiting.items()):
            waiting.sent = False
            if waiting.tries >= _MOST_TRIES:
                self.drop(number)
                self._reports.failed(number, 0)
        if self._successor is not None:
            self.retire(self._successor)
            return
        self._retry = self._reactor.callLater(pause, self._again)

    def _again(self) -> None:
        self._retry = None
        # With nothing to do it waits for the next connection.
        if self._waiting or self.orphans:
            self.wake()

    def retire(self, successor: Link) -> None:
        """Let another launcher serve from now on, also who waits; this one ends after its last handler."""
        self._successor = successor
        for number, waiting in list(self._waiting.items()):
            if not waiting.sent:
                del self._waiting[number]
                successor.inherit(number, waiting)
        self._leave()

    def inherit(self, number: int, waiting: Waiting) -> None:
        """Take over a connection that another launcher has not started."""
        self._waiting[number] = waiting
        if self.ready:
            self._send(waiting)
        else:
            self.wake()

    def _leave(self) -> None:
        if self._successor is not None and not (self._waiting or self.pids or self.orphans):
            self.stop()

    def forget(self) -> None:
        """Nobody will say when the handlers of lost launchers end."""
        orphans, self.orphans = self.orphans, {}
        for number in orphans:
            self._reports.forgotten(number)

    def orphan_ended(self, pid: int, status: int) -> None:
        """A process ended that had no launcher any more, or was one, with its threads."""
        if pid == self._pid or pid in self.pids.values():
            # Its socket was closed before its children were orphans: what it says of its end comes first.
            self.doRead()
        for number in [number for number, known in self.orphans.items() if known == pid]:
            del self.orphans[number]
            self._reports.ended(Ended(number, status))
        self._leave()

    def stop(self) -> None:
        """Let the launcher end; connections without a process are closed."""
        if self.stopped:
            return
        self.stopped = True
        self.forget()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for number in list(self._waiting):
            self.drop(number)
            self._reports.failed(number, 0)
        self.lost("")

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """The reactor stops."""
        self.stop()

    def fileno(self) -> int:
        """The descriptor to watch."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return self._service
