"""Process that has a socket of this daemon open and was started by the old daemon before an upgrade."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["HolderProcess"]


@implementer(IReadDescriptor)
class HolderProcess:
    """Process that has a socket open, watched by its pidfd (pidfd_open(2)), which is readable after its exit.

    Args:
        reactor: watches the pidfd.
        pid: the pid of the process, which is a session leader.
        ended: called once, when the process has exited.

    Attributes:
        pid: as given.

    Raises:
        OSError: the process can't be watched; ProcessLookupError if it has exited already.
    """

    def __init__(self, reactor: FdReactor, pid: int, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self.pid = pid
        self._ended = ended
        self._kill: IDelayedCall | None = None
        self._pidfd = os.pidfd_open(pid)
        reactor.addReader(self)

    def end(self, seconds: float) -> None:
        """Terminate the process and its group: SIGTERM now, SIGKILL later; do nothing if permissions don't allow it.

        Args:
            seconds: the time between the two signals.
        """
        if self._kill is None and self._pidfd >= 0:
            self._signal(signal.SIGTERM)
            self._kill = self._reactor.callLater(seconds, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(0):
            # The process has exited, and another process may have its pid.
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def doRead(self) -> None:
        """Handle the exit of the process."""
        self.forget()
        self._ended()

    def forget(self) -> None:
        """Stop watching the process."""
        if self._pidfd >= 0:
            self._reactor.removeReader(self)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._kill is not None and self._kill.active():
            self._kill.cancel()

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._pidfd

    def logPrefix(self) -> str:
        """Return the prefix for log messages of the reactor."""
        return "holder"
