"""One reload: everything that may fail is done first and can be taken back; what follows can't fail."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from svcd.config.plan import socket_key
from svcd.errors import ConfigError, ListenError, ListenErrors
from svcd.handlers.nurse import Nurse
from svcd.supervisor.kinds import run
from svcd.supervisor.listeners import Listener, Port
from svcd.transport.opening import open_all
from svcd.transport.specs import root_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from svcd.config.check import Endpoint
    from svcd.config.plan import Plan
    from svcd.supervisor.running import Running, Shared
    from svcd.transport.sockets import OpenSocket

__all__ = ["Change"]


class Change:
    """The way from the services that run to others.

    Args:
        made: what is to be done.
        shared: what all services have in common.
        running: the services that run, by name; commit() changes it.
        listeners: the sockets, by address; commit() changes it.

    Attributes:
        nurse: has the launchers that are new.
    """

    def __init__(
        self, made: Plan, shared: Shared, running: dict[str, Running], listeners: dict[Hashable, Listener]
    ) -> None:
        self._plan = made
        self._shared = shared
        self._running = running
        self._listeners = listeners
        self.nurse = Nurse(shared.reactor)
        self._commits: list[Callable[[], None]] = []
        self._fresh: dict[str, Running] = {}
        self._opened: list[OpenSocket] = []
        self._permitted: list[tuple[Listener, Endpoint]] = []
        self._ports: dict[Hashable, Port] = {}

    def prepare(self) -> None:
        """Do what may fail; if it does, nothing has changed.

        Raises:
            ListenErrors: a socket can't be had.
            ConfigError: a service can't be made, or asks for what only root can give.
            OSError: a file that a service needs can't be read, or there can't be another process.
        """
        services = [*self._plan.added, *(new for _, new in self._plan.changed)]
        problems = [problem for each in services for problem in root_needed(each, self._shared.account)]
        if problems:
            raise ConfigError(problems)
        try:
            leaving = [self._listeners[socket_key(endpoint)].opened.socket for endpoint in self._plan.closed]
            self._opened = open_all(self._plan.opened, leaving=leaving)
            self._permit()
            self._make_services()
            self._make_ports()
            self.nurse.start()
        except BaseException:
            self._take_back()
            raise

    def _permit(self) -> None:
        """Let the files of UNIX sockets have other permissions where they stand."""
        for old, new in self._plan.kept:
            listener = self._listeners[socket_key(old)]
            self._permitted.append((listener, old))
            try:
                listener.opened.permit(new)
            except ListenError as error:
                raise ListenErrors([error]) from error

    def _make_services(self) -> None:
        for service in self._plan.added:
            self._fresh[service.id] = run(self._shared, service, self.nurse)
        for _, service in self._plan.changed:
            running = self._running[service.id]
            if running.like(service):
                self._commits.append(running.prepare(service, self.nurse))
            else:
                self._fresh[service.id] = run(self._shared, service, self.nurse)

    def _make_ports(self) -> None:
        """Ports for new sockets, and for those that are kept for somebody else."""
        for opened in self._opened:
            self._ports[socket_key(opened.endpoint)] = self._port(opened, opened.endpoint)
        for old, new in self._plan.kept:
            if old.service.id != new.service.id or new.service.id in self._fresh:
                self._ports[socket_key(new)] = self._port(self._listeners[socket_key(old)].opened, new)

    def _port(self, opened: OpenSocket, endpoint: Endpoint) -> Port:
        service = endpoint.service
        running = self._fresh.get(service.id) or self._running[service.id]
        return running.port(opened, service)

    def _take_back(self) -> None:
        for opened in self._opened:
            opened.close()
        for listener, old in self._permitted:
            with contextlib.suppress(ListenError):
                listener.opened.permit(old)
        self.nurse.stop()

    def commit(self) -> list[Running]:
        """Let the new services run; returns those that are no more."""
        for commit in self._commits:
            commit()
        for service in self._plan.same:
            self._running[service.id].stay(service)
        gone = [self._running.pop(service.id) for service in self._plan.removed]
        gone += [self._running[name] for name in self._fresh if name in self._running]
        self._running.update(self._fresh)
        for old, new in self._plan.kept:
            listener = self._listeners[socket_key(old)]
            listener.retune(new)
            port = self._ports.get(socket_key(new))
            if port is not None:
                listener.serve(port, self._running[new.service.id].join)
                listener.start()
        for endpoint in self._plan.closed:
            leaving = self._listeners.pop(socket_key(endpoint))
            leaving.accept_all()
            leaving.close()
        for opened in self._opened:
            key = socket_key(opened.endpoint)
            listener = self._listeners[key] = Listener(opened, self._shared.budget, self._shared.store)
            listener.serve(self._ports[key], self._running[opened.endpoint.service.id].join)
            listener.start()
        for running in self._fresh.values():
            running.begin()
        for running in gone:
            running.close()
        return gone
