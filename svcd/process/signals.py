"""Signals of zygote and launchers: termination signals are ignored, SIGCHLD wakes them, handlers inherit defaults."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = [
    "ChildWatch",
    "default_signals",
    "ignore_termination_signals",
    "process_exists",
    "reap_children",
    "reset_inherited_signals",
]

#: Signals that may be sent to a whole process group or service to terminate it. The daemon ends its launchers later, by
#: closing their sockets, so that handlers can end first.
_TERMINATION_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)

# Python's defaults, not the system's: SIGPIPE is ignored, so that writing raises an OSError; Ctrl-C is an exception.
_PYTHON_HANDLERS = {signal.SIGPIPE: _signal.SIG_IGN, signal.SIGINT: signal.default_int_handler}
_DEFAULTS = [
    (int(number), _PYTHON_HANDLERS.get(number, _signal.SIG_DFL)) for number in (*_TERMINATION_SIGNALS, signal.SIGCHLD)
]


#: The real-time signals that the C library reserves: sigaction(3) refuses them, the system call does not.
_LIBC_SIGNALS = (32, 33)
#: The number of rt_sigaction(2), by machine.
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "riscv64": 134, "ppc64le": 173, "s390x": 174, "i686": 174, "armv7l": 174}
#: At least the size of struct sigaction of any kernel, in bytes; and the size of the kernel's signal set.
_SIGACTION_BYTES = 64
_SIGSET_BYTES = 8


def reset_inherited_signals() -> None:
    """Unblock all signals, and reset SIGCHLD, which the parent process may have blocked or ignored.

    Both are inherited through execve(2). With SIGCHLD ignored, wait(2) finds no child.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _no_op(_number: int, _frame: FrameType | None) -> None:
    """Ignore a signal. Unlike SIG_IGN this is reset to the default by execve(2)."""


def ignore_termination_signals() -> None:
    """Ignore the termination signals in this process; in programs that it executes all signals have their default."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if number in _TERMINATION_SIGNALS:
            signal.signal(number, _no_op)
        elif signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _reset_libc_signals()


def _reset_libc_signals() -> None:
    """Set the reserved signals of the C library to their default, on known machines, before the library uses them."""
    call = _RT_SIGACTION.get(os.uname().machine)
    if call is not None:
        libc = ctypes.CDLL(None)
        for number in _LIBC_SIGNALS:
            # All zeros: SIG_DFL, no flags, no mask.
            libc.syscall(call, number, bytes(_SIGACTION_BYTES), None, _SIGSET_BYTES)


def default_signals() -> None:
    """Set all signals as in a new Python program, in a child that does not call execve(2)."""
    signal.set_wakeup_fd(-1)
    for number, handler in _DEFAULTS:
        # Not signal.signal, which creates enum members: memory that a forked child writes to is copied.
        _signal.signal(number, handler)


class ChildWatch:
    """A descriptor that is readable when a child may have exited, or after another signal. One per process."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _no_op)

    @property
    def fds(self) -> tuple[int, int]:
        """The open descriptors."""
        return self._read, self._write

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._read

    def clear(self) -> None:
        """Make the descriptor unreadable until the next signal."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:
                pass

    def close(self) -> None:
        """Close the descriptors, in a child of this process."""
        os.close(self._read)
        os.close(self._write)


def reap_children() -> Iterator[tuple[int, int, float, float]]:
    """Reap the exited children; yield pid, status as of wait(2), user and system CPU time in seconds."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status, usage.ru_utime, usage.ru_stime


def process_exists(pid: int) -> bool:
    """Return whether there is a process with this pid, including zombies."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
