"""What a service has that may speak TLS, or may begin to while it runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IProtocolFactory
from zope.interface import implementer

from svcd.tls.handshakes import HandshakeTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress

    from svcd.config.service import Service
    from svcd.interfaces import FdReactor, FileReader
    from svcd.metrics.counters import ServiceCounters
    from svcd.tls.certificates import ServerTls
    from svcd.tls.protocol import TlsProtocol

__all__ = ["ServiceTls", "TlsFactory"]


class ServiceTls:
    """The TLS of one service, which may have none, or get it while it runs.

    Args:
        reactor: has the time.
        files: reads certificates.
        counters: counts handshakes.

    Attributes:
        handshakes: those of the service; None without TLS.
    """

    def __init__(self, reactor: FdReactor, files: FileReader, counters: ServiceCounters) -> None:
        self._reactor = reactor
        self._files = files
        self._counters = counters
        self.handshakes: HandshakeTracker | None = None

    @property
    def server(self) -> ServerTls | None:
        """Its certificates; None without TLS."""
        return None if self.handshakes is None else self.handshakes.server

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read what a service's options name; returns what lets it hold for connections that come from then on.

        Raises:
            ConfigError: something can't be used.
        """
        if not service.tls:
            return partial(self._set, None)
        if self.handshakes is not None:
            return self.handshakes.server.prepare(service)
        # Services without TLS need not load all this.
        from svcd.tls.certificates import tls_server

        # A reactor may have a better way than the one that works on all of them.
        call_soon = getattr(self._reactor, "call_soon", None) or partial(self._reactor.callLater, 0)
        return partial(
            self._set, HandshakeTracker(tls_server(service, self._files), self._counters, self._reactor, call_soon)
        )

    def _set(self, handshakes: HandshakeTracker | None) -> None:
        self.handshakes = handshakes

    def evict(self) -> bool:
        """End the handshake that has begun first for another connection; returns whether there is one."""
        return self.handshakes is not None and self.handshakes.evict()

    def wrap_factory(self, factory: IProtocolFactory) -> IProtocolFactory:
        """The factory of a service, with TLS around its protocols if the service has it."""
        if self.handshakes is None:
            return factory
        return TlsFactory(factory, self.handshakes)


@implementer(IProtocolFactory)
class TlsFactory:
    """Makes the TLS of connections.

    Args:
        factory: the service's own; it is asked for a protocol when a handshake is over.
        handshakes: those of the service.
    """

    def __init__(self, factory: IProtocolFactory, handshakes: HandshakeTracker) -> None:
        # Services without TLS need not load OpenSSL.
        from svcd.tls.protocol import TlsProtocol

        self._factory = factory
        self._handshakes = handshakes
        self._protocol = TlsProtocol

    def doStart(self) -> None:
        """A listener begins."""
        self._factory.doStart()

    def doStop(self) -> None:
        """A listener is gone."""
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress) -> TlsProtocol:
        """The TLS of a connection."""
        return self._protocol(self._handshakes, partial(self._factory.buildProtocol, addr))
