"""WebSocket of a service, which a reload may enable, change or disable."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from svcd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IProtocolFactory

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.interfaces import FdReactor
    from svcd.protocols.websocket.settings import WebSocketSettings

__all__ = ["ServiceWebSocket"]


class ServiceWebSocket:
    """Optional WebSocket of one service.

    Modules that import wsproto are imported once a service has WebSocket.

    Args:
        clock: the reactor.
        service_admission: has the banner of the service.

    Attributes:
        settings: the options of WebSocket; None without WebSocket.
    """

    def __init__(self, clock: FdReactor, service_admission: ServiceAdmission) -> None:
        self._clock = clock
        self._service_admission = service_admission
        self.settings: WebSocketSettings | None = None

    def prepare(self, service: Service) -> Callable[[], None]:
        """Import what the service needs.

        Returns:
            A function that applies the options to new connections; the admission of the service has its new banner
            by then.

        Raises:
            ConfigError: wsproto is not installed.
        """
        if service.options.websocket is None:
            return partial(self._set, None)
        try:
            from svcd.protocols.websocket.settings import WebSocketSettings
        except ImportError as error:
            text = f"{error}; install it: pip install 'svcd[websocket]'"
            raise ConfigError([service.fault("websocket", text)]) from error

        def apply() -> None:
            self._set(WebSocketSettings.of(service.options, self._clock, self._service_admission.first_output))

        return apply

    def _set(self, settings: WebSocketSettings | None) -> None:
        self.settings = settings

    def wrap_factory(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return the factory of the service, with WebSocket around its protocols if the service has WebSocket."""
        if self.settings is None:
            return factory
        from svcd.protocols.websocket.factory import WebSocketFactory

        return WebSocketFactory(factory, self.settings)
