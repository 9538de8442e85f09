"""The TLS handshakes of one service: whose are under way, how long they may take, and what came of them."""

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

#: How long a handshake may take, in seconds; a service's first_byte_timeout may end it before.
HANDSHAKE_SECONDS = 30.0
#: How long it may in any case before its place is given to another connection, in seconds.
_GRACE = 0.5


class _PendingHandshake(Protocol):
    def handshake_timed_out(self) -> None:
        """The handshake has taken too long."""

    def evict(self) -> None:
        """Another connection needs the place."""


class HandshakeTracker:
    """A service's.

    There is one timer for all of them: the first that began is the first that is late.

    Args:
        server: makes each connection's TLS.
        counters: counts what came of them.
        reactor: has the time.
        soon: calls something in the reactor's next turn.

    Attributes:
        server: as given; another one holds for handshakes that begin from then on.
        soon: as given.
        reactor: as given.
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
        # When each is late, in the order in which they began.
        self._pending: dict[_PendingHandshake, float] = {}
        self._timer: IDelayedCall | None = None

    def begin(self, protocol: _PendingHandshake) -> ServerConnection:
        """Somebody begins one; the TLS for it."""
        self._pending[protocol] = self.reactor.seconds() + HANDSHAKE_SECONDS
        if self._timer is None:
            self._timer = self.reactor.callLater(HANDSHAKE_SECONDS, self._check_timeouts)
        return self.server.serverConnectionForTLS(protocol)

    def done(self, protocol: _PendingHandshake, version: str) -> None:
        """It has succeeded."""
        self._pending.pop(protocol, None)
        self._counters.handshake_done(version)

    def failed(self, protocol: _PendingHandshake, why: str) -> None:
        """It has not, in a word: `tls`, `client` (it is none of those who may come in), `closed` or `timeout`."""
        if self._pending.pop(protocol, None) is not None:
            self._counters.handshake_failed(why)

    def forget(self, protocol: _PendingHandshake) -> None:
        """Whoever it was is gone."""
        self._pending.pop(protocol, None)

    def evict(self) -> bool:
        """End the handshake that has begun first for another connection; returns whether there is one."""
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
