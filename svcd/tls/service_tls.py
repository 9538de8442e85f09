"""TLS of a service, which a reload may enable, change or disable."""

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
    """Optional TLS of one service.

    Modules that import OpenSSL are imported once a service has TLS: a daemon without TLS imports none of them.

    Args:
        reactor: provides time and timers.
        files: reads certificates.
        counters: counts handshakes.

    Attributes:
        handshakes: the handshakes of the service; None without TLS.
    """

    def __init__(self, reactor: FdReactor, files: FileReader, counters: ServiceCounters) -> None:
        self._reactor = reactor
        self._files = files
        self._counters = counters
        self.handshakes: HandshakeTracker | None = None

    @property
    def server(self) -> ServerTls | None:
        """The certificates of the service; None without TLS."""
        return None if self.handshakes is None else self.handshakes.server

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read the files that the options of the service name.

        Returns:
            A function that puts them into use for new connections.

        Raises:
            ConfigError: a file can't be used.
        """
        if not service.tls:
            return partial(self._set, None)
        if self.handshakes is not None:
            return self.handshakes.server.prepare(service)
        from svcd.tls.certificates import ServerTls

        # svcd's own reactor has call_soon(), which is faster.
        call_soon = getattr(self._reactor, "call_soon", None) or partial(self._reactor.callLater, 0)
        return partial(
            self._set, HandshakeTracker(ServerTls(service, self._files), self._counters, self._reactor, call_soon)
        )

    def _set(self, handshakes: HandshakeTracker | None) -> None:
        self.handshakes = handshakes

    def evict(self) -> bool:
        """End the oldest handshake to make room for another connection; return whether there was one."""
        return self.handshakes is not None and self.handshakes.evict()

    def wrap_factory(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return the factory of the service, with TLS around its protocols if the service has TLS."""
        if self.handshakes is None:
            return factory
        return TlsFactory(factory, self.handshakes)


@implementer(IProtocolFactory)
class TlsFactory:
    """Factory of the TLS protocols of a service.

    Args:
        factory: the service's own factory; it builds a protocol after each successful handshake.
        handshakes: the handshakes of the service.
    """

    def __init__(self, factory: IProtocolFactory, handshakes: HandshakeTracker) -> None:
        # Imported late: it loads OpenSSL.
        from svcd.tls.protocol import TlsProtocol

        self._factory = factory
        self._handshakes = handshakes
        self._protocol = TlsProtocol

    def doStart(self) -> None:
        """Start the service's factory: a listener was added."""
        self._factory.doStart()

    def doStop(self) -> None:
        """Stop the service's factory: a listener was removed."""
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress) -> TlsProtocol:
        """Return the TLS protocol of a new connection."""
        return self._protocol(self._handshakes, partial(self._factory.buildProtocol, addr))
