"""SIGCHLD on uvloop.

Twisted lets Python's C-level signal handler write to a pipe of its own (signal.set_wakeup_fd). A uvloop loop puts a
socket of its own in that place each time it starts to run, after Twisted did, so a stock asyncio reactor over uvloop
never reaps a child. Here an ordinary Python handler does it: uvloop's socket wakes the loop for it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from twisted.internet.process import reapAllProcesses

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import FrameType

__all__ = ["ChildSignals"]


class ChildSignals:
    """Twisted's SignalHandling for SIGCHLD.

    Args:
        loop: runs the reaping.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop

    def install(self) -> None:
        """Set the handler. Only the main thread may do so, and the loop must run there."""
        signal.signal(signal.SIGCHLD, self._ended)
        signal.siginterrupt(signal.SIGCHLD, False)
        # Children that ended before.
        reapAllProcesses()

    def uninstall(self) -> None:
        """Restore the system's default disposition of SIGCHLD."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _ended(self, _number: int, _frame: FrameType | None) -> None:
        # This runs between any two instructions of any code, so the reaping is left to the loop.
        self._loop.call_soon_threadsafe(reapAllProcesses)
