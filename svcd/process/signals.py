"""Signals where handlers are started: none ends the starter, none is passed on ignored or blocked, children wake."""

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

#: What may reach a whole process group or service at its end. The daemon tells its launchers when to go, by
#: closing their sockets: later than that, so that what runs can end first.
_TERMINATION_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)

# As Python has them, not as the system: a closed connection is an OSError, no sudden end; control-C is an exception.
_PYTHON_HANDLERS = {signal.SIGPIPE: _signal.SIG_IGN, signal.SIGINT: signal.default_int_handler}
_DEFAULTS = [
    (int(number), _PYTHON_HANDLERS.get(number, _signal.SIG_DFL)) for number in (*_TERMINATION_SIGNALS, signal.SIGCHLD)
]


#: The real-time signals that the C library keeps to itself: sigaction(3) refuses them, the system call does not.
_LIBC_SIGNALS = (32, 33)
#: The number of rt_sigaction(2), by machine.
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "riscv64": 134, "ppc64le": 173, "s390x": 174, "i686": 174, "armv7l": 174}
#: More than struct sigaction of any kernel has, in bytes; and the kernel's set of signals.
_SIGACTION_BYTES = 64
_SIGSET_BYTES = 8


def reset_inherited_signals() -> None:
    """Undo what the process that started this one has left: blocked signals, and children that nobody reaps.

    Both outlast execve(2). With SIGCHLD ignored, wait(2) finds no child.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _no_op(_number: int, _frame: FrameType | None) -> None:
    """Take a signal. Unlike an ignored one it is the default again in a program that is executed."""


def ignore_termination_signals() -> None:
    """Let none of the usual signals end this process, and let programs start with all as by default."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if number in _TERMINATION_SIGNALS:
            signal.signal(number, _no_op)
        elif signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _reset_libc_signals()


def _reset_libc_signals() -> None:
    """Set the signals of the C library to their default, as far as this machine is known; before it uses them."""
    call = _RT_SIGACTION.get(os.uname().machine)
    if call is not None:
        libc = ctypes.CDLL(None)
        for number in _LIBC_SIGNALS:
            # All zeros: SIG_DFL, no flags, no mask.
            libc.syscall(call, number, bytes(_SIGACTION_BYTES), None, _SIGSET_BYTES)


def default_signals() -> None:
    """Have all signals as a Python program has them, in a child that goes on without executing one."""
    signal.set_wakeup_fd(-1)
    for number, handler in _DEFAULTS:
        # Not signal.signal, which makes an enumeration's members of all: what a forked child touches is copied for it.
        _signal.signal(number, handler)


class ChildWatch:
    """A descriptor that can be read when a child may have ended. One in a process; it wakes for other signals too."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _no_op)

    @property
    def fds(self) -> tuple[int, int]:
        """What is open."""
        return self._read, self._write

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._read

    def clear(self) -> None:
        """Forget what woke us; children that end from now on wake again."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:
                pass

    def close(self) -> None:
        """In a child of this process, which has no use for it."""
        os.close(self._read)
        os.close(self._write)


def reap_children() -> Iterator[tuple[int, int, float, float]]:
    """Reap the children that have ended: pid, status as of wait(2), user and system seconds."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status, usage.ru_utime, usage.ru_stime


def process_exists(pid: int) -> bool:
    """Whether there is such a process, ended ones included that nobody has reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
