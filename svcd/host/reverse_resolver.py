"""Host names of addresses, from the system's resolver (whatever nsswitch.conf(5) says), without blocking."""

from __future__ import annotations

import socket
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import succeed

from svcd.addresses import address_number
from svcd.net.lookups import LookupPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime

__all__ = ["TIMEOUT_SECONDS", "ReverseResolver", "confirmed_system_host_of", "system_host_of"]

#: A lookup that takes longer is answered with None; its answer is still remembered.
TIMEOUT_SECONDS = 2.0
#: How long an answer holds, in seconds, and how many are remembered.
_KEEP_SECONDS = 300.0
_KEEP_MOST = 4096
#: Lookups at once that are waited for, lookups at once in all, and questions that wait for a thread; beyond that the
#: answer is None.
_ACTIVE = 4
_THREADS = 32
_QUEUED = 1000

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


class ReverseResolver:
    """svcd.interfaces.HostNameResolver.

    Names that decide on access have a pool of their own: lookups for the log can't hold them up.

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
        self._lookups = {False: host_of, True: confirmed_host_of}
        self._pools: dict[bool, LookupPool[str | None]] = {
            confirmed: LookupPool("svcd-names", active=_ACTIVE, threads=_THREADS, queued=_QUEUED)
            for confirmed in self._lookups
        }
        self._lock = threading.Lock()
        self._known: OrderedDict[_Question, tuple[float, str | None]] = OrderedDict()

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
        _, confirmed = question
        answer = self._pools[confirmed].deferred(self._reactor, question, partial(self._look_up, question))
        # A pool that is full, and one whose thread has answered nothing in time.
        answer.addErrback(lambda _failure: None)
        if not answer.called:
            answer.addCallback(self._cancelling(self._clock.callLater(TIMEOUT_SECONDS, answer.cancel)))
        return answer

    @staticmethod
    def _cancelling(timeout: IDelayedCall) -> Callable[[str | None], str | None]:
        def cancel(host: str | None) -> str | None:
            if timeout.active():
                timeout.cancel()
            return host

        return cancel

    def _look_up(self, question: _Question) -> str | None:
        """Look up a name in a thread of the pool, and remember it, also if nothing waits for it any more."""
        address, confirmed = question
        try:
            host = self._lookups[confirmed](address)
        except Exception:  # noqa: BLE001 - whatever it is, there is no name
            host = None
        with self._lock:
            self._known.pop(question, None)
            self._known[question] = (self._clock.seconds() + _KEEP_SECONDS, host)
            if len(self._known) > _KEEP_MOST:
                self._known.popitem(last=False)
        return host
