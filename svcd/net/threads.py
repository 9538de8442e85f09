"""Blocking calls in daemon threads, which neither a reactor's stop nor the interpreter's exit joins."""

from __future__ import annotations

import errno
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFromThreads

__all__ = ["call_in_daemon_thread"]

ResultT = TypeVar("ResultT")


def call_in_daemon_thread(reactor: IReactorFromThreads, call: Callable[[], ResultT]) -> Deferred[ResultT]:
    """Call a function in a new thread; the caller limits the number of threads.

    Returns:
        A Deferred that fires in the reactor's thread. It fails with an exception of the function, or with an OSError if
        the system can't start a thread.
    """
    answer: Deferred[ResultT] = Deferred()

    def run() -> None:
        try:
            result = call()
        except BaseException:  # noqa: BLE001 - the Deferred fails with it; Ctrl-C interrupts only the main thread
            reactor.callFromThread(answer.errback, Failure())
        else:
            reactor.callFromThread(answer.callback, result)

    try:
        Thread(target=run, name="svcd-reload", daemon=True).start()
    except RuntimeError:
        return fail(OSError(errno.EAGAIN, "the system gives no thread (RLIMIT_NPROC, TasksMax=)"))
    return answer
