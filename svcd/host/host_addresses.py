"""Addresses of the host names in the rules of datagram services: looked up forward, beforehand, and again by their age.

A datagram can't wait for a lookup, and anybody can forge its sender. So a host name in only_from or no_access stands
for the addresses that it has: none is looked up because a datagram comes.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from svcd.addresses import address_number
from svcd.log.events import UNRESOLVED, log_event
from svcd.net.lookups import LookupPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

__all__ = ["KEEP_SECONDS", "MOST_ADDRESSES", "RETRY_SECONDS", "HostAddresses", "system_numbers_of"]

#: How long the addresses of a name hold, and when one that could not be looked up is tried again, in seconds.
KEEP_SECONDS = 300.0
RETRY_SECONDS = 30.0
#: A lookup that takes longer is given up, in seconds. It may be tried again while the thread still waits.
_PATIENCE = 20.0
#: How many addresses a name may stand for; of more the first few by number.
MOST_ADDRESSES = 64
#: The name does not exist, or has no address: that is an answer.
_NONE = (socket.EAI_NONAME, socket.EAI_NODATA)


def system_numbers_of(host: str) -> frozenset[int]:
    """The addresses of a host name by their numbers (svcd.addresses.address_number), at most MOST_ADDRESSES; blocks.

    Raises:
        OSError: they are not known at the moment.
        UnicodeError: it can't be the name of a host.
    """
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        if error.errno in _NONE:
            return frozenset()
        raise
    numbers = {address_number(str(row[4][0])) for row in rows if row[0] in (socket.AF_INET, socket.AF_INET6)}
    return frozenset(sorted(numbers)[:MOST_ADDRESSES])


def _reason(error: BaseException | None) -> str:
    if isinstance(error, CancelledError):
        return f"no name server has answered within {_PATIENCE:g} s"
    return str(getattr(error, "strerror", None) or error)


class _Host:
    """What is known of one name.

    Attributes:
        numbers: of its addresses; None if they are not known.
        answered: whether it has been looked up, with success or not.
        failed: whether the last lookup failed.
        followers: called when something has changed.
        lookup: the one under way.
        timer: for the next lookup, or the end of this one.
    """

    __slots__ = ("answered", "failed", "followers", "lookup", "numbers", "timer")

    def __init__(self) -> None:
        self.numbers: frozenset[int] | None = None
        self.answered = self.failed = False
        self.followers: dict[object, Callable[[], None]] = {}
        self.lookup: Deferred[frozenset[int]] | None = None
        self.timer: IDelayedCall | None = None


class HostAddresses:
    """The addresses of all host names that are followed.

    Args:
        reactor: provides IReactorTime and IReactorFromThreads.
        numbers_of: the blocking lookup.
    """

    _log = Logger()

    def __init__(self, reactor: Any, numbers_of: Callable[[str], frozenset[int]] = system_numbers_of) -> None:  # noqa: ANN401
        self._reactor = reactor
        self._numbers_of = numbers_of
        self._pool: LookupPool[frozenset[int]] = LookupPool("svcd-rules", active=2, threads=8, queued=1000)
        self._hosts: dict[str, _Host] = {}

    def known(self, names: Iterable[str]) -> dict[str, frozenset[int]]:
        """The addresses of names, as far as they are known."""
        found = {name: host.numbers for name in names if (host := self._hosts.get(name)) is not None}
        return {name: numbers for name, numbers in found.items() if numbers is not None}

    def answered(self, names: Iterable[str]) -> bool:
        """Whether each of the names has been looked up, with success or not."""
        return all(name in self._hosts and self._hosts[name].answered for name in names)

    def follow(self, names: Iterable[str], changed: Callable[[], None]) -> Callable[[], None]:
        """Keep the addresses of names up to date.

        Args:
            names: of hosts.
            changed: called when one of them has been looked up for the first time, or has other addresses.

        Returns:
            What ends it; it may be called more than once.
        """
        key, followed = object(), list(names)
        for name in followed:
            host = self._hosts.setdefault(name, _Host())
            host.followers[key] = changed
            if host.timer is None:
                self._look_up(name, host)

        def leave() -> None:
            for name in followed:
                host = self._hosts.get(name)
                if host is not None and host.followers.pop(key, None) is not None and not host.followers:
                    self._forget(name, host)

        return leave

    def _forget(self, name: str, host: _Host) -> None:
        del self._hosts[name]
        if host.timer is not None and host.timer.active():
            host.timer.cancel()
        if host.lookup is not None:
            host.lookup.cancel()

    def _look_up(self, name: str, host: _Host) -> None:
        host.lookup = self._pool.deferred(self._reactor, name, partial(self._numbers_of, name))
        host.timer = self._reactor.callLater(_PATIENCE, host.lookup.cancel)
        host.lookup.addCallbacks(self._found, self._failed, (name, host), {}, (name, host))

    def _found(self, numbers: frozenset[int], name: str, host: _Host) -> None:
        host.failed = False
        self._learn(name, host, numbers, KEEP_SECONDS)

    def _failed(self, failure: Failure, name: str, host: _Host) -> None:
        if not host.followers:
            # Nothing is waited for any more.
            return
        if not host.failed:
            log_event(self._log, UNRESOLVED, host=name, reason=_reason(failure.value))
        host.failed = True
        self._learn(name, host, host.numbers, RETRY_SECONDS)

    def _learn(self, name: str, host: _Host, numbers: frozenset[int] | None, again: float) -> None:
        host.lookup = None
        if host.timer is not None and host.timer.active():
            host.timer.cancel()
        host.timer = self._reactor.callLater(again, self._look_up, name, host)
        news = numbers != host.numbers or not host.answered
        host.numbers, host.answered = numbers, True
        if news:
            for changed in list(host.followers.values()):
                changed()
