"""WebSocketFactory: WebSocket around the protocols of a service that is served in the daemon."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IProtocolFactory
from zope.interface import implementer

from svcd.protocols.websocket.protocol import WebSocketProtocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from svcd.protocols.websocket.settings import WebSocketSettings

__all__ = ["WebSocketFactory"]


@implementer(IProtocolFactory)
class WebSocketFactory:
    """Factory of the WebSocket protocols of a service.

    Args:
        factory: the service's own factory; it builds a protocol after each successful handshake.
        settings: the options of the service.
    """

    def __init__(self, factory: IProtocolFactory, settings: WebSocketSettings) -> None:
        self._factory = factory
        self._settings = settings

    def doStart(self) -> None:
        """Start the service's factory: a listener was added."""
        self._factory.doStart()

    def doStop(self) -> None:
        """Stop the service's factory: a listener was removed."""
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress) -> WebSocketProtocol:
        """Return the WebSocket protocol of a new connection."""
        return WebSocketProtocol(self._settings, partial(self._factory.buildProtocol, addr))
