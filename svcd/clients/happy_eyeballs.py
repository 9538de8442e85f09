"""Happy Eyeballs (RFC 8305): overlapping connection attempts, so that an unreachable address costs little time."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.clients.lookup import Address
    from svcd.clients.target import Reactor

__all__ = ["HappyEyeballs", "by_turns"]

#: The time after which the next attempt starts while one is in progress, in seconds (section 8).
_DELAY = 0.25


def by_turns(addresses: Iterable[Address]) -> list[Address]:
    """Return addresses in an order that alternates between IPv4 and IPv6 while both are left (section 4)."""
    listed = list(addresses)
    first = [each for each in listed if type(each) is type(listed[0])]
    others = [each for each in listed if type(each) is not type(listed[0])]
    return [each for each in chain.from_iterable(zip_longest(first, others)) if each is not None]


class HappyEyeballs:
    """Connection attempts at several addresses; the first that succeeds is used.

    The next address is tried when an attempt has failed, or has had no result for _DELAY.

    Args:
        reactor: makes the connections.
        factory: makes the protocols.
        addresses: the addresses, at least one.
        timeout: the time limit of an attempt at one address, in seconds.
    """

    def __init__(
        self, reactor: Reactor, factory: IProtocolFactory, addresses: Sequence[Address], timeout: float
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._left = by_turns(addresses)
        self._timeout = timeout
        self._running: list[Deferred[IProtocol]] = []
        self._timer: IDelayedCall | None = None
        self._done = False
        self._result: Deferred[IProtocol] = Deferred(lambda _: self._stop())

    def run(self) -> Deferred[IProtocol]:
        """Start; return a Deferred with the connected protocol, or with the last failure if all attempts fail."""
        self._try_next()
        return self._result

    def _try_next(self) -> None:
        self._stop_timer()
        address = self._left.pop(0)
        kind = TCP6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint
        if self._left:
            self._timer = self._reactor.callLater(_DELAY, self._try_next)
        attempt = kind(self._reactor, address.host, address.port, self._timeout).connect(self._factory)
        self._running.append(attempt)
        attempt.addCallbacks(self._succeeded, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,))

    def _succeeded(self, protocol: IProtocol, attempt: Deferred[IProtocol]) -> None:
        self._running.remove(attempt)
        self._stop()
        self._result.callback(protocol)

    def _failed(self, failure: Failure, attempt: Deferred[IProtocol]) -> None:
        if self._done:
            return
        self._running.remove(attempt)
        if self._left:
            self._try_next()
        elif not self._running:
            self._result.errback(failure)

    def _stop(self) -> None:
        self._done = True
        self._stop_timer()
        for each in self._running:
            each.cancel()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
