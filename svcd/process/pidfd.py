"""Child processes of the daemon, watched by pidfd."""

from __future__ import annotations

import os
import re
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["PidfdChild", "is_ending"]

#: From linux/sched.h: the process is in exit(2); a flag in /proc/PID/stat (proc(5)).
_PF_EXITING = 0x4
_KILLED = 1 << (signal.SIGKILL - 1)


@implementer(IReadDescriptor)
class PidfdChild:
    """A child of the daemon, watched by its pidfd (pidfd_open(2)), which is readable once the child has exited.

    Args:
        reactor: watches the pidfd.
        pid: the pid of the child.
        ended: called with the exit status, as of wait(2), when the child is reaped.
    """

    def __init__(self, reactor: FdReactor, pid: int, ended: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._pid = pid
        self._on_exit = ended
        self._pidfd = os.pidfd_open(pid)
        reactor.addReader(self)

    def doRead(self) -> None:
        """Reap the child."""
        self._reactor.removeReader(self)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        self._on_exit(status)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing at the stop of the reactor."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._pidfd

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "child"


def is_ending(pid: int, pidfd: int) -> bool:
    """Return whether a process has exited or is exiting.

    A killed process frees its memory before it closes its descriptors and before its pidfd is readable, which takes
    some milliseconds, and it may wait for a CPU before that; /proc shows the exit at once.

    Args:
        pid: the pid of a process that is not reaped, or not a child.
        pidfd: the pidfd of the same process; -1 if it had exited before the pidfd could be opened.
    """
    if pidfd < 0:
        return True
    gone = select.poll()
    gone.register(pidfd, select.POLLIN)
    if gone.poll(0):
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        # After the command, which may contain blanks: state, ppid, pgrp, session, tty_nr, tpgid, flags.
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    pending = [int(each, 16) for each in re.findall(r"^S[ih][gd]Pnd:\s*([0-9a-f]+)$", status, re.MULTILINE)]
    return bool(flags & _PF_EXITING) or any(each & _KILLED for each in pending)
