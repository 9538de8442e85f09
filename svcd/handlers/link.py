"""The daemon's end of a launcher: hands connections over, passes reports on, has a lost launcher started again."""

from __future__ import annotations

from signal import SIGKILL
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.events import LAUNCHER, LAUNCHER_LOST, tell
from svcd.handlers.backoff import Backoff
from svcd.handlers.messages import LARGEST, Ended, Failed, Ready, Said, Signal, Started, read_all
from svcd.handlers.orders import MOST_WAITING, Orders
from svcd.handlers.signals import exists

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.handlers.messages import Message
    from svcd.handlers.reports import Reports
    from svcd.interfaces import Watcher

__all__ = ["MOST_WAITING", "Link"]

#: Reports taken in one go before other descriptors have their turn.
_BATCH = 64
#: A launcher that has ended left fewer than these: the kernel keeps no more for one socket.
_MOST_REPORTS = 4096


@implementer(IReadDescriptor)
class Link:
    """One service's launcher, as the daemon knows it.

    Args:
        reactor: watches descriptors and time.
        service: the service's name, for the log.
        launch: asks the nursery for a launcher; `attach` is called with it, or `lost` if there is none.
        end: asks the nursery to signal a handler that has lost its launcher.
        reports: told what becomes of connections.

    Attributes:
        ready: whether it has a launcher that can serve.
        stopped: whether it has ended for good.
        pids: of the launcher's running handlers, by the number of their connection.
        orphans: of those whose launcher was lost, the same.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Watcher,
        service: str,
        launch: Callable[[], None],
        end: Callable[[Signal], None],
        reports: Reports,
    ) -> None:
        self._reactor = reactor
        self._service = service
        self._launch = launch
        self._end = end
        self._reports = reports
        self._socket: socket.socket | None = None
        self._pid = 0
        self._since = 0.0
        self.ready = False
        self._asked = self._had_one = False
        self._successor: Link | None = None
        self.stopped = False
        self._backoff = Backoff()
        self._retry: IDelayedCall | None = None
        self._orders = Orders(reactor)
        self._nursed = False
        self.pids: dict[int, int] = {}
        self.orphans: dict[int, int] = {}

    @property
    def full(self) -> bool:
        """Whether no more connections may be handed over now."""
        return self._orders.full

    def start(self, number: int, environment: bytes, descriptor: int) -> None:
        """Let a connection have its process; the descriptor is the link's to close from now on."""
        self._orders.add(number, environment, descriptor)
        self.wake()

    def drop(self, number: int) -> bool:
        """Close a connection that has no process yet; returns whether it had none."""
        return self._orders.drop(number)

    def signal(self, number: int, number_of_signal: int) -> None:
        """Send a signal to the process group of a connection."""
        if number in self.pids:
            self._orders.signal(Signal(number, self.pids[number], number_of_signal))
        elif number in self.orphans:
            self._end(Signal(number, self.orphans[number], number_of_signal))

    def abandon(self, number: int) -> None:
        """Expect nothing more of a connection's process."""
        self.pids.pop(number, None)
        self.orphans.pop(number, None)

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
        if self._had_one:
            self._reports.restarted()
        self._had_one = True
        self._pid = pid
        self._nursed = True
        self._since = self._reactor.seconds()
        self._reactor.addReader(self)

    def doRead(self) -> None:
        """The launcher says something."""
        for _ in range(_BATCH):
            if not self._hear():
                return

    def _hear(self) -> bool:
        """Take a report; whether there may be another."""
        if self._socket is None:
            return False
        try:
            packet = self._socket.recv(LARGEST)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # It ended with orders unread. What it said before comes after this (unix(7)), and then the end.
            return True
        if not packet:
            self.lost("its process has ended")
            return False
        try:
            for report in read_all(packet):
                self._take(report)
        except ValueError:
            self.lost("it said what no launcher says")
        return True

    def _take(self, report: Message) -> None:
        match report:
            case Started(number, pid):
                self.pids[number] = pid
                if self._begun(number):
                    self._reports.started(number, pid)
                else:
                    # It was given up while it was on its way, and nobody would hear that it does not want to end.
                    self._orders.signal(Signal(number, pid, SIGKILL))
                    del self.pids[number]
            case Ended(number):
                self._orders.forget(number)
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
        assert self._socket is not None  # noqa: S101 - it has just spoken
        self._orders.serve(self._socket)

    def _begun(self, number: int) -> bool:
        """The launcher has the connection: our copy goes, and another may have its place."""
        was_full = self.full
        if not self.drop(number):
            return False
        if was_full:
            self._reports.room()
        return True

    def lost(self, reason: str) -> None:
        """There is no launcher any more, or there was to be none: after a pause there will be another."""
        self._asked = self.ready = False
        self.orphans |= self.pids
        self.pids.clear()
        if not self._nursed:
            self._forget_orphans()
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
        for signal in self._orders.take_signals():
            if signal.number in self.orphans:
                self._end(signal)
        given_up = list(self._orders.lose())
        if self.stopped:
            return
        pause = self._backoff.pause(self._reactor.seconds() - self._since if self._pid else 0.0)
        tell(self._log, LAUNCHER_LOST, service=self._service, pid=self._pid, state="lost", reason=reason, retry=pause)
        self._pid = 0
        self._retry = self._reactor.callLater(pause, self._again)
        for number in given_up:
            self._reports.failed(number, 0)
        if self._successor is not None:
            self.retire(self._successor)

    def _again(self) -> None:
        self._retry = None
        for number, pid in list(self.orphans.items()):
            if not exists(pid):
                # Its launcher was killed when it had seen its end, and before it could say so.
                del self.orphans[number]
                self._reports.forgotten(number)
        # With nothing to do it waits for the next connection.
        if self._orders:
            self.wake()

    def retire(self, successor: Link) -> None:
        """Let another launcher serve from now on, also who waits; this one ends after its last handler."""
        self._successor = successor
        self._orders.hand_over(successor._orders)
        if successor._orders:
            successor.wake()
        self._leave()

    def _leave(self) -> None:
        if self._successor is not None and not (self._orders or self.pids or self.orphans):
            self.stop()

    def forget(self) -> None:
        """The nursery is gone: nobody will say when the handlers of lost launchers end, nor start what it was asked."""
        self._nursed = False
        self._forget_orphans()
        if self._asked:
            self.lost("the nursery has ended")

    def _forget_orphans(self) -> None:
        orphans, self.orphans = self.orphans, {}
        for number in orphans:
            self._reports.forgotten(number)

    def orphan_ended(self, pid: int, status: int) -> None:
        """A process ended that had no launcher any more, or was one, with its threads."""
        if pid == self._pid or pid in self.pids.values():
            # Its socket was closed before its children were orphans: what it said comes first, all of it.
            all(self._hear() for _ in range(_MOST_REPORTS))
        for number in [number for number, known in self.orphans.items() if known == pid]:
            del self.orphans[number]
            self._orders.forget(number)
            self._reports.ended(Ended(number, status))
        self._leave()

    def stop(self) -> None:
        """Let the launcher end; connections without a process are closed."""
        if self.stopped:
            return
        self.stopped = True
        self._forget_orphans()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for number in self._orders.close():
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
