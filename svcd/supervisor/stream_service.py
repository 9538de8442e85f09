"""Stream services that run in the daemon."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.service_websocket import ServiceWebSocket
from svcd.connections.wrapper import TrackingFactory
from svcd.errors import reason_of
from svcd.log.events import MODULE_CHANGED, PROBLEM, log_event
from svcd.process.module_files import ModuleFiles
from svcd.protocols.base import BuiltinFactory
from svcd.protocols.catalog import stream_factory
from svcd.sockets.ports import StreamPort
from svcd.supervisor.running_service import Prepared, ServiceContext
from svcd.supervisor.tracked_service import TrackedService, standing_descriptors

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory

    from svcd.config.service import Service
    from svcd.connections.wrapper import ConnectionWrapper
    from svcd.process.zygote_client import ZygoteClient
    from svcd.protocols.catalog import ServiceDependencies
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.listener import ServingPort
    from svcd.tls.service_tls import ServiceTls

__all__ = ["StreamService"]


class StreamService(TrackedService[TrackingFactory]):
    """A stream service that runs in the daemon.

    The factory is started before the service accepts its first client, and stopped when it accepts no more clients.
    """

    _log = Logger()
    _tls: ServiceTls

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:
        super().__init__(context, service, zygote_client)
        service_admission = ServiceAdmission(context.connections, service)
        self._factory = self._make_factory(service)
        self._factories = [self._factory]
        self._started = False
        self._tls = self._make_tls(service, service_admission)
        self._websocket = ServiceWebSocket(context.reactor, service_admission)
        self._websocket.prepare(service)()
        factory = self._wrapped(self._factory)
        self._use_tracker(TrackingFactory(service, context.connections, service_admission, factory, self._wrappers()))
        self.tracker.budget.evict_by(self._evict)

    def _evict(self) -> bool:
        """Close one idle or slow connection to free a descriptor; return whether there was one."""
        evicts = (each.evict() for each in self._factories if isinstance(each, BuiltinFactory))
        return any(evicts) or self._tls.evict()

    def _wrappers(self) -> type[ConnectionWrapper] | None:
        """Return the wrapper class of connections with TLS; None if it depends on the protocol."""
        if self._tls.handshakes is None:
            return None
        # Imported late: services without TLS do not need it.
        from svcd.connections.tls_wrapper import TlsWrapper

        return TlsWrapper

    def _wrapped(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return the factory of the service, with WebSocket and TLS around its protocols if the service has them."""
        return self._tls.wrap_factory(self._websocket.wrap_factory(factory))

    def _make_factory(self, service: Service) -> IProtocolFactory:
        """Return a new factory of the service; its connections use descriptors of the service's budget share."""
        context = self._context
        made = stream_factory(service, self._dependencies(service))
        reference = service.options.factory
        if reference and reference not in context.modules:
            context.modules[reference] = ModuleFiles(reference)
        return made

    def _dependencies(self, service: Service) -> ServiceDependencies:
        """Return the objects that the factory of the service may need."""
        return replace(self._context.deps, descriptors=self._context.budget.share(service.id))

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:  # noqa: ARG002 - as all
        """Return the port of a socket: the reactor's own type if it has one, else StreamPort."""
        tracker = self.tracker
        # StreamPort works on every reactor; svcd's own reactor has a faster one.
        adopt = getattr(self._context.reactor, "adoptStreamSocket", None) or partial(StreamPort, self._context.reactor)
        made: StreamPort = adopt(opened.socket, tracker, tracker.may_accept, self._context.budget.pause_all)
        return made if self._header_reader is None else self._descriptor_port(opened, made.adopt, tracker.may_accept)

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:  # noqa: ARG002 - as all
        factory = self._make_factory(service)
        secure, speak = self._tls.prepare(service), self._websocket.prepare(service)
        factory.doStart()

        def commit() -> None:
            secure()
            speak()
            before, self._factory = self._factory, factory
            # Former factories are kept as long as they have connections that can be evicted.
            used = [each for each in self._factories if isinstance(each, BuiltinFactory) and each.evictable]
            self._factories = [*used, factory]
            self.tracker.replace_factory(self._wrapped(factory), self._wrappers())
            self._stop_factory(before)

        return Prepared(commit, partial(self._stop_factory, factory))

    def start(self) -> None:
        """Start the factory.

        Raises:
            Exception: any error of the factory's startFactory().
        """
        self._factory.doStart()
        self._started = True

    def close(self) -> None:
        """Stop the factory."""
        super().close()
        if self._started:
            self._started = False
            self._stop_factory(self._factory)

    def _stop_factory(self, factory: IProtocolFactory) -> None:
        """Stop a factory; log what its stopFactory() raises, so that nothing else is affected."""
        try:
            factory.doStop()
        except KeyboardInterrupt:
            # Ctrl-C stops the daemon; it is not an error of this service.
            raise
        except BaseException as error:  # noqa: BLE001 - the service's own code
            log_event(self._log, PROBLEM, text=f"{self.service.id}: {reason_of(error)}")

    def check_modules(self) -> None:
        """Log it if the module of factory= has changed on disk since its import."""
        known = self._context.modules.get(self.service.options.factory)
        changed = known.changed() if known is not None else ""
        if changed:
            text = f"module {changed} changed on disk; it runs in the daemon, so import it with svcctl upgrade"
            log_event(self._log, MODULE_CHANGED, service=self.service.id, text=text)

    def started(self) -> None:
        """Reserve descriptors, and begin to count the bytes of open connections."""
        self._hold_descriptors(standing_descriptors(self.service))
        self.tracker.counters.add_source(self.tracker)

    def finished(self) -> None:
        """Release the reserved descriptors, and stop counting."""
        self._hold_descriptors(0)
        self.tracker.counters.remove_source(self.tracker)
