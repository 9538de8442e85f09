"""What makes the protocols of a service that speaks TLS, around those of the service itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IProtocolFactory
from zope.interface import implementer

from svcd.tls.protocol import TlsProtocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from svcd.tls.handshakes import HandshakeTracker

__all__ = ["TlsFactory"]


@implementer(IProtocolFactory)
class TlsFactory:
    """Makes the TLS of connections.

    Args:
        factory: the service's own; it is asked for a protocol when a handshake is over.
        handshakes: those of the service.
    """

    def __init__(self, factory: IProtocolFactory, handshakes: HandshakeTracker) -> None:
        self._factory = factory
        self._handshakes = handshakes

    def doStart(self) -> None:
        """A listener begins."""
        self._factory.doStart()

    def doStop(self) -> None:
        """A listener is gone."""
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress) -> TlsProtocol:
        """The TLS of a connection."""
        return TlsProtocol(self._handshakes, partial(self._factory.buildProtocol, addr))
