"""Addresses of the host names in access rules of datagram services, looked up in advance and refreshed periodically.

A datagram can't wait for a reverse lookup, and its source address can be forged. So a host name in only_from or
no_access stands for its addresses, and no datagram causes a lookup.
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

__all__ = ["KEEP_SECONDS", "MAX_ADDRESSES", "RETRY_SECONDS", "HostAddresses", "system_numbers_of"]

#: The time between lookups of a name, after success and after failure, in seconds.
KEEP_SECONDS = 300.0
RETRY_SECONDS = 30.0
#: Time limit of a lookup, in seconds; the next lookup may begin while the thread is still blocked.
_LOOKUP_SECONDS = 20.0
#: The maximum number of addresses of a name; the lowest by number are used.
MAX_ADDRESSES = 64
#: Errors that are answers: the name does not exist, or has no address.
_NO_ADDRESS = (socket.EAI_NONAME, socket.EAI_NODATA)


def system_numbers_of(host: str) -> frozenset[int]:
    """Return the addresses of a host name as numbers (svcd.addresses.address_number), at most MAX_ADDRESSES; blocks.

    Raises:
        OSError: the lookup has failed temporarily.
        UnicodeError: the name can't be a host name.
    """
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        if error.errno in _NO_ADDRESS:
            return frozenset()
        raise
    numbers = {address_number(str(row[4][0])) for row in rows if row[0] in (socket.AF_INET, socket.AF_INET6)}
    return frozenset(sorted(numbers)[:MAX_ADDRESSES])


def _reason(error: BaseException | None) -> str:
    if isinstance(error, CancelledError):
        return f"no name server has answered within {_LOOKUP_SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error)


class _Host:
    """State of one name.

    Attributes:
        numbers: its addresses as numbers; None if unknown.
        answered: whether a lookup has ended, with success or not.
        failed: whether the last lookup failed.
        callbacks: functions to call after a change.
        lookup: the lookup in progress.
        timer: for the next lookup, or for the time limit of the one in progress.
    """

    __slots__ = ("answered", "callbacks", "failed", "lookup", "numbers", "timer")

    def __init__(self) -> None:
        self.numbers: frozenset[int] | None = None
        self.answered = self.failed = False
        self.callbacks: dict[object, Callable[[], None]] = {}
        self.lookup: Deferred[frozenset[int]] | None = None
        self.timer: IDelayedCall | None = None


class HostAddresses:
    """Addresses of all host names in use by rules.

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
        """Return the addresses of those names whose addresses are known."""
        found = {name: host.numbers for name in names if (host := self._hosts.get(name)) is not None}
        return {name: numbers for name, numbers in found.items() if numbers is not None}

    def answered(self, names: Iterable[str]) -> bool:
        """Return whether each name has been looked up, with success or not."""
        return all(name in self._hosts and self._hosts[name].answered for name in names)

    def follow(self, names: Iterable[str], changed: Callable[[], None]) -> Callable[[], None]:
        """Keep the addresses of names up to date.

        Args:
            names: host names.
            changed: called when a name has been looked up for the first time, or its addresses have changed.

        Returns:
            A function that ends this; it may be called more than once.
        """
        key, followed = object(), list(names)
        for name in followed:
            host = self._hosts.setdefault(name, _Host())
            host.callbacks[key] = changed
            if host.timer is None:
                self._look_up(name, host)

        def leave() -> None:
            for name in followed:
                host = self._hosts.get(name)
                if host is not None and host.callbacks.pop(key, None) is not None and not host.callbacks:
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
        host.timer = self._reactor.callLater(_LOOKUP_SECONDS, host.lookup.cancel)
        host.lookup.addCallbacks(self._found, self._failed, (name, host), {}, (name, host))

    def _found(self, numbers: frozenset[int], name: str, host: _Host) -> None:
        host.failed = False
        self._update(name, host, numbers, KEEP_SECONDS)

    def _failed(self, failure: Failure, name: str, host: _Host) -> None:
        if not host.callbacks:
            # Cancelled by _forget().
            return
        if not host.failed:
            log_event(self._log, UNRESOLVED, host=name, reason=_reason(failure.value))
        host.failed = True
        self._update(name, host, host.numbers, RETRY_SECONDS)

    def _update(self, name: str, host: _Host, numbers: frozenset[int] | None, again: float) -> None:
        host.lookup = None
        if host.timer is not None and host.timer.active():
            host.timer.cancel()
        host.timer = self._reactor.callLater(again, self._look_up, name, host)
        news = numbers != host.numbers or not host.answered
        host.numbers, host.answered = numbers, True
        if news:
            for changed in list(host.callbacks.values()):
                changed()
