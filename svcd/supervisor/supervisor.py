"""The supervisor: starts, changes and stops the services."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from twisted.application.service import Service as TwistedService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from svcd.config.diff import as_configured, diff
from svcd.config.endpoints import DesiredServices
from svcd.connections.wait_port import WaitPort
from svcd.errors import ListenError, StoppingError
from svcd.host.systemd import ServiceManager, StatusReporter
from svcd.log.events import PROBLEM, READY, RELOAD, STOP, log_event
from svcd.model import ip_literal
from svcd.net.address_watch import AddressWatcher
from svcd.sockets.acquire import SocketPool
from svcd.supervisor.broken_services import BrokenServices, failure_of
from svcd.supervisor.draining import abort_all, attempt, drain
from svcd.supervisor.listener import Listener, hidden, number_of_port
from svcd.supervisor.running_service import RunningService, ServiceContext, read_time_zone
from svcd.supervisor.service_infos import service_infos, tcpmux_services
from svcd.supervisor.transaction import ReloadTransaction, wanted_endpoints
from svcd.tls.watcher import CertificateWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from svcd.config.diff import ReloadPlan
    from svcd.config.endpoints import Endpoint
    from svcd.config.service import Service
    from svcd.model import ConfigProblem
    from svcd.process.zygote_client import ZygoteClient
    from svcd.tls.certificates import ServerTls

__all__ = ["ReloadResult", "Supervisor"]


class ReloadResult(NamedTuple):
    """The result of a reload.

    Attributes:
        plan: the changes; its services are also those that can't be served.
        faults: the reasons why services can't be served as configured.
        broken: the ids of the services that can't be served as configured; empty for a difference.
    """

    plan: ReloadPlan
    faults: tuple[ConfigProblem | ListenError, ...]
    broken: tuple[str, ...] = ()


class Supervisor(TwistedService):
    """Runs the configured services; itself a Twisted service.

    Args:
        context: the objects that all services share.
        desired: the services to start.
        manager: the service manager; receives the status, and keeps the sockets while the daemon is restarted.
        socket_pool: sockets that are already open.
        strict: whether a service that can't be served prevents the start, and each change.

    Attributes:
        status_reporter: sends the status to the service manager.
        endpoints: the endpoints of the open sockets.
        hosted: the running services, by id.
        draining: removed services with open connections.
        broken: the services that can't be served as configured.
        disabled: the services that are disabled by a command or by the services file, by id.
        retry: called with the ids of broken services to try again; set before the daemon serves.
        store: keeps the sockets open when this daemon exits.
        registry: the counters and the state of the daemon.
    """

    _log = Logger()

    def __init__(
        self,
        context: ServiceContext,
        desired: DesiredServices,
        manager: ServiceManager,
        socket_pool: SocketPool | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self._context = context
        self._desired = desired
        self._strict = strict
        self._reactor = context.reactor
        self._budget = context.budget
        self._socket_pool = socket_pool
        self.registry = context.connections.registry
        self.registry.descriptors = lambda: (context.budget.open, context.budget.limit)
        self.store = context.store
        self.status_reporter = StatusReporter(context.deps.clock, manager, self._status)
        self.endpoints: tuple[Endpoint, ...] = ()
        self.hosted: dict[str, RunningService] = {}
        self.draining: list[RunningService] = []
        self.broken = BrokenServices(self._reactor)
        self.disabled = {service.id: service for service in desired.disabled}
        self.retry: Callable[[Sequence[str]], object] | None = None
        self._listeners: dict[Hashable, Listener] = {}
        self._zygote_clients: list[ZygoteClient] = []
        self._certificates = CertificateWatcher(context.deps.clock, self._all_tls, self._update_descriptions)
        self._addresses = AddressWatcher(self._reactor, self._addresses_changed)
        context.tcpmux_services = lambda: tcpmux_services(self._listeners.values())
        context.socket_freed = self.broken.socket_freed

    def privilegedStartService(self) -> None:
        """Open every socket and read the files that need root's rights; clients wait until startService().

        Raises:
            ListenErrors: no service, or with `strict` not every service, can be served: a socket can't be opened.
            ConfigError: the same, for other reasons.

        After such an error no socket is open.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        desired = self._desired
        socket_pool = self._socket_pool or SocketPool()
        self.store.hold_all(socket_pool, desired)
        change = ReloadTransaction(
            diff((), desired.endpoints), self._context, self.hosted, self._listeners, socket_pool
        )
        change.prepare()
        broken = change.broken_services(desired)
        serves = change.serves or any(each.pending for each in broken.values())
        if broken and (self._strict or not serves):
            change.discard()
            self.store.release_held()
            raise failure_of(broken.values(), strict=self._strict)
        change.commit(start=False)
        self._add_zygote(change.zygote_client)
        self._context.store_first_zygote(change.zygote_client)
        self._update_sockets()
        self.broken.update(broken)

    def startService(self) -> None:
        """Begin to serve."""
        super().startService()  # type: ignore[no-untyped-call]
        for listener in self._listeners.values():
            listener.start()
        for running in self.hosted.values():
            running.started()
        counts = {"services": len(self.hosted), "listeners": len(self._listeners)}
        log_event(self._log, READY, **counts, reactor=type(self._reactor).__name__)
        self._update_descriptions()
        self._certificates.start()
        self._addresses.start()
        if self.retry is not None:
            self.broken.start(self.retry)
        self.registry.state = "ready"
        self.status_reporter.start()

    def _status(self) -> str:
        """Return the status line for sd_notify(STATUS=)."""
        broken = f", broken: {len(self.broken)} ({', '.join(self.broken.ids)})" if self.broken else ""
        counts = f"services: {len(self.hosted)}, listeners: {len(self._listeners)}, connections: {self.connections}"
        return counts + broken

    @property
    def connections(self) -> int:
        """The number of connections, including those that wait for admission."""
        return sum(len(each.tracker.all_connections()) for each in self._all_running() if each.tracker is not None)

    def _all_running(self) -> list[RunningService]:
        return [*self.hosted.values(), *self.draining]

    def _all_tls(self) -> list[ServerTls]:
        return [running.tls for running in self.hosted.values() if running.tls is not None]

    @property
    def desired_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints that the services file requires, as far as they are known, whether open or not."""
        served = [endpoint for endpoint in self.endpoints if endpoint.service.id not in self.broken]
        return (*served, *(endpoint for each in self.broken for endpoint in each.endpoints))

    def change_to(self, desired: DesiredServices, *, now: bool = False, strict: bool = False) -> ReloadResult:
        """Change to other services. Connections of a removed service stay open.

        A service that can't be served as configured now is broken: it continues as before if it ran, and the other
        services change. A service whose line has not changed continues, even if the check reports a fault of it.

        Args:
            desired: the services to run.
            now: abort the connections of removed services.
            strict: change nothing if a service can't be served.

        Raises:
            ListenErrors: with `strict`: a socket can't be opened.
            ConfigError: with `strict`: another reason.
            StoppingError: the daemon is stopping.
        """
        self._refuse_while_stopping()
        began = self._reactor.seconds()
        before, services = self.endpoints, self._configured()
        plan = diff(before, wanted_endpoints(desired, self.endpoints), hidden(self._listeners))
        change = ReloadTransaction(plan, self._context, self.hosted, self._listeners)
        change.prepare()
        broken = change.broken_services(desired)
        if broken and (strict or self._strict):
            change.discard()
            raise failure_of(broken.values(), strict=True)
        self._commit(change, plan, now=now)
        for running in self.hosted.values():
            running.check_modules()
        broken |= change.failed_services(desired)
        # Certificate files may have changed under the same names.
        self._certificates.check_now()
        wanted = {endpoint.service.id for endpoint in desired.endpoints} | {each.service.id for each in desired.faulty}
        for service_id in set(self.broken.ids) - wanted:
            self.broken.remove(service_id)
        self.store.release_held(endpoint for each in broken.values() for endpoint in each.endpoints)
        self.broken.update(broken)
        self.disabled = {service.id: service for service in desired.disabled}
        self._update_descriptions()
        self.registry.reloads_done += 1
        # The actual changes of sockets: a broken service continues as before, or does not run.
        actual = as_configured(diff(before, self.endpoints), services, desired.services())
        counts = {"opened": len(actual.opened), "closed": len(actual.closed), "changed": len(actual.changed)}
        counts |= {"added": len(actual.added), "removed": len(actual.removed), "broken": len(broken)}
        log_event(self._log, RELOAD, **counts, seconds=round(self._reactor.seconds() - began, 6))
        faults = [problem for each in desired.faulty for problem in each.problems]
        for problem in faults:
            # Faults of broken services are logged with these, faults of certificates by CertificateWatcher.
            if problem.service not in broken and not problem.text.startswith("tls_"):
                log_event(self._log, PROBLEM, text=str(problem))
        failed = [error for each in broken.values() for error in each.errors]
        return ReloadResult(actual, tuple(dict.fromkeys([*failed, *faults])), tuple(broken))

    def _configured(self) -> dict[str, Service]:
        """Return the services as configured, whether they run or are broken, by id."""
        running = {name: running.service for name, running in self.hosted.items()}
        return running | {each.service.id: each.service for each in self.broken}

    def serve(self, checked: DesiredServices) -> None:
        """Start or change the services that were checked; the others stay as they are.

        Args:
            checked: these services, with the result of the check.

        Raises:
            StoppingError: the daemon is stopping.
        """
        self._refuse_while_stopping()
        tried = {endpoint.service.id for endpoint in checked.endpoints}
        others = [endpoint for endpoint in self.endpoints if endpoint.service.id not in tried]
        for endpoint in checked:
            self.disabled.pop(endpoint.service.id, None)
        self._change([*others, *checked.endpoints], checked)

    def disable(self, name: str) -> None:
        """Stop listening for a service until the next reload; its connections stay open.

        Raises:
            StoppingError: the daemon is stopping.
        """
        self._refuse_while_stopping()
        broken = self.broken.remove(name)
        self.disabled[name] = self.hosted[name].service if broken is None else broken.service
        self._change([endpoint for endpoint in self.endpoints if endpoint.service.id != name], DesiredServices(()))
        self.registry.counters(name).unavailable = ""

    def pause(self, name: str = "", *, paused: bool) -> list[Listener]:
        """Pause or resume accepting the connections of a service, or of all; return the listeners."""
        listeners = self.listeners_of(name)
        for listener in listeners:
            listener.pause(paused=paused)
        self._update_descriptions()
        return listeners

    def _refuse_while_stopping(self) -> None:
        if self.registry.state == "stopping":
            raise StoppingError

    def _change(self, target: Sequence[Endpoint], checked: DesiredServices) -> None:
        plan = diff(self.endpoints, target, hidden(self._listeners))
        change = ReloadTransaction(plan, self._context, self.hosted, self._listeners)
        change.prepare()
        broken = change.broken_services(checked)
        self._commit(change, plan)
        broken |= change.failed_services(checked)
        self.broken.update(broken, {endpoint.service.id for endpoint in checked})
        self._update_descriptions()

    def _commit(self, change: ReloadTransaction, plan: ReloadPlan, *, now: bool = False) -> None:
        ended = change.commit()
        self._add_zygote(change.zygote_client)
        self._update_sockets()
        self.refresh_addresses()
        for running in ended:
            self._retire(running, now=now and running.service in plan.removed)
        self._stop_idle_zygotes()

    def _add_zygote(self, zygote_client: ZygoteClient | None) -> None:
        if zygote_client is not None:
            self._zygote_clients.append(zygote_client)

    def _addresses_changed(self) -> None:
        self.refresh_addresses()
        self.broken.addresses_changed()
        # The interfaces named in bind= may have other addresses now.
        named = [name for name, each in self.hosted.items() if not all(map(ip_literal, each.service.options.bind))]
        if named and self.retry is not None:
            self.retry(named)

    def lost_rights(self) -> list[ConfigProblem]:
        """Return the problems of running services that a new daemon, started by this one, could not serve."""
        spawned = [each.service for each in self.hosted.values() if each.service.launches]
        if not spawned:
            return []
        # Only spawned services need rights.
        from svcd.supervisor.launch_rights import lost_rights

        return lost_rights(spawned, self._context.account)

    def difference(self, desired: DesiredServices) -> ReloadResult:
        """Return the result that a change to other services would have, except for socket errors; change nothing."""
        sockets = diff(self.desired_endpoints, tuple(desired), hidden(self._listeners))
        # Also services without a known socket, such as one whose host name can't be resolved.
        plan = as_configured(sockets, self._configured(), desired.services())
        faults = [problem for each in desired.faulty for problem in each.problems]
        known = {each.service.id for each in desired.faulty}
        for service in [*plan.added, *(new for _, new in plan.changed)]:
            if service.launches and service.id not in known:
                # Only spawned services need rights.
                from svcd.supervisor.launch_rights import rights_missing

                faults += rights_missing(self._context, service)
        return ReloadResult(plan, tuple(dict.fromkeys(faults)))

    def listeners_of(self, name: str = "") -> list[Listener]:
        """Return the listeners of a service, or of all services."""
        found = self._listeners.values()
        return [listener for listener in found if not name or listener.endpoint.service.id == name]

    @property
    def connection_counts(self) -> dict[str, int | None]:
        """The number of connections, including those handed over to processes, and its limit (--max-connections)."""
        return {
            "open": self._context.connections.global_limit.open,
            "limit": self._context.connections.global_limit.max_connections,
        }

    @property
    def descriptors(self) -> dict[str, int]:
        """The number of descriptors that connections use in the daemon, and its limit."""
        return {"open": self._budget.open, "limit": self._budget.limit}

    def log_from(self, level: str) -> None:
        """Set the log level: log events of this level and above.

        Raises:
            ValueError: there is no such level.
        """
        self._context.log_writer.set_level(level)
        for running in self._all_running():
            running.make_lines()

    def read_time_zone(self) -> None:
        """Read the machine's time zone and those of access_zone= again (tzset(3), tzfile(5))."""
        read_time_zone(self._context.log_writer, self._all_running())

    def refresh_addresses(self) -> None:
        """Read the addresses of the machine's interfaces again, for services that do not answer some of them."""
        for running in self.hosted.values():
            running.refresh_addresses()

    def _update_sockets(self) -> None:
        self.endpoints = tuple(listener.endpoint for listener in self._listeners.values())
        ports = {number_of_port(listener.opened) for listener in self._listeners.values()} - {0}
        self._context.own_ports.clear()
        self._context.own_ports.update(ports)

    def _update_descriptions(self) -> None:
        """Update the descriptions in the metrics registry; removed services keep theirs until they have drained."""
        running = [*self.draining, *self.hosted.values()]
        infos = service_infos(running, self._listeners.values(), self.broken, self.disabled.values())
        self.registry.describe(infos)

    def _retire(self, running: RunningService, *, now: bool) -> None:
        """Drain a removed service; finish it when its last connection has ended."""
        tracker = running.tracker
        if tracker is None:
            running.finished()
            return
        self.draining.append(running)
        if now:
            abort_all(running)

        def ended(_result: None) -> None:
            self.draining.remove(running)
            running.finished()
            tracker.service_admission.refusals.flush()
            self._update_descriptions()
            self._stop_idle_zygotes()

        tracker.when_empty().addCallback(ended)

    def _stop_idle_zygotes(self) -> None:
        """Stop the zygotes without a launcher."""
        for zygote_client in [
            zygote_client
            for zygote_client in self._zygote_clients
            if zygote_client.idle and zygote_client is not self._context.first_zygote_client
        ]:
            self._zygote_clients.remove(zygote_client)
            zygote_client.stop()

    def stopService(self) -> Deferred[object]:
        """Stop listening at once; drain the connections, and abort those open after their shutdown_timeout.

        Returns:
            A Deferred that fires when no connection is open.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.status_reporter.stopping()
        self._certificates.stop()
        log_event(self._log, STOP, connections=self.connections)
        self.stop_listening()
        ended = DeferredList([drain(running, self._reactor) for running in self._all_running()])
        ended.addCallback(
            lambda _results: DeferredList([zygote_client.stop() for zygote_client in self._zygote_clients])
        )
        ended.addCallback(lambda _results: self.status_reporter.stop())
        return ended.addCallback(lambda _results: self._context.log_writer.flush())

    @property
    def shutdown_seconds(self) -> float:
        """The longest shutdown_timeout of the stream services, including draining ones, in seconds."""
        timeouts = [each.service.options.shutdown_timeout for each in self._all_running() if each.tracker is not None]
        return max(timeouts, default=0.0)

    def hold(self, held: Mapping[int, int]) -> set[int]:
        """Leave sockets of wait=yes services to the processes that have them, until these exit.

        Args:
            held: the pid of the process, by the inode number of the socket.

        Returns:
            The inode numbers of the sockets that no service has.
        """
        waiting = {listener.inode: port for listener, port in self.wait_ports()}
        for inode in held.keys() & waiting.keys():
            waiting[inode].hold(held[inode])
        return held.keys() - waiting.keys()

    def wait_ports(self) -> Iterator[tuple[Listener, WaitPort]]:
        """Yield the listeners of wait=yes services with their ports."""
        for listener in self._listeners.values():
            if isinstance(listener.port, WaitPort):
                yield listener, listener.port

    def stop_listening(self) -> None:
        """Close every listening socket except those that the service manager keeps; connections stay open."""
        self.registry.state = "stopping"
        self.broken.stop()
        self.store.release_held()
        self._addresses.stop()
        # Services before listeners: tcpmux keeps the services that listeners offer, for its connected clients.
        for running in self._all_running():
            attempt(running, running.close)
        for listener in self._listeners.values():
            attempt(self.hosted[listener.endpoint.service.id], partial(listener.close, for_good=False))
        self._listeners.clear()

    def when_empty(self, call: Callable[[], None]) -> None:
        """Call a function once no service has a connection."""
        trackers = [each.tracker for each in self._all_running() if each.tracker is not None]
        empty = DeferredList([tracker.when_empty() for tracker in trackers])
        empty.addCallback(lambda _results: call())

    def abort_connections(self) -> None:
        """Abort every connection, at a second request to stop."""
        for running in self._all_running():
            abort_all(running)
