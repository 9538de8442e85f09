"""Handling of SIGCHLD on uvloop.

Twisted sets a pipe as the wakeup descriptor of Python's C-level signal handler (signal.set_wakeup_fd). Each time a
uvloop loop starts to run, after that, it sets its own socket instead, so an asyncio reactor on uvloop never reaps a
child. So this module uses an ordinary Python signal handler; uvloop's socket wakes the loop for it.
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
        loop: the loop in which children are reaped.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop

    def install(self) -> None:
        """Set the handler. Only the main thread may do so, and the loop must run there."""
        signal.signal(signal.SIGCHLD, self._ended)
        signal.siginterrupt(signal.SIGCHLD, False)
        # Reap children that exited before.
        reapAllProcesses()

    def uninstall(self) -> None:
        """Restore the system's default disposition of SIGCHLD."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _ended(self, _number: int, _frame: FrameType | None) -> None:
        # This may run between any two instructions of the program, so children are reaped in the loop.
        self._loop.call_soon_threadsafe(reapAllProcesses)
