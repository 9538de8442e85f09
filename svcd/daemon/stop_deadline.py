"""Time limit of a stop, enforced by a thread that needs no reactor."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StopDeadline"]

#: How long the report may take before the process ends without it, in seconds.
_REPORT_SECONDS = 0.3
#: The longest wait for the start of the thread, in seconds.
_BEGIN_SECONDS = 1.0
#: How often the main thread is interrupted, in seconds.
_INTERRUPT_SECONDS = 0.2
#: The signal for that: it is ignored by default, and seldom used (socket(7)).
_INTERRUPT = signal.SIGURG


class StopDeadline:
    """Deadline after which the process exits: a reactor that stops, and the interpreter's exit, join hung threads.

    Until then the main thread is interrupted at intervals. Python runs the handler of a signal in the main thread: if
    the signal comes just before that thread waits for a lock, or comes to another thread, the handler would not run
    before the lock is free, and a second SIGTERM would have no effect.

    Args:
        report: called in another thread with a list of the running threads, as text, before the process exits.
        leave: exits at once, with an exit status.
    """

    def __init__(self, report: Callable[[str], None], leave: Callable[[int], object] = os._exit) -> None:
        self._report = report
        self._exit = leave
        self._main = threading.get_ident()

    def start(self, seconds: float) -> None:
        """Set the deadline, in seconds from now; the earliest of several deadlines holds.

        It may be called from a signal handler: _thread.start_new_thread() takes no lock that the main thread may hold,
        and the thread is not joined. It has to be called in the main thread. If the system gives no thread, the stop
        has no deadline.
        """
        if signal.getsignal(_INTERRUPT) in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(_INTERRUPT, lambda _number, _frame: None)
        begun = _thread.allocate_lock()
        begun.acquire()
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self._end_after, (seconds, begun))
            # A thread that begins to run while the interpreter exits crashes the process (CPython 3.11 reads its state,
            # which the exit has freed): under load the system can let it wait for the whole stop.
            begun.acquire(timeout=_BEGIN_SECONDS)

    def _end_after(self, seconds: float, begun: _thread.LockType) -> None:
        begun.release()
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(rest, _INTERRUPT_SECONDS))
            signal.pthread_kill(self._main, _INTERRUPT)
        reported = _thread.allocate_lock()
        reported.acquire()
        _thread.start_new_thread(self._report_running, (reported,))
        reported.acquire(timeout=_REPORT_SECONDS)
        self._exit(os.EX_OK)

    def _report_running(self, reported: _thread.LockType) -> None:
        # The process is about to exit: a traceback would reach no log.
        with contextlib.suppress(Exception):
            self._report("; ".join(self._running()))
        reported.release()

    def _running(self) -> list[str]:
        """Return the main thread and the threads that are joined at exit, each with the line that it executes."""
        frames = sys._current_frames()  # noqa: SLF001 - there is no other way
        names = {thread.ident: thread.name for thread in threading.enumerate() if not thread.daemon}
        names[self._main] = "main thread"
        found = []
        for ident, name in names.items():
            frame = frames.get(ident or 0)
            if frame is not None:
                where = traceback.extract_stack(frame)[-1]
                found.append(f"{name} in {where.name} ({where.filename}:{where.lineno})")
        return found
