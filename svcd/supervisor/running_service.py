"""The base class of running services, and the objects that they share."""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from svcd.connections.proxy_protocol import HeaderQueue
from svcd.errors import CommandError
from svcd.supervisor.listener import no_op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.internet.defer import Deferred

    from svcd.config.service import Service
    from svcd.connections.context import ConnectionContext
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.connections.tracker import ConnectionTracker
    from svcd.interfaces import ConnectionHandler, FdReactor
    from svcd.log.writer import LogWriter
    from svcd.process.module_files import ModuleFiles
    from svcd.process.zygote_client import ZygoteClient
    from svcd.protocols.catalog import ServiceDependencies
    from svcd.sockets.acquire import FdStore
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.daemon_account import DaemonAccount
    from svcd.supervisor.listener import ServingPort
    from svcd.tls.certificates import ServerTls

__all__ = ["Prepared", "RunningService", "ServiceContext", "read_time_zone"]


@dataclass(slots=True)
class ServiceContext:
    """The objects that all services of the daemon share.

    Attributes:
        connections: the objects that the admission and the trackers of all services share.
        deps: the objects that built-in services may need.
        account: the account that runs handlers without user=.
        store: keeps the sockets open while the daemon is restarted.
        tcpmux_services: returns the handlers of the services that tcpmux offers, by name.
        own_ports: the port numbers of the daemon's datagram services; datagrams from these are not answered.
        modules: the files of factories' modules, by `module:name`, as they were when they were imported.
        socket_freed: called when a process of a wait=yes service has exited and the service no longer has its socket.
        first_zygote_client: the client of the zygote that was started as root, before the daemon gave up root, and
            that keeps root's rights; None if there is none.
        reactor, log_writer, budget: those of `connections`.
        header_queue: bounds the connections that wait for their PROXY headers.
    """

    connections: ConnectionContext
    deps: ServiceDependencies
    account: DaemonAccount
    store: FdStore
    tcpmux_services: Callable[[], Mapping[str, ConnectionHandler]] = dict
    own_ports: set[int] = field(default_factory=set)
    modules: dict[str, ModuleFiles] = field(default_factory=dict)
    socket_freed: Callable[[], None] = no_op
    first_zygote_client: ZygoteClient | None = None
    reactor: FdReactor = field(init=False)
    log_writer: LogWriter = field(init=False)
    budget: DescriptorBudget = field(init=False)
    header_queue: HeaderQueue = field(init=False)

    def __post_init__(self) -> None:
        """Copy the objects that services use most from the connection context."""
        self.reactor = self.connections.reactor
        self.log_writer = self.connections.log_writer
        self.budget = self.connections.budget
        self.header_queue = HeaderQueue(self.reactor, self.budget)

    def store_first_zygote(self, zygote_client: ZygoteClient | None) -> None:
        """Store the client of the first zygote if it runs as root and the daemon is about to give up root."""
        if os.geteuid() == 0 and self.account.user is not None:
            self.first_zygote_client = zygote_client


class Prepared(NamedTuple):
    """New options of a running service, prepared so that they can be applied without an error.

    Attributes:
        commit: applies the options; can't fail.
        discard: releases the objects that were created for them.
    """

    commit: Callable[[], None]
    discard: Callable[[], None]


class RunningService(ABC):
    """A running service: creates ports for its sockets, and accepts new options while it runs.

    Attributes:
        service: the service as configured.
        tracker: tracks its connections; None for a datagram service.
    """

    tracker: ConnectionTracker[Any] | None = None
    _unfollow_hosts: Callable[[], None] = staticmethod(no_op)

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:  # noqa: ARG002 - used by spawned services
        self._context = context
        self.service = service

    @property
    def tls(self) -> ServerTls | None:
        """The certificates of the service; None without TLS."""
        return None

    @abstractmethod
    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        """Return a new port for one of the service's sockets.

        Args:
            opened: the socket.
            service: the service with the options that apply when the port starts.

        Raises:
            OSError: a file that the service needs can't be read.
        """

    @abstractmethod
    def prepare(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        """Prepare a change to new options.

        Args:
            service: the service with the new options.
            zygote_client: takes in a launcher if the options need a new one; it is started before they apply.

        Raises:
            ConfigError: the factory of the service can't be created.
            KeyError: passwd(5) or group(5) no longer has a user or group of the options.
            OSError: a file that it needs can't be read.
        """

    def start(self) -> None:  # noqa: B027 - optional hook
        """Start the service's own code, such as its factory, before it serves.

        Raises:
            Exception: any error of that code.
        """

    def discard(self) -> None:
        """Release the resources of a service that was created but will not run."""
        self.close()

    def attach(self, port: ServingPort) -> Callable[[], None]:
        """Let the service pause and resume a port; return a function that ends this."""
        return no_op if self.tracker is None else self.tracker.service_admission.listen(port.pause, port.resume)

    def update_locations(self, service: Service) -> None:
        """Use the new positions of the options in the services file."""
        moved = service.locations != self.service.locations
        self.service = service
        if moved and self.tracker is not None:
            self.tracker.service_admission.update_locations(service)
        if self.tls is not None:
            self.tls.update_locations(service)

    def make_lines(self) -> None:
        """Create the log lines of connections and refusals again, for another log level."""
        if self.tracker is not None:
            self.tracker.retune(self.tracker.service)
            self.tracker.service_admission.make_line()

    def read_time_zone(self) -> None:
        """Read the time zone of access_times again.

        Raises:
            OSError, KeyError: the machine no longer has it; the one read before stays in use.
        """
        if self.tracker is not None:
            self.tracker.service_admission.read_time_zone()

    @abstractmethod
    def can_become(self, service: Service) -> bool:
        """Return whether this service can change to the options of another one of its type and keep its ports."""

    def refresh_addresses(self) -> None:  # noqa: B027 - optional hook
        """Read the addresses of the machine's interfaces again."""

    def _follow_hosts(self, changed: Callable[[], None]) -> frozenset[str]:
        """Follow the addresses of the host names in the access rules; return the names.

        Args:
            changed: called after each change of an address.
        """
        self._unfollow_hosts()
        names = self._context.connections.host_names(self.service)
        self._unfollow_hosts = self._context.connections.hosts.follow(names, changed) if names else no_op
        return names

    def started(self) -> None:  # noqa: B027 - optional hook
        """Handle the start of serving: the ports accept clients now."""

    def restart(self) -> Deferred[dict[str, object]]:
        """Restart the service's launcher; no client is refused meanwhile.

        Returns:
            The Deferred of LauncherReports.restart().

        Raises:
            CommandError: the service has no launcher.
        """
        raise CommandError(f"{self.service.id} runs in the daemon and has no launcher; use svcctl upgrade")

    def check_modules(self) -> None:  # noqa: B027 - optional hook
        """Log the modules that have changed on disk since they were imported."""

    def close(self) -> None:  # noqa: B027 - optional hook
        """Release what accepting needs: the service accepts no more clients. Open connections are not closed."""

    def abort_programs(self) -> None:  # noqa: B027 - optional hook
        """End the CGI programs of the service: their connections are aborted."""

    def end_proxied(self) -> None:  # noqa: B027 - optional hook
        """Close the connections without a complete PROXY header: a reload has removed or replaced the service."""

    def finished(self) -> None:  # noqa: B027 - optional hook
        """Release the remaining resources: the last connection of the service has ended."""


def read_time_zone(log_writer: LogWriter, all_running: Iterable[RunningService]) -> None:
    """Read the machine's time zone and those of access_zone= again (tzset(3), tzfile(5))."""
    time.tzset()
    ZoneInfo.clear_cache()
    log_writer.read_time_zone()
    for running in all_running:
        # The next check of the services reports a time zone that the machine no longer has.
        with contextlib.suppress(OSError, KeyError):
            running.read_time_zone()
