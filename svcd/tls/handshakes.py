"""TLS handshakes of one service: those in progress, their time limit, and counts of their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.metrics.counters import ServiceCounters
    from svcd.tls.certificates import ServerTls
    from svcd.tls.openssl import ServerConnection

__all__ = ["HANDSHAKE_SECONDS", "HandshakeTracker"]

#: Time limit of a handshake, in seconds; a service's first_byte_timeout may end it earlier.
HANDSHAKE_SECONDS = 30.0
#: Age before which a handshake is not evicted, in seconds.
_GRACE = 0.5


class _PendingHandshake(Protocol):
    def handshake_timed_out(self) -> None:
        """End the connection: the handshake has reached its time limit."""

    def evict(self) -> None:
        """End the connection to make room for another one."""


class HandshakeTracker:
    """The handshakes in progress of one service.

    One timer serves all of them: the oldest handshake reaches its time limit first.

    Args:
        server: creates the TLS side of each connection.
        counters: counts results.
        reactor: provides time and timers.
        call_soon: calls a function in the next iteration of the reactor.

    Attributes:
        server: as given; if replaced, the new one applies to new handshakes.
        reactor: as given.
        call_soon: as given.
    """

    def __init__(
        self,
        server: ServerTls,
        counters: ServiceCounters,
        reactor: FdReactor,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self.server = server
        self.reactor = reactor
        self.call_soon = call_soon
        self._counters = counters
        # The deadline of each handshake, oldest first.
        self._pending: dict[_PendingHandshake, float] = {}
        self._timer: IDelayedCall | None = None

    def begin(self, protocol: _PendingHandshake) -> ServerConnection:
        """Register a handshake; return the TLS connection for it."""
        self._pending[protocol] = self.reactor.seconds() + HANDSHAKE_SECONDS
        if self._timer is None:
            self._timer = self.reactor.callLater(HANDSHAKE_SECONDS, self._check_timeouts)
        return self.server.serverConnectionForTLS(protocol)

    def done(self, protocol: _PendingHandshake, version: str) -> None:
        """Count a successful handshake and remove it."""
        self._pending.pop(protocol, None)
        self._counters.handshake_done(version)

    def failed(self, protocol: _PendingHandshake, reason: str) -> None:
        """Count a failed handshake and remove it; each handshake is counted once.

        Args:
            protocol: the connection.
            reason: `tls`, `client` (the client's certificate is refused), `closed` or `timeout`.
        """
        if self._pending.pop(protocol, None) is not None:
            self._counters.handshake_failed(reason)

    def remove(self, protocol: _PendingHandshake) -> None:
        """Remove a handshake without counting a result."""
        self._pending.pop(protocol, None)

    def evict(self) -> bool:
        """End the oldest handshake to make room for another connection; return whether there was one.

        Handshakes younger than 0.5 s are not evicted.
        """
        for protocol, end in self._pending.items():
            if self.reactor.seconds() < end - HANDSHAKE_SECONDS + _GRACE:
                return False
            protocol.evict()
            return True
        return False

    def _check_timeouts(self) -> None:
        self._timer = None
        now = self.reactor.seconds()
        for protocol, end in list(self._pending.items()):
            if end > now:
                self._timer = self.reactor.callLater(end - now, self._check_timeouts)
                return
            protocol.handshake_timed_out()
