"""Reverse lookups: host names of addresses from the system's resolver (nsswitch.conf(5)), without blocking."""

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

#: Time limit of a lookup, in seconds. The result is None then; a later answer is cached.
TIMEOUT_SECONDS = 2.0
#: The time that answers are cached, in seconds, and the maximum number of cached answers.
_KEEP_SECONDS = 300.0
_MAX_KEPT = 4096
#: The maximum numbers of concurrent lookups within the time limit, of all concurrent lookups, and of queued lookups.
#: Beyond that the result is None.
_ACTIVE = 4
_THREADS = 32
_QUEUED = 1000

#: An address, and whether its name must be confirmed.
_Question = tuple[str, bool]


def system_host_of(address: str) -> str | None:
    """Return the host name of an address, in at most 255 characters; None without a name. Blocks."""
    try:
        found = socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
    except (OSError, UnicodeError):
        # UnicodeError: the owner of an address controls its name, which may contain any bytes.
        return None
    return found[:255]


def confirmed_system_host_of(address: str) -> str | None:
    """Return the host name of an address if the name has this address; None otherwise. Blocks.

    The owner of the address controls its reverse entry, and the owner of the name its forward entry.
    """
    host = system_host_of(address)
    if host is None:
        return None
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        number = address_number(address)
        return host if any(address_number(str(name[0])) == number for *_, name in found) else None
    except (OSError, UnicodeError, ValueError):
        return None


class ReverseResolver:
    """svcd.interfaces.HostNameResolver with a cache.

    Lookups for access rules have a separate pool, so that lookups for the log do not delay them.

    Args:
        clock: the reactor, for time.
        threads: the reactor, for calls from threads.
        host_of: the blocking lookup.
        confirmed_host_of: the blocking lookup of a confirmed name.
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
        """Return a Deferred with the host name of an address, or None, within TIMEOUT_SECONDS."""
        return self._ask((address, False))

    def confirmed_host_of(self, address: str) -> Deferred[str | None]:
        """Return a Deferred with the confirmed host name, or None, within TIMEOUT_SECONDS."""
        return self._ask((address, True))

    def _ask(self, question: _Question) -> Deferred[str | None]:
        known = self._known.get(question)
        if known is not None and known[0] > self._clock.seconds():
            return succeed(known[1])
        _, confirmed = question
        answer = self._pools[confirmed].deferred(self._reactor, question, partial(self._look_up, question))
        # The queue is full, or the time limit is reached.
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
        """Look up a name in a thread of the pool; cache the answer, even after the time limit."""
        address, confirmed = question
        try:
            host = self._lookups[confirmed](address)
        except Exception:  # noqa: BLE001 - after any error there is no name
            host = None
        with self._lock:
            self._known.pop(question, None)
            self._known[question] = (self._clock.seconds() + _KEEP_SECONDS, host)
            if len(self._known) > _MAX_KEPT:
                self._known.popitem(last=False)
        return host
