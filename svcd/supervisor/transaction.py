"""A change from the running services to others: prepared service by service, committed as a whole.

prepare() does everything that may fail. A service for which it fails is left out and recorded in `failures`; the others
change. commit() can't fail, with one exception: the address of a closed wait=yes socket can be bound again only after
the close, and not as long as a process has that socket. A service that gets no socket then is left out, too.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import chain, starmap
from typing import TYPE_CHECKING

from svcd.config.diff import socket_key
from svcd.config.endpoints import grouped
from svcd.connections.wait_port import WaitPort
from svcd.errors import ConfigError, ListenError, reason_of
from svcd.sockets.acquire import acquire_sockets
from svcd.sockets.listening import open_socket
from svcd.supervisor.broken_services import BrokenService
from svcd.supervisor.listener import Listener, ServingPort
from svcd.supervisor.root_given_up import with_restart
from svcd.supervisor.service_types import create_service, service_type

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from svcd.config.diff import ReloadPlan
    from svcd.config.endpoints import DesiredServices, Endpoint
    from svcd.config.service import Service
    from svcd.interfaces import FdReactor
    from svcd.model import ConfigProblem
    from svcd.process.zygote_client import ZygoteClient
    from svcd.sockets.acquire import SocketPool
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.running_service import Prepared, RunningService, ServiceContext

__all__ = ["ReloadTransaction", "wanted_endpoints"]


class ReloadTransaction:
    """A change from the running services to others.

    Args:
        plan: the changes.
        context: the objects that all services share.
        running: the running services, by id; commit() changes it.
        listeners: the listeners, by socket key; commit() changes it.
        socket_pool: sockets that are already open at the start of the daemon; None for a reload.

    Attributes:
        zygote_client: starts the new launchers; None if there are none.
        failures: the errors of services whose change failed, by id.
        unopened: the errors of sockets of services that have other sockets, by service id.
    """

    def __init__(
        self,
        plan: ReloadPlan,
        context: ServiceContext,
        running: dict[str, RunningService],
        listeners: dict[Hashable, Listener],
        socket_pool: SocketPool | None = None,
    ) -> None:
        self._plan = plan
        self._context = context
        self._running = running
        self._listeners = listeners
        self._socket_pool = socket_pool
        spawned = any(service.launches for service in [*plan.added, *(new for _, new in plan.changed)])
        self.zygote_client = _zygote_client(context.reactor) if spawned else None
        self.failures: dict[str, list[ConfigProblem | ListenError]] = {}
        self.unopened: dict[str, list[ConfigProblem | ListenError]] = {}
        self._prepared: dict[str, Prepared] = {}
        self._fresh: dict[str, RunningService] = {}
        self._opened: dict[Hashable, ListeningSocket] = {}
        self._sockets = grouped(plan.opened)
        self._with_permissions: dict[str, list[Listener]] = {}
        self._ports: dict[Hashable, ServingPort] = {}
        self._removed = frozenset(service.id for service in plan.removed)
        # The pid of the process that has the socket (0: none), by bind conflict key of a closed wait=yes endpoint; and
        # the endpoints with such a key, which are opened after the close.
        self._closed_waits = {_bind_conflict_key(each): 0 for each in plan.closed if each.service.options.wait}
        self._opened_late: list[Endpoint] = []

    def prepare(self) -> None:
        """Do everything that may fail. Running services are unchanged afterwards, even after an exception."""
        try:
            self._prepare()
        except BaseException:
            self.discard()
            raise

    def _prepare(self) -> None:
        services = [*self._plan.added, *(new for _, new in self._plan.changed)]
        for service in services:
            self._try(service, self._check_rights, service)
        self._open()
        self._apply_permissions()
        for service in services:
            self._try(service, self._make_service, service)
        self._make_ports()
        for service_id in list(self._fresh):
            self._try(self._fresh[service_id].service, self._fresh[service_id].start)
        self._start_launchers(services)

    def _try(self, service: Service, call: Callable[..., None], *arguments: object) -> None:
        """Call a step for a service, unless a step before it failed; record its error, of any type."""
        if service.id in self.failures:
            return
        try:
            call(*arguments)
        except ConfigError as error:
            self._fail(service.id, *error.problems)
        except ListenError as error:
            self._fail(service.id, error)
        except KeyboardInterrupt:
            # Ctrl-C stops the daemon; it is not an error of this service.
            raise
        except BaseException as error:  # noqa: BLE001 - an error of a factory concerns its service only
            self._fail(service.id, service.fault(service.runs, reason_of(error)))

    def _fail(self, service_id: str, *errors: ConfigProblem | ListenError) -> None:
        """Leave out a service: record its errors, and release the resources that were created for it."""
        self.failures.setdefault(service_id, []).extend(errors)
        for key in map(socket_key, self._sockets.get(service_id, ())):
            opened = self._opened.pop(key, None)
            if opened is not None:
                self._ports.pop(key, None)
                self._release_socket(opened)
        for listener in self._with_permissions.pop(service_id, ()):
            listener.opened.reapply()
        fresh, prepared = self._fresh.pop(service_id, None), self._prepared.pop(service_id, None)
        if fresh is not None:
            fresh.discard()
        if prepared is not None:
            prepared.discard()

    def _release_socket(self, opened: ListeningSocket) -> None:
        """Close a socket that this daemon has opened; keep an inherited socket, which can't be opened again."""
        if opened.origin:
            self._context.store.hold(opened)
        else:
            self._context.store.close_on_exit(opened)

    def _check_rights(self, service: Service) -> None:
        if not service.launches:
            return
        # Only spawned services need rights.
        from svcd.supervisor.launch_rights import rights_missing

        problems = rights_missing(self._context, service)
        if problems:
            raise ConfigError(problems)

    def _open(self) -> None:
        wanted = [endpoint for endpoint in self._plan.opened if endpoint.service.id not in self.failures]
        self._opened_late = [endpoint for endpoint in wanted if _bind_conflict_key(endpoint) in self._closed_waits]
        wanted = [endpoint for endpoint in wanted if _bind_conflict_key(endpoint) not in self._closed_waits]
        closing = [self._listeners[socket_key(endpoint)].opened.socket for endpoint in self._plan.closed]
        store, start = self._context.store, self._socket_pool is not None
        held = [found for endpoint in wanted if (found := self._take_held(endpoint)) is not None]
        taken = {socket_key(each.endpoint) for each in held}
        wanted = [endpoint for endpoint in wanted if socket_key(endpoint) not in taken]
        opened, errors = acquire_sockets(
            wanted, self._socket_pool, store if start else None, closing, name_owners=start
        )
        opened += held
        self._opened = {socket_key(each.endpoint): each for each in opened}
        by_place = {(endpoint.service.id, endpoint.address): endpoint for endpoint in wanted}
        for error in errors:
            self._note_unopened(error, by_place[error.service, error.address])
        for error in starmap(_contested_error, self._plan.contested):
            self.unopened.setdefault(error.service, []).append(error)
        usable = {each.endpoint.service.id for each in opened} | {new.service.id for _, new in self._plan.kept}
        usable |= {endpoint.service.id for endpoint in self._opened_late}
        for service_id in [each for each in self.unopened if each not in usable]:
            self._fail(service_id, *self.unopened.pop(service_id))

    def _note_unopened(self, error: ListenError, endpoint: Endpoint) -> None:
        self.unopened.setdefault(error.service, []).append(self._explained(error, endpoint))

    def _explained(self, error: ListenError, endpoint: Endpoint) -> ListenError:
        return with_restart(error, endpoint) if self._context.account.gave_up_root else error

    def _take_held(self, endpoint: Endpoint) -> ListeningSocket | None:
        try:
            return self._context.store.take_held(endpoint)
        except ListenError:
            # Not usable; opening a new socket at the address reports the reason.
            return None

    def _apply_permissions(self) -> None:
        """Apply the new permissions to the files of UNIX sockets that are kept."""
        for old, new in self._plan.kept:
            listener = self._listeners[socket_key(old)]
            self._with_permissions.setdefault(new.service.id, []).append(listener)
            self._try(new.service, self._set_permissions, listener.opened, new)

    def _set_permissions(self, opened: ListeningSocket, endpoint: Endpoint) -> None:
        try:
            opened.set_permissions(endpoint)
        except ListenError as error:
            raise self._explained(error, endpoint) from error

    def _make_service(self, service: Service) -> None:
        running = self._running.get(service.id)
        if running is not None and type(running) is service_type(service) and running.can_become(service):
            self._prepared[service.id] = running.prepare(service, self.zygote_client)
        else:
            self._fresh[service.id] = create_service(self._context, service, self.zygote_client)

    def _make_ports(self) -> None:
        """Create ports for new sockets, and for kept sockets that another service takes over."""
        for opened in list(self._opened.values()):
            self._try(opened.endpoint.service, self._make_port, opened, opened.endpoint)
        for old, new in self._plan.kept:
            if old.service.id != new.service.id or new.service.id in self._fresh:
                self._try(new.service, self._make_port, self._listeners[socket_key(old)].opened, new)

    def _make_port(self, opened: ListeningSocket, endpoint: Endpoint) -> None:
        service = endpoint.service
        running = self._fresh.get(service.id) or self._running[service.id]
        self._ports[socket_key(endpoint)] = running.port(opened, service)

    def _open_later(self, endpoint: Endpoint) -> None:
        """Open a socket at the address of a closed wait=yes socket.

        Raises:
            ListenError: the socket can't be opened.
            OSError: a file that the service needs can't be read.
        """
        pid, service = self._closed_waits[_bind_conflict_key(endpoint)], endpoint.service
        try:
            opened = open_socket(endpoint)
        except ListenError as error:
            if error.number != errno.EADDRINUSE or not pid:
                raise
            cause = f"process {pid} of a service with wait=yes still uses the socket, and was sent SIGTERM"
            named = ListenError(
                service.id, error.address, cause, "svcd tries again when the process has ended", error.number
            )
            named.owner_sought = True
            raise named from error
        try:
            self._make_port(opened, endpoint)
        except BaseException:
            opened.close()
            raise
        self._opened[socket_key(endpoint)] = opened

    def _start_launchers(self, services: list[Service]) -> None:
        if self.zygote_client is None:
            return
        try:
            self.zygote_client.start()
        except OSError as error:
            for service in services:
                if service.id in self.zygote_client.services:
                    reason = f"can't start its launcher: {reason_of(error)}"
                    self._fail(service.id, service.fault(service.runs, reason))

    def discard(self) -> None:
        """Undo everything that prepare() did."""
        for service_id in [*self._fresh, *self._prepared]:
            self._fail(service_id)
        for opened in self._opened.values():
            self._release_socket(opened)
        self._opened.clear()
        for listener in chain.from_iterable(self._with_permissions.values()):
            listener.opened.reapply()
        if self.zygote_client is not None:
            self.zygote_client.stop()

    @property
    def serves(self) -> bool:
        """Whether a service would run after commit()."""
        return bool(self._fresh or self._prepared or self._plan.same or self._running)

    def ends(self, service: Service) -> bool:
        """Return whether a running service has no socket after commit()."""
        return service.id in self._removed

    def broken_services(self, desired: DesiredServices) -> dict[str, BrokenService]:
        """Return the services that will not be served as configured, by id; call it after prepare()."""
        found = {}
        for each in desired.faulty:
            running = self._running.get(each.service.id)
            # A running service with an unchanged line continues unless others get all its sockets; its fault is logged.
            if running is None or running.service != each.service or self.ends(each.service):
                found[each.service.id] = BrokenService(each.service, each.endpoints, each.problems)
        return found | self.failed_services(desired)

    def failed_services(self, desired: DesiredServices) -> dict[str, BrokenService]:
        """Return the services of which a step has failed, by id."""
        found, sockets = {}, grouped(desired.endpoints)
        for errors in (self.failures, self.unopened):
            for service_id, reasons in errors.items():
                endpoints = tuple(sockets.get(service_id, ()))
                if endpoints:
                    found[service_id] = BrokenService(endpoints[0].service, endpoints, tuple(reasons))
        return found

    def commit(self, *, start: bool = True) -> list[RunningService]:
        """Apply the change.

        Args:
            start: whether the new ports accept clients at once; if not, the caller calls Listener.start().

        Returns:
            The services that were removed or replaced.
        """
        for prepared in self._prepared.values():
            prepared.commit()
        for service in self._plan.same:
            self._running[service.id].update_locations(service)
        replaced = [self._running[name] for name in self._fresh if name in self._running]
        ended = [self._running.pop(service.id) for service in self._plan.removed] + replaced
        self._running.update(self._fresh)
        self._move_sockets(start=start)
        ended += self._without_listeners()
        if start:
            for running in self._fresh.values():
                if running not in ended:
                    running.started()
        for running in ended:
            running.close()
            running.end_proxied()
        return ended

    def _move_sockets(self, *, start: bool) -> None:
        """Move each kept socket to its present service, close the others, and add the new ones."""
        for old, new in self._plan.kept:
            self._keep(old, new, start=start)
        for endpoint in self._plan.closed:
            # A service that can't be served as configured now continues as before.
            if endpoint.service.id not in self.failures:
                self._close(endpoint)
        for endpoint in self._opened_late:
            self._try_later(endpoint)
        for key, opened in self._opened.items():
            listener = self._listeners[key] = Listener(opened, self._context.budget, self._context.store)
            self._serve(listener, self._ports[key], start=start)

    def _try_later(self, endpoint: Endpoint) -> None:
        service = endpoint.service
        if service.id in self.failures:
            return
        try:
            self._open_later(endpoint)
        except ListenError as error:
            self._note_unopened(error, endpoint)
        except KeyboardInterrupt:
            # Ctrl-C stops the daemon; it is not an error of this service.
            raise
        except BaseException as error:  # noqa: BLE001 - an error of a service concerns that service only
            self.unopened.setdefault(service.id, []).append(service.fault(service.runs, reason_of(error)))

    def _keep(self, old: Endpoint, new: Endpoint, *, start: bool) -> None:
        if new.service.id in self.failures:
            if old.service.id not in self.failures:
                self._close(old)
            return
        listener = self._listeners[socket_key(old)]
        listener.retune(new)
        port = self._ports.get(socket_key(new))
        if port is not None:
            self._serve(listener, port, start=start)

    def _serve(self, listener: Listener, port: ServingPort, *, start: bool) -> None:
        listener.serve(port, self._running[listener.endpoint.service.id].attach)
        if start:
            listener.start()

    def _close(self, endpoint: Endpoint) -> None:
        listener = self._listeners.pop(socket_key(endpoint))
        listener.accept_all()
        if isinstance(listener.port, WaitPort):
            self._closed_waits[_bind_conflict_key(endpoint)] = listener.port.process
        listener.close()

    def _without_listeners(self) -> list[RunningService]:
        """Remove and return the services that failed and have no socket left, and those that got no socket."""
        served = {listener.endpoint.service.id for listener in self._listeners.values()}
        for service_id in [each for each in self.unopened if each not in served]:
            self.failures[service_id] = self.unopened.pop(service_id)
        return [self._running.pop(name) for name in self.failures if name in self._running and name not in served]


def wanted_endpoints(desired: DesiredServices, served: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the endpoints to serve.

    Args:
        desired: the configured services; those that can't be served keep the sockets that they have.
        served: the endpoints that are served now.
    """
    wanted = {socket_key(endpoint) for endpoint in desired.endpoints}
    faulty = {each.service.id: each.service for each in desired.faulty}
    kept = []
    for endpoint in served:
        service = faulty.get(endpoint.service.id)
        if service is not None and socket_key(endpoint) not in wanted:
            # The line of an unchanged service may have moved in the file: use the new positions.
            kept.append(replace(endpoint, service=service) if endpoint.service == service else endpoint)
    return [*desired.endpoints, *kept]


def _zygote_client(reactor: FdReactor) -> ZygoteClient:
    # Imported late: a daemon without spawned services needs no module of process/.
    from svcd.process.zygote_client import ZygoteClient

    return ZygoteClient(reactor)


def _bind_conflict_key(endpoint: Endpoint) -> Hashable:
    """Return a key that is equal for endpoints that may not be bound at the same time."""
    service = endpoint.service
    return service.net.shape, service.port if endpoint.version else service.path


def _contested_error(endpoint: Endpoint, other: Endpoint) -> ListenError:
    """Return the error of an address that another service of this daemon has."""
    owner = other.service
    cause = f"{owner.id} at {owner.location} has it"
    error = ListenError(endpoint.service.id, endpoint.address, cause, "change one of the two", errno.EADDRINUSE)
    error.owner_sought = True
    return error
