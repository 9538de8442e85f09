"""A child process of the daemon, as the reactor hears of its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from svcd.interfaces import Watcher

__all__ = ["Child"]


@implementer(IReadDescriptor)
class Child:
    """A child of the daemon, by its pidfd (pidfd_open(2)): readable when the child has ended.

    Args:
        reactor: watches it.
        pid: of the child.
        ended: called with its status, as of wait(2), when it is reaped.
    """

    def __init__(self, reactor: Watcher, pid: int, ended: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._pid = pid
        self._ended = ended
        self._descriptor = os.pidfd_open(pid)
        reactor.addReader(self)

    def doRead(self) -> None:
        """It has ended."""
        self._reactor.removeReader(self)
        os.close(self._descriptor)
        _, status = os.waitpid(self._pid, 0)
        self._ended(status)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, which it does after us."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "child"
