"""The base class of running services with connections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from svcd.model import ip_literal
from svcd.supervisor.listener import no_op
from svcd.supervisor.running_service import Prepared, RunningService
from svcd.tls.service_tls import ServiceTls

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.proxy_protocol import ProxyProtocolReader
    from svcd.connections.tracker import ConnectionTracker
    from svcd.interfaces import ConnectionHandler
    from svcd.process.zygote_client import ZygoteClient
    from svcd.sockets.listening import ListeningSocket
    from svcd.sockets.ports import DescriptorPort
    from svcd.tls.certificates import ServerTls

__all__ = ["TrackedService", "standing_descriptors"]

#: Descriptors of a spawned service besides those of its connections: one of its launcher and one for sock_diag(7).
_LAUNCHER = 2

TrackerT = TypeVar("TrackerT", bound="ConnectionTracker[Any]")


class TrackedService(RunningService, Generic[TrackerT]):
    """A running service with connections."""

    tracker: TrackerT
    _header_reader: ProxyProtocolReader | None = None
    _tls: ServiceTls | None = None
    _held = 0

    @property
    def tls(self) -> ServerTls | None:
        """The certificates of the service; None without TLS."""
        return None if self._tls is None else self._tls.server

    def _use_tracker(self, tracker: TrackerT) -> None:
        self.tracker = tracker
        tracker.budget.cost = _cost(self.service)
        tracker.start_timeouts(self._context.reactor.callLater)
        if self.service.options.proxy_protocol:
            # Imported late: few services have proxy_protocol=.
            from svcd.connections.proxy_protocol import ProxyProtocolReader

            self._header_reader = ProxyProtocolReader(tracker, self._context.header_queue)

    def _hold_descriptors(self, count: int) -> None:
        """Set the number of descriptors reserved for the service, besides those of its connections."""
        self._context.budget.hold(count - self._held)
        self._held = count

    def _make_tls(self, service: Service, service_admission: ServiceAdmission) -> ServiceTls:
        """Return the TLS settings of the service; they are empty without TLS."""
        tls = ServiceTls(self._context.reactor, self._context.deps.files, service_admission.counters)
        tls.prepare(service)()
        return tls

    def _descriptor_port(
        self, opened: ListeningSocket, serve: ConnectionHandler, may_accept: Callable[[], int]
    ) -> DescriptorPort:
        """Return a port that passes on descriptors of connections, with proxy_protocol= after their PROXY headers."""
        # Imported late: services in the daemon use the reactor's own port.
        from svcd.sockets.ports import DescriptorPort

        take = serve if self._header_reader is None else partial(self._header_reader.take, serve)
        return DescriptorPort(
            self._context.reactor, opened.socket, take, may_accept, self._context.budget.pause_all, serve
        )

    def can_become(self, service: Service) -> bool:
        """Return whether the ports can stay: with proxy_protocol= they are of another type than without."""
        return bool(service.options.proxy_protocol) == (self._header_reader is not None)

    def close(self) -> None:
        """Stop the lookups of host names."""
        self._unfollow_hosts()

    def end_proxied(self) -> None:
        """Close the connections without a complete PROXY header."""
        if self._header_reader is not None:
            self._header_reader.close()

    def prepare(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        """Prepare a change to new options.

        Raises:
            ConfigError, KeyError, OSError: as in RunningService.prepare().
        """
        retune = self.tracker.service_admission.prepare(service)
        also = self._prepare_more(service, zygote_client)

        def commit() -> None:
            retune()
            self.service = service
            self.tracker.retune(service)
            self.tracker.budget.cost = _cost(service)
            self._hold_descriptors(standing_descriptors(service))
            if self._header_reader is not None:
                self._header_reader.retune(service)
            also.commit()

        return Prepared(commit, also.discard)

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:  # noqa: ARG002 - as all
        """Prepare the part of a change that is particular to this class."""
        return Prepared(no_op, no_op)


def _cost(service: Service) -> int:
    """Return the number of descriptors that a connection of a service takes in the daemon, including its own."""
    if service.runs == "redirect":
        # One more for the server; for a name two, as two addresses may be tried at the same time.
        return 3 if _is_named(service) else 2
    if service.options.cgi:
        # Two more for a program: its socket has two ends until it has started.
        return 3
    if service.options.root:
        # One more for a file that is sent.
        return 2
    # With TLS or WebSocket two more for a socketpair, one end of which goes to the process.
    return 3 if service.piped else 1


def standing_descriptors(service: Service) -> int:
    """Return the number of descriptors that a service takes besides those of its listeners and connections."""
    if service.spawned:
        return _LAUNCHER
    # For the launcher; for a directory and its duplicate in os.scandir(): listings are made one after the other.
    held = int(service.launches) + 2 * service.options.listing
    if held:
        return held
    # One for a lookup: each name is looked up once at a time.
    return int(_is_named(service))


def _is_named(service: Service) -> bool:
    """Return whether redirect= gives its server by a name that has to be looked up."""
    server = service.options.redirect
    return server is not None and not ip_literal(server.host)
