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
        connections: what the admission and the trackers of all services share.
        deps: what built-in services may need.
        account: the account that runs handlers without user=.
        store: keeps the sockets open while the daemon is restarted.
        tcpmux_services: returns the handlers of the services that tcpmux offers, by name.
        own_ports: the ports of the daemon's datagram services, which never ask.
        modules: the files of factories' modules, by `module:name`, as they were when they were imported.
        socket_freed: called when a process of a wait=yes service has ended whose service has another socket or none.
        first_zygote_client: has the zygote that was started before root was given up, and that keeps root's rights;
            None if there is none.
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
        """Take what services use most out of the connection context."""
        self.reactor = self.connections.reactor
        self.log_writer = self.connections.log_writer
        self.budget = self.connections.budget
        self.header_queue = HeaderQueue(self.reactor, self.budget)

    def keep_first(self, zygote_client: ZygoteClient | None) -> None:
        """Remember the zygote of the start if it runs as root and the daemon is about to give root up."""
        if os.geteuid() == 0 and self.account.user is not None:
            self.first_zygote_client = zygote_client


class Prepared(NamedTuple):
    """Other options that a running service is ready to take.

    Attributes:
        commit: lets them hold; can't fail.
        discard: releases what was made for them.
    """

    commit: Callable[[], None]
    discard: Callable[[], None]


class RunningService(ABC):
    """A running service: makes ports for its sockets, and takes other options while it runs.

    Attributes:
        service: its line of the services file.
        tracker: has its connections; None for one that has none.
    """

    tracker: ConnectionTracker[Any] | None = None
    _leave_hosts: Callable[[], None] = staticmethod(no_op)

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:  # noqa: ARG002 - for spawned ones
        self._context = context
        self.service = service

    @property
    def tls(self) -> ServerTls | None:
        """Its certificates; None without TLS."""
        return None

    @abstractmethod
    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        """Make a port for one of the service's sockets.

        Args:
            opened: the socket.
            service: with the options that will hold when the port begins.

        Raises:
            OSError: a file that the service needs can't be read.
        """

    @abstractmethod
    def prepare(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        """Make everything that other options need.

        Args:
            service: with the options.
            zygote_client: takes in a launcher that has to be another one; it is started before the options hold.

        Raises:
            ConfigError: a service's factory can't be made.
            KeyError: a user or group is not known any more.
            OSError: a file that it needs can't be read.
        """

    def start(self) -> None:  # noqa: B027 - most have nothing to do
        """Start what the service's own code wants to have started, before it serves.

        Raises:
            Exception: whatever that code raises.
        """

    def discard(self) -> None:
        """Release what was made for a service that won't run."""
        self.close()

    def attach(self, port: ServingPort) -> Callable[[], None]:
        """Let the service pause and resume a port; return what ends that."""
        return no_op if self.tracker is None else self.tracker.service_admission.listen(port.pause, port.resume)

    def update_locations(self, service: Service) -> None:
        """Take the places of the options, which may have moved in the file."""
        moved = service.locations != self.service.locations
        self.service = service
        if moved and self.tracker is not None:
            self.tracker.service_admission.update_locations(service)
        if self.tls is not None:
            self.tls.update_locations(service)

    def make_lines(self) -> None:
        """Make the lines of connections and refusals anew for another log level."""
        if self.tracker is not None:
            self.tracker.retune(self.tracker.service)
            self.tracker.service_admission.make_line()

    def read_time_zone(self) -> None:
        """Read the time zone of access_times again.

        Raises:
            OSError, KeyError: the machine no longer has it; the one that is known holds.
        """
        if self.tracker is not None:
            self.tracker.service_admission.read_time_zone()

    @abstractmethod
    def can_become(self, service: Service) -> bool:
        """Return whether this service can take the options of another one of its type without a new port."""

    def refresh_addresses(self) -> None:  # noqa: B027 - most have nothing to do
        """Take the new addresses of the machine's interfaces."""

    def _follow_hosts(self, changed: Callable[[], None]) -> frozenset[str]:
        """Call `changed` when host names in the rules of a datagram service have other addresses; return the names."""
        self._leave_hosts()
        names = self._context.connections.host_names(self.service)
        self._leave_hosts = self._context.connections.hosts.follow(names, changed) if names else no_op
        return names

    def started(self) -> None:  # noqa: B027 - most have nothing to do
        """Begin to serve."""

    def restart(self) -> Deferred[dict[str, object]]:
        """Start the service's launcher anew; no client is refused meanwhile.

        Returns:
            A Deferred as of SpawnedTracker.restart().

        Raises:
            CommandError: it has none.
        """
        raise CommandError(
            f"{self.service.id} runs in the daemon and has no launcher; svcctl upgrade renews the daemon"
        )

    def check_modules(self) -> None:  # noqa: B027 - most have nothing to do
        """Log which modules have changed on disk since they were imported."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Accept no more clients; connections go on."""

    def end_proxied(self) -> None:  # noqa: B027 - most have nothing to do
        """Close the connections whose PROXY header has not come: a reload has removed or replaced the service."""

    def finished(self) -> None:  # noqa: B027 - most have nothing to do
        """Release what the service has: its last connection has ended."""


def read_time_zone(log_writer: LogWriter, all_running: Iterable[RunningService]) -> None:
    """Read the machine's time zone and those of access_zone= again (tzset(3), tzfile(5))."""
    time.tzset()
    ZoneInfo.clear_cache()
    log_writer.read_time_zone()
    for running in all_running:
        # One that the machine has lost is the next check's to tell.
        with contextlib.suppress(OSError, KeyError):
            running.read_time_zone()
