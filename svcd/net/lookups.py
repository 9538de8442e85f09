"""Blocking name lookups in a bounded number of daemon threads: deduplicated, and with waiters that can be removed.

getaddrinfo(3) and getnameinfo(3) can't be interrupted: if a name server does not answer, they usually take 10 to 40 s
(resolv.conf(5): timeout, attempts). So each user of lookups has a separate pool, threads are never joined, and a lookup
without waiters does not count as one of the pool's active lookups.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from twisted.internet.interfaces import IReactorFromThreads

__all__ = ["LookupPool", "PendingLookup"]

ResultT = TypeVar("ResultT")


class _Lookup(Generic[ResultT]):
    """Queued or running lookup.

    Attributes:
        question: the key of the lookup.
        run: the blocking lookup.
        waiters: functions that are called with the result or the exception, in the lookup's thread.
        running: whether a thread runs it.
    """

    def __init__(self, question: Hashable, run: Callable[[], ResultT]) -> None:
        self.question = question
        self.run = run
        self.waiters: list[Callable[[ResultT | Exception], None]] = []
        self.running = False


class PendingLookup(Generic[ResultT]):
    """Lookup for which a thread waits.

    Args:
        pool: runs the lookup.
        question: as for `LookupPool.ask`.
        run: as for `LookupPool.ask`.
    """

    def __init__(self, pool: LookupPool[ResultT], question: Hashable, run: Callable[[], ResultT]) -> None:
        self._found: list[ResultT | Exception] = []
        self._ended = threading.Event()
        self._give_up: Callable[[], None] | None = None
        try:
            self._give_up = pool.ask(question, run, self._done)
        except OSError as error:
            self._done(error)

    def _done(self, result: ResultT | Exception) -> None:
        self._found.append(result)
        self._ended.set()

    def wait(self, seconds: float) -> ResultT:
        """Wait for the result and return it.

        Args:
            seconds: the time limit; after that the lookup has no waiter any more.

        Raises:
            TimeoutError: there is no result within the time limit.
            OSError: no thread was free. In addition, any exception of the lookup.
        """
        if not self._ended.wait(max(seconds, 0.0)):
            if self._give_up is not None:
                self._give_up()
            raise TimeoutError(errno.ETIMEDOUT, "no name server has answered in time")
        result = self._found[0]
        if isinstance(result, Exception):
            raise result
        return result


class LookupPool(Generic[ResultT]):
    """Pool of threads for blocking lookups; each question is looked up at most once at a time. It is thread-safe.

    Args:
        name: the name of the threads.
        active: the maximum number of running lookups with waiters.
        threads: the maximum number of running lookups, including those without waiters.
        queued: the maximum number of lookups that wait for a thread.
    """

    def __init__(self, name: str, *, active: int, threads: int, queued: int) -> None:
        self._name = name
        self._max_active = active
        self._max_threads = threads
        self._max_queued = queued
        # Threads do not survive the fork of a daemon that leaves the terminal, so the counts are reset after it.
        forked = weakref.WeakMethod(self._reset)
        os.register_at_fork(after_in_child=lambda: (reset := forked()) and reset())
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[Hashable, _Lookup[ResultT]] = {}
        self._queue: deque[_Lookup[ResultT]] = deque()
        self._threads = 0
        # The number of running lookups without a waiter.
        self._abandoned = 0

    def ask(
        self, question: Hashable, run: Callable[[], ResultT], done: Callable[[ResultT | Exception], None]
    ) -> Callable[[], None]:
        """Start a lookup, or join the lookup of the same question.

        Args:
            question: the key of the lookup.
            run: the lookup; it may block and raise.
            done: the waiter: called in another thread with the result or the exception, unless it is removed before.

        Returns:
            A function that removes the waiter, so that `done` is not called any more. It may be called at any time.

        Raises:
            OSError: no thread is free, and the queue is full: EAGAIN.
        """
        with self._lock:
            lookup = self._lookups.get(question)
            if lookup is None:
                lookup = self._add(question, run)
            elif lookup.running and not lookup.waiters:
                self._abandoned -= 1
            lookup.waiters.append(done)
        return lambda: self._give_up(lookup, done)

    def deferred(
        self, reactor: IReactorFromThreads, question: Hashable, run: Callable[[], ResultT]
    ) -> Deferred[ResultT]:
        """Return a Deferred that fires in the reactor's thread; cancel() removes the waiter. Arguments as for `ask`."""

        def cancelled(_deferred: Deferred[ResultT]) -> None:
            give_up()

        def fire(result: ResultT | Exception) -> None:
            if answer.called:
                return
            if isinstance(result, Exception):
                answer.errback(Failure(result))
            else:
                answer.callback(result)

        answer: Deferred[ResultT] = Deferred(cancelled)
        try:
            give_up = self.ask(question, run, lambda result: reactor.callFromThread(fire, result))
        except OSError:
            return fail()
        return answer

    def begin(self, question: Hashable, run: Callable[[], ResultT]) -> PendingLookup[ResultT]:
        """Start a lookup for a thread that waits for the result: before the reactor runs, or in another thread.

        Args:
            question: as for `ask`.
            run: as for `ask`.
        """
        return PendingLookup(self, question, run)

    def _add(self, question: Hashable, run: Callable[[], ResultT]) -> _Lookup[ResultT]:
        lookup = _Lookup(question, run)
        if len(self._queue) >= self._max_queued:
            text = f"{self._threads} name lookups run and {len(self._queue)} wait, as the name server does not answer"
            raise OSError(errno.EAGAIN, text)
        self._queue.append(lookup)
        self._start_thread()
        if not self._threads:
            self._queue.remove(lookup)
            raise OSError(errno.EAGAIN, "the system gives no thread for a name lookup (RLIMIT_NPROC, TasksMax=)")
        self._lookups[question] = lookup
        return lookup

    def _start_thread(self) -> None:
        """Start a thread for a queued lookup if another may run."""
        if self._threads - self._abandoned >= self._max_active or self._threads >= self._max_threads:
            return
        try:
            # The interpreter does not join a daemon thread when it exits.
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:
            return
        self._threads += 1

    def _give_up(self, lookup: _Lookup[ResultT], done: Callable[[ResultT | Exception], None]) -> None:
        with self._lock:
            if self._lookups.get(lookup.question) is not lookup or done not in lookup.waiters:
                return
            lookup.waiters.remove(done)
            if lookup.waiters:
                return
            if lookup.running:
                self._abandoned += 1
                if self._queue:
                    self._start_thread()
            else:
                self._queue.remove(lookup)
                del self._lookups[lookup.question]

    def _work(self) -> None:
        """Run queued lookups until none is left; the main function of a thread."""
        while True:
            with self._lock:
                # Another thread may have replaced this thread while its lookup had no waiters.
                if not self._queue or self._threads - self._abandoned > self._max_active:
                    self._threads -= 1
                    return
                lookup = self._queue.popleft()
                lookup.running = True
            result: ResultT | Exception
            try:
                result = lookup.run()
            except Exception as error:  # noqa: BLE001 - the waiters handle it
                result = error
            with self._lock:
                del self._lookups[lookup.question]
                waiters, lookup.waiters = lookup.waiters, []
                if not waiters:
                    self._abandoned -= 1
            for done in waiters:
                done(result)
