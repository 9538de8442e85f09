"""Process that holds a socket of this daemon and was started by another one, before an upgrade."""

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
    """Process that holds a socket, watched by its pidfd (pidfd_open(2)): readable when the process has ended.

    Args:
        reactor: watches it.
        pid: of the process, which leads a session of its own.
        ended: called once, when the process has ended.

    Attributes:
        pid: as given.

    Raises:
        OSError: the process can't be watched; ProcessLookupError if it has ended already.
    """

    def __init__(self, reactor: FdReactor, pid: int, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self.pid = pid
        self._ended = ended
        self._kill: IDelayedCall | None = None
        self._descriptor = os.pidfd_open(pid)
        reactor.addReader(self)

    def end(self, seconds: float) -> None:
        """End the process and its group: SIGTERM now, SIGKILL later. Without the right to do so it goes on.

        Args:
            seconds: between the two.
        """
        if self._kill is None and self._descriptor >= 0:
            self._signal(signal.SIGTERM)
            self._kill = self._reactor.callLater(seconds, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if poll.poll(0):
            # It has ended, and its number may be another process's.
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def doRead(self) -> None:
        """Note that the process has ended."""
        self.forget()
        self._ended()

    def forget(self) -> None:
        """Watch the process no more."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1
        if self._kill is not None and self._kill.active():
            self._kill.cancel()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return the prefix for messages of the reactor."""
        return "holder"
