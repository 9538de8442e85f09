"""Host names of addresses, from the system's resolver (whatever nsswitch.conf(5) says), without blocking.

The system's resolver blocks, so it runs in a few threads of its own: a name server that is away holds up lookups,
never the daemon, its other threads or its end.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed

from svcd.terms import address_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

__all__ = ["TIMEOUT_SECONDS", "ReverseNames", "confirmed_system_host_of", "system_host_of"]

#: A lookup that takes longer is answered with None; its answer is still remembered.
TIMEOUT_SECONDS = 2.0
#: How long an answer holds, in seconds, and how many are remembered.
_KEEP_SECONDS = 300.0
_KEEP_MOST = 4096
#: Threads, and lookups that may wait for one; beyond that the answer is None.
_THREADS = 4
_WAITING_MOST = 1000

#: An address, and whether its name is to be confirmed.
_Question = tuple[str, bool]


def system_host_of(address: str) -> str | None:
    """The name of an address, in at most 255 characters; blocks."""
    try:
        found = socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
    except (OSError, UnicodeError):
        # Unicode: whoever holds the address says its name, and may say any bytes.
        return None
    return found[:255]


def confirmed_system_host_of(address: str) -> str | None:
    """The name of an address, if that address is among the name's own; blocks.

    The name of an address is said by whoever has the address, the addresses of a name by whoever has the name.
    """
    host = system_host_of(address)
    if host is None:
        return None
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        wanted = address_number(address)
        return host if any(address_number(str(name[0])) == wanted for *_, name in found) else None
    except (OSError, UnicodeError, ValueError):
        return None


class ReverseNames:
    """svcd.interfaces.Names.

    Args:
        clock: the reactor's time.
        threads: the reactor, to come back from a thread.
        host_of: the blocking lookup.
        confirmed_host_of: the same, of a name that is confirmed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        threads: IReactorFromThreads,
        host_of: Callable[[str], str | None] = system_host_of,
        confirmed_host_of: Callable[[str], str | None] = confirmed_system_host_of,
    ) -> None:
        self._clock = clock
        self._reactor = threads
        self._lookup = host_of
        self._confirmed_lookup = confirmed_host_of
        self._known: OrderedDict[_Question, tuple[float, str | None]] = OrderedDict()
        self._asked: dict[_Question, list[Deferred[str | None]]] = {}
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._threads = 0

    def host_of(self, address: str) -> Deferred[str | None]:
        """The host name of an address, or None, within TIMEOUT_SECONDS."""
        return self._ask((address, False))

    def confirmed_host_of(self, address: str) -> Deferred[str | None]:
        """The confirmed one, or None, within TIMEOUT_SECONDS."""
        return self._ask((address, True))

    def _ask(self, question: _Question) -> Deferred[str | None]:
        known = self._known.get(question)
        if known is not None and known[0] > self._clock.seconds():
            return succeed(known[1])
        waiting = self._asked.get(question)
        if waiting is None:
            if len(self._asked) >= _WAITING_MOST:
                return succeed(None)
            if not self._have_thread():
                return succeed(None)
            waiting = self._asked[question] = []
            self._questions.put(question)
        answer: Deferred[str | None] = Deferred()
        waiting.append(answer)
        timeout = self._clock.callLater(TIMEOUT_SECONDS, self._give_up, question, answer)

        def done(host: str | None) -> str | None:
            if timeout.active():
                timeout.cancel()
            return host

        return answer.addCallback(done)

    def _give_up(self, question: _Question, answer: Deferred[str | None]) -> None:
        self._asked[question].remove(answer)
        answer.callback(None)

    def _have_thread(self) -> bool:
        """Start one more as long as there are few; whether there is any."""
        if self._threads < _THREADS:
            try:
                # A daemon thread: the program's end does not wait for a name server.
                threading.Thread(target=self._work, name="svcd-names", daemon=True).start()
            except RuntimeError:
                # The system gives no more threads (RLIMIT_NPROC); the next question tries again.
                return self._threads > 0
            self._threads += 1
        return True

    def _work(self) -> None:
        while True:
            question = self._questions.get()
            address, confirmed = question
            try:
                host = (self._confirmed_lookup if confirmed else self._lookup)(address)
            except Exception:  # noqa: BLE001 - whatever it is, the thread must live and the question be answered
                host = None
            self._reactor.callFromThread(self._answered, question, host)

    def _answered(self, question: _Question, host: str | None) -> None:
        self._known.pop(question, None)
        self._known[question] = (self._clock.seconds() + _KEEP_SECONDS, host)
        if len(self._known) > _KEEP_MOST:
            self._known.popitem(last=False)
        for answer in self._asked.pop(question):
            answer.callback(host)
