"""What a running service is: it makes ports for its sockets, and can take other options while it runs."""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from svcd.connections.proxy_protocol import HeaderQueue
from svcd.errors import CommandError
from svcd.supervisor.launch_spec import launch_spec, needs_root, roots_refusals
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
    from svcd.model import ConfigProblem
    from svcd.process.launcher_client import LauncherClient, LauncherEvents
    from svcd.process.module_files import ModuleFiles
    from svcd.process.spec import LaunchSpec
    from svcd.process.zygote_client import ZygoteClient
    from svcd.protocols.catalog import ServiceDependencies
    from svcd.sockets.acquire import FdStore
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.launch_spec import DaemonAccount
    from svcd.supervisor.listener import ServingPort
    from svcd.tls.certificates import ServerTls

__all__ = ["Prepared", "RunningService", "ServiceContext", "read_time_zone"]


@dataclass(slots=True)
class ServiceContext:
    """What all services of the daemon have in common.

    Attributes:
        connections: what the admission and the trackers of all services share.
        header_queue: bounds the connections that wait for their PROXY headers.
        store: keeps the sockets open while the daemon is restarted.
        tcpmux_services: what tcpmux offers, by name.
        modules: the files of factories' modules, by `module:name`, as they were when they were imported.
        own_ports: the ports of the daemon's datagram services, which never ask.
        first_zygote_client: has the zygote that was started before root was given up, which keeps its rights; None
            if there is none.
        socket_freed: called when a process with wait=yes has ended whose service has another socket now, or none.
    """

    reactor: FdReactor
    deps: ServiceDependencies
    log_writer: LogWriter
    budget: DescriptorBudget
    account: DaemonAccount
    connections: ConnectionContext
    store: FdStore
    tcpmux_services: Callable[[], Mapping[str, ConnectionHandler]]
    own_ports: set[int] = field(default_factory=set)
    modules: dict[str, ModuleFiles] = field(default_factory=dict)
    socket_freed: Callable[[], None] = no_op
    first_zygote_client: ZygoteClient | None = None
    header_queue: HeaderQueue = field(init=False)

    def __post_init__(self) -> None:
        """Make what is made of the given objects."""
        self.header_queue = HeaderQueue(self.reactor, self.budget)

    def keep_first(self, zygote_client: ZygoteClient) -> None:
        """Remember the zygote of the start, if it is root's and the daemon is about to be no more."""
        if os.geteuid() == 0 and self.account.user is not None:
            self.first_zygote_client = zygote_client

    def linker(
        self, service: Service, spec: LaunchSpec, zygote_client: ZygoteClient
    ) -> Callable[[LauncherEvents], LauncherClient]:
        """Return what makes the link to a service's launcher.

        Args:
            service: the service.
            spec: what its launcher is told.
            zygote_client: takes it in, unless only the zygote of the start has the rights that it needs.
        """
        if self.first_zygote_client is not None and any(needs_root(service, self.account)):
            row = self.first_zygote_client.row_startable_as_root(spec)
            if row is not None:
                return partial(self.first_zygote_client.new_launcher_client, row, spec=spec)
        return partial(zygote_client.launcher_client, spec)

    def rights_missing(self, service: Service) -> list[ConfigProblem]:
        """Return what a spawned service asks for that only root can give, and the zygote of the start can't.

        Raises:
            KeyError: passwd(5) or group(5) no longer has a name that the options have.
        """
        problems, zygote_client = list(needs_root(service, self.account)), self.first_zygote_client
        if not problems or zygote_client is None:
            return problems
        row, excess = zygote_client.spec_in_table(service.id), zygote_client.excess(launch_spec(service, self.account))
        if zygote_client.has_root and not excess:
            return []
        return list(roots_refusals(service, self.account, row if zygote_client.has_root else None, excess))

    def roots_alone(self, hosted: Mapping[str, RunningService]) -> list[ConfigProblem]:
        """Return what services have that a process with the daemon's present rights can't give."""
        spawned = [each.service for each in hosted.values() if each.service.spawned]
        return [problem for service in spawned for problem in needs_root(service, self.account)]


class Prepared(NamedTuple):
    """Other options that a running service is ready to take.

    Attributes:
        commit: lets them hold; can't fail.
        discard: releases what was made for them.
    """

    commit: Callable[[], None]
    discard: Callable[[], None]


class RunningService(ABC):
    """A service that runs.

    Attributes:
        service: what it is.
        tracker: has its connections; None for one that has none.
    """

    tracker: ConnectionTracker[Any] | None = None

    def __init__(self, shared: ServiceContext, service: Service) -> None:
        self._shared = shared
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
    def prepare(self, service: Service, zygote_client: ZygoteClient) -> Prepared:
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
        """Let the service make a port rest and go on; returns what ends that."""
        return no_op if self.tracker is None else self.tracker.service_admission.listen(port.pause, port.resume)

    def update_locations(self, service: Service) -> None:
        """Go on as before, where the same line stands in another place of the file perhaps."""
        moved = service.places != self.service.places
        self.service = service
        if moved and self.tracker is not None:
            self.tracker.service_admission.update_locations(service)
        if self.tls is not None:
            self.tls.update_locations(service)

    def make_lines(self) -> None:
        """Make the lines of connections and refusals anew, or none: the log has another level."""
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
        """Whether another service could be served by this one with other options."""

    def refresh_addresses(self) -> None:  # noqa: B027 - most have nothing to do
        """The addresses of the machine's interfaces have changed."""

    def started(self) -> None:  # noqa: B027 - most have nothing to do
        """The daemon serves now."""

    def restart(self) -> Deferred[dict[str, object]]:
        """Start the service's launcher anew; nobody is refused meanwhile.

        Returns:
            A Deferred as of SpawnedTracker.restart().

        Raises:
            CommandError: it has none.
        """
        raise CommandError(
            f"{self.service.id} runs in the daemon and has no launcher; svcctl upgrade renews the daemon"
        )

    def check_modules(self) -> None:  # noqa: B027 - most have nothing to do
        """Say in the log which modules have changed on disk since they were imported."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Nobody is taken in any more; connections go on."""

    def end_proxied(self) -> None:  # noqa: B027 - most have nothing to do
        """Close the connections whose PROXY header has not come: a reload has removed or replaced the service."""

    def finished(self) -> None:  # noqa: B027 - most have nothing to do
        """The last connection has ended, and no more will come."""


def read_time_zone(log_writer: LogWriter, all_running: Iterable[RunningService]) -> None:
    """Read the machine's time zone and those of access_zone= again (tzset(3), tzfile(5))."""
    time.tzset()
    ZoneInfo.clear_cache()
    log_writer.read_time_zone()
    for running in all_running:
        # One that the machine has lost is the next check's to tell.
        with contextlib.suppress(OSError, KeyError):
            running.read_time_zone()
