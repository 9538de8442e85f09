"""The kinds of running services, by what answers: a factory, a process, another service, or datagrams."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from twisted.logger import Logger

from svcd.addresses import LOCAL_CLIENT
from svcd.connections.access_rules import zone_of
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.factory import TrackingFactory
from svcd.connections.proxy_protocol import ProxyProtocolReader
from svcd.connections.refusals import RefusalReporter
from svcd.connections.spawned import SpawnedTracker
from svcd.connections.tcpmux import TcpmuxTracker
from svcd.connections.wait_port import WaitPort
from svcd.errors import reason_of
from svcd.host.info import broadcasts
from svcd.log.events import MODULE_CHANGED, PROBLEM, log_event
from svcd.model import SocketType, ip_literal
from svcd.process.module_files import ModuleFiles
from svcd.protocols.catalog import datagram_protocol, stream_factory
from svcd.protocols.http.server import HttpFactory
from svcd.sockets.datagram_port import DatagramPort, datagram_port
from svcd.sockets.ports import DescriptorPort, StreamPort
from svcd.supervisor.launch_spec import launch_spec
from svcd.supervisor.listener import no_op
from svcd.supervisor.running_service import Prepared, RunningService, ServiceContext
from svcd.tls.service_tls import ServiceTls

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IProtocolFactory

    from svcd.access.rules import Refusal
    from svcd.config.service import Service
    from svcd.connections.tracker import ConnectionTracker
    from svcd.connections.wrapper import ConnectionWrapper
    from svcd.interfaces import ConnectionHandler
    from svcd.process.zygote_client import ZygoteClient
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.listener import ServingPort
    from svcd.tls.certificates import ServerTls

__all__ = ["create_service"]

#: Descriptors that a spawned service has besides its connections: its launcher's, and one to ask the kernel by.
_LAUNCHER = 2

TrackerT = TypeVar("TrackerT", bound="ConnectionTracker[Any]")

#: Datagrams wait so long for the first lookup of the host names in their service's rules, in seconds.
_LOOKUP_SECONDS = 2.0


class _BaseService(RunningService):
    _leave_hosts: Callable[[], None] = staticmethod(no_op)

    def _follow_hosts(self, changed: Callable[[], None]) -> frozenset[str]:
        """Call this when host names in the rules of a datagram service have other addresses; returns the names."""
        self._leave_hosts()
        names = self._shared.connections.host_names(self.service)
        self._leave_hosts = self._shared.connections.hosts.follow(names, changed) if names else no_op
        return names

    def can_become(self, service: Service) -> bool:
        """Whether another service could be served by this one with other options."""
        return service_type(service) is type(self)


class TrackedService(_BaseService, Generic[TrackerT]):
    """A service with connections, which a keeper has."""

    tracker: TrackerT
    _header_reader: ProxyProtocolReader | None = None
    _tls: ServiceTls | None = None
    _held = 0

    @property
    def tls(self) -> ServerTls | None:
        return None if self._tls is None else self._tls.server

    def _use_tracker(self, tracker: TrackerT) -> None:
        self.tracker = tracker
        tracker.budget.cost = _cost(self.service)
        tracker.start_timeouts(self._shared.reactor.callLater)
        if self.service.options.proxy_protocol:
            self._header_reader = ProxyProtocolReader(tracker, self._shared.header_queue)

    def _hold_descriptors(self, count: int) -> None:
        """Have so many descriptors kept for the service, besides those of its connections."""
        self._shared.budget.hold(count - self._held)
        self._held = count

    def _make_tls(self, service: Service, service_admission: ServiceAdmission) -> ServiceTls:
        """The TLS of the service, if it has any."""
        tls = ServiceTls(self._shared.reactor, self._shared.deps.files, service_admission.counters)
        tls.prepare(service)()
        return tls

    def _descriptor_port(
        self, opened: ListeningSocket, serve: ConnectionHandler, may_accept: Callable[[], int]
    ) -> DescriptorPort:
        """A port that hands connections on, those of proxies once their headers are read."""
        take = serve if self._header_reader is None else partial(self._header_reader.take, serve)
        return DescriptorPort(
            self._shared.reactor, opened.socket, take, may_accept, self._shared.budget.pause_all, serve
        )

    def can_become(self, service: Service) -> bool:
        # With and without proxies there are other ports.
        return super().can_become(service) and bool(service.options.proxy_protocol) == (self._header_reader is not None)

    def close(self) -> None:
        self._leave_hosts()

    def end_proxied(self) -> None:
        if self._header_reader is not None:
            self._header_reader.close()

    def prepare(self, service: Service, zygote_client: ZygoteClient) -> Prepared:
        retune = self.tracker.service_admission.prepare(service)
        also = self._prepare_more(service, zygote_client)

        def commit() -> None:
            retune()
            self.service = service
            self.tracker.retune(service)
            self.tracker.budget.cost = _cost(service)
            self._hold_descriptors(_standing(service))
            if self._header_reader is not None:
                self._header_reader.retune(service)
            also.commit()

        return Prepared(commit, also.discard)

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient) -> Prepared:  # noqa: ARG002 - as all
        """Prepare what this kind alone needs."""
        return Prepared(no_op, no_op)


class StreamService(TrackedService[TrackingFactory]):
    """A stream service that runs in the daemon.

    Its factory is started before the service accepts its first client, and stopped when it accepts no more.
    """

    _log = Logger()
    _tls: ServiceTls

    def __init__(self, shared: ServiceContext, service: Service, zygote_client: ZygoteClient) -> None:  # noqa: ARG002 - as all
        super().__init__(shared, service)
        service_admission = ServiceAdmission(shared.connections, service)
        self._factory = self._make_factory(service)
        self._factories = [self._factory]
        self._started = False
        self._tls = self._make_tls(service, service_admission)
        factory = self._tls.wrap_factory(self._factory)
        self._use_tracker(TrackingFactory(service, shared.connections, service_admission, factory, self._wrappers()))
        self.tracker.budget.evict_by(self._evict)

    def _evict(self) -> bool:
        """Close a connection that is idle or slow for another one; returns whether there is one."""
        evicts = (each.evict() for each in self._factories if isinstance(each, HttpFactory))
        return any(evicts) or self._tls.evict()

    def _wrappers(self) -> type[ConnectionWrapper] | None:
        """The kind of gate that connections with TLS have; None for the kind that each protocol needs."""
        if self._tls.handshakes is None:
            return None
        # Services without TLS need not load this.
        from svcd.connections.tls_wrapper import TlsWrapper

        return TlsWrapper

    def _make_factory(self, service: Service) -> IProtocolFactory:
        """The factory of the service, whose connections take descriptors of the service's share."""
        shared = self._shared
        made = stream_factory(service, replace(shared.deps, descriptors=shared.budget.share(service.id)))
        reference = service.options.factory
        if reference and reference not in shared.modules:
            shared.modules[reference] = ModuleFiles(reference)
        return made

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:  # noqa: ARG002 - as all
        budget, share, service_admission = self._shared.budget, self.tracker.budget, self.tracker.service_admission

        def may_accept() -> int:
            return share.room() if service_admission.may_accept() else 0

        # A reactor may have a better port than the one that works on all of them.
        adopt = getattr(self._shared.reactor, "adoptStreamSocket", None) or partial(StreamPort, self._shared.reactor)
        made: StreamPort = adopt(opened.socket, self.tracker, may_accept, budget.pause_all)
        return made if self._header_reader is None else self._descriptor_port(opened, made.adopt, may_accept)

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient) -> Prepared:  # noqa: ARG002 - as all
        factory, secure = self._make_factory(service), self._tls.prepare(service)
        factory.doStart()

        def commit() -> None:
            secure()
            before, self._factory = self._factory, factory
            # Of those before, the connections that are open.
            used = [each for each in self._factories if isinstance(each, HttpFactory) and each.connections.open]
            self._factories = [*used, factory]
            self.tracker.replace_factory(self._tls.wrap_factory(factory), self._wrappers())
            self._stop_factory(before)

        return Prepared(commit, partial(self._stop_factory, factory))

    def start(self) -> None:
        self._factory.doStart()
        self._started = True

    def close(self) -> None:
        super().close()
        if self._started:
            self._started = False
            self._stop_factory(self._factory)

    def _stop_factory(self, factory: IProtocolFactory) -> None:
        """Stop a factory; what its stopFactory() raises is logged, and is the end of nothing else."""
        try:
            factory.doStop()
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException as error:  # noqa: BLE001 - the service's own code
            log_event(self._log, PROBLEM, text=f"{self.service.id}: {reason_of(error)}")

    def check_modules(self) -> None:
        known = self._shared.modules.get(self.service.options.factory)
        changed = known.changed() if known is not None else ""
        if changed:
            text = f"module {changed} changed on disk; it runs in the daemon: svcctl upgrade imports it anew"
            log_event(self._log, MODULE_CHANGED, service=self.service.id, text=text)

    def started(self) -> None:
        self._hold_descriptors(_standing(self.service))
        self.tracker.counters.add_source(self.tracker)

    def finished(self) -> None:
        self._hold_descriptors(0)
        self.tracker.counters.remove_source(self.tracker)


class SpawnedService(TrackedService[SpawnedTracker]):
    """A stream service whose connections have processes of their own."""

    _tls: ServiceTls

    def __init__(self, shared: ServiceContext, service: Service, zygote_client: ZygoteClient) -> None:
        super().__init__(shared, service)
        self._spec = launch_spec(service, shared.account)
        launcher_client = shared.linker(service, self._spec, zygote_client)
        service_admission = ServiceAdmission(shared.connections, service)
        self._tls = self._make_tls(service, service_admission)
        self._use_tracker(SpawnedTracker(service, shared.connections, service_admission, launcher_client, self._tls))
        self.tracker.budget.evict_by(self._tls.evict)

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        if service.options.wait:
            return WaitPort(self._shared.reactor, opened.socket, self.tracker, self._shared.socket_freed)
        return self._descriptor_port(opened, self.tracker.take, self.tracker.may_accept)

    def attach(self, port: ServingPort) -> Callable[[], None]:
        leave = super().attach(port)
        leave_room = self.tracker.when_room(port.resume)

        def leave_both() -> None:
            leave()
            leave_room()

        return leave_both

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient) -> Prepared:
        spec, secure = launch_spec(service, self._shared.account), self._tls.prepare(service)
        if spec == self._spec:

            def keep() -> None:
                secure()
                self._follow_hosts(self._retune_admission)

            return Prepared(keep, no_op)
        launcher_client = self._shared.linker(service, spec, zygote_client)(self.tracker)

        def commit() -> None:
            secure()
            self._spec = spec
            self.tracker.relink(launcher_client)
            self.started()

        return Prepared(commit, launcher_client.stop)

    def can_become(self, service: Service) -> bool:
        return super().can_become(service) and service.options.wait == self.service.options.wait

    def restart(self) -> Deferred[dict[str, object]]:
        def named(found: dict[str, object]) -> dict[str, object]:
            return {"service": self.service.id, **found}

        return self.tracker.restart().addCallback(named)

    def check_modules(self) -> None:
        self.tracker.launcher_client.check_module()

    def started(self) -> None:
        self._hold_descriptors(_standing(self.service))
        self._follow_hosts(self._retune_admission)
        self.tracker.begin()

    def discard(self) -> None:
        super().discard()
        self.finished()

    def _retune_admission(self) -> None:
        self.tracker.service_admission.admission.retune(self._shared.connections.rules(self.service))

    def finished(self) -> None:
        self._hold_descriptors(0)
        self.tracker.launcher_client.stop()


class TcpmuxService(TrackedService[TcpmuxTracker]):
    """tcpmux, whose connections become those of other services."""

    def __init__(self, shared: ServiceContext, service: Service, zygote_client: ZygoteClient) -> None:  # noqa: ARG002 - as all
        super().__init__(shared, service)
        service_admission = ServiceAdmission(shared.connections, service)
        self._use_tracker(TcpmuxTracker(service, shared.connections, service_admission, shared.tcpmux_services))

    def close(self) -> None:
        super().close()
        self.tracker.close()

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:  # noqa: ARG002 - as all
        return self._descriptor_port(opened, self.tracker.take, self.tracker.may_accept)


class DatagramService(_BaseService):
    """A datagram service that runs in the daemon."""

    def __init__(self, shared: ServiceContext, service: Service, zygote_client: ZygoteClient) -> None:  # noqa: ARG002 - as all
        super().__init__(shared, service)
        self._counters = shared.connections.registry.counters(service.id)
        self._refusals = RefusalReporter(shared.connections, self._counters)
        self._refusals.make_line(service)
        self._answering = shared.connections.datagram_filter(service)
        self.refresh_addresses()
        self._ports: list[ServingPort] = []
        self._waited: IDelayedCall | None = None
        self._settled = False

    def refresh_addresses(self) -> None:
        self._answering.set_local_addresses(self._shared.own_ports, broadcasts())

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        shared, protocol = self._shared, datagram_protocol(service, self._shared.deps)
        return datagram_port(
            shared.reactor, opened.socket, protocol, self._answering, self._refused, ready=self._is_ready
        )

    def attach(self, port: ServingPort) -> Callable[[], None]:
        counters, source = self._counters, cast("DatagramPort", port)
        counters.add_source(source)
        self._ports.append(port)

        def leave() -> None:
            counters.remove_source(source)
            self._ports.remove(port)

        return leave

    def started(self) -> None:
        if self._follow_hosts(self._know_hosts) and not self._is_ready():
            self._waited = self._shared.reactor.callLater(_LOOKUP_SECONDS, self._settle)

    def _is_ready(self) -> bool:
        """Whether datagrams are read: not before the host names in the rules have been looked up, or could be."""
        connections = self._shared.connections
        return self._settled or connections.hosts.answered(connections.host_names(self.service))

    def _know_hosts(self) -> None:
        self._answering.retune(self._shared.connections.rules(self.service))
        if self._is_ready():
            self._settle()

    def _settle(self) -> None:
        if self._waited is not None and self._waited.active():
            self._waited.cancel()
        if not self._settled:
            self._settled = True
            for port in self._ports:
                port.resume()

    def update_locations(self, service: Service) -> None:
        super().update_locations(service)
        # Refuse lines name the places of rules.
        self._answering.retune(self._shared.connections.rules(service))

    def close(self) -> None:
        self._leave_hosts()
        if self._waited is not None and self._waited.active():
            self._waited.cancel()

    def make_lines(self) -> None:
        self._refusals.make_line(self.service)

    def read_time_zone(self) -> None:
        self._answering.read_time_zone(zone_of(self.service))

    def _refused(self, refusal: Refusal, host: str, port: int) -> None:
        peer = self._shared.log_writer.format_peer(host, port) if port >= 0 else host or LOCAL_CLIENT
        self._refusals.report(refusal, peer)

    def finished(self) -> None:
        self._refusals.flush()

    def can_become(self, service: Service) -> bool:  # noqa: ARG002 - as all
        """It has no connections: another one takes its place, on the same sockets."""
        return False

    def prepare(self, service: Service, zygote_client: ZygoteClient) -> Prepared:
        raise NotImplementedError


def service_type(service: Service) -> type[StreamService | SpawnedService | TcpmuxService | DatagramService]:
    """What kind of Running a service is."""
    if service.spawned:
        return SpawnedService
    if service.builtin.multiplexer:
        return TcpmuxService
    return StreamService if service.net.shape is SocketType.STREAM else DatagramService


def _cost(service: Service) -> int:
    """How many descriptors a connection of a service takes in the daemon, its own among them."""
    if service.runs == "redirect":
        # The server's; of a name two addresses may be tried at the same time.
        return 3 if _is_named(service) else 2
    if service.options.root:
        # A file that is sent.
        return 2
    # The client's, and a pair of sockets whose other end goes to the process.
    return 3 if service.spawned and service.tls else 1


def _standing(service: Service) -> int:
    """How many descriptors a service takes in the daemon besides those of its sockets and connections."""
    if service.spawned:
        return _LAUNCHER
    # A lookup: of one name there is one at a time.
    return int(_is_named(service))


def _is_named(service: Service) -> bool:
    """Whether the server of a redirection is known by a name that has to be looked up."""
    server = service.options.redirect
    return server is not None and not ip_literal(server.host)


def create_service(shared: ServiceContext, service: Service, zygote_client: ZygoteClient) -> RunningService:
    """Make a service that is to run.

    Raises:
        ConfigError: its factory can't be made.
        KeyError: a user or group is not known any more.
        OSError: a file that it needs can't be read.
    """
    return service_type(service)(shared, service, zygote_client)
