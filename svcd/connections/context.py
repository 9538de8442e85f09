"""ConnectionContext: the objects of the daemon that the admission and the trackers of all services share."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from svcd.access.datagrams import DatagramFilter
from svcd.connections.access_rules import rules_of
from svcd.connections.lingering_close import LingeringCloser
from svcd.host.host_addresses import HostAddresses
from svcd.host.info import LoadAverage
from svcd.metrics.registry import MetricsRegistry
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svcd.access.admission import GlobalLimit
    from svcd.access.rules import AccessRules
    from svcd.config.service import Service
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.interfaces import DuplexReactor, FileReader, HostNameResolver
    from svcd.log.writer import LogWriter

__all__ = ["ConnectionContext"]


@dataclass(slots=True)
class ConnectionContext:
    """Objects that the connections of all services share.

    Attributes:
        reactor: watches descriptors and time.
        log_writer: writes the lines of connections and refusals.
        files: reads banners.
        resolver: looks up host names of clients.
        budget: counts descriptors.
        global_limit: limits the connections of all services together.
        connection_ids: yields the ids of connections.
        registry: counts connections and refusals.
        clock: returns the time in seconds, monotonic.
        wall_clock: returns the time in seconds since 1970, for access_times.
        load: returns the load average, for max_load.
        lingering_closer: closes refused connections.
        hosts: looks up the addresses of host names in the rules of datagram services.
    """

    reactor: DuplexReactor
    log_writer: LogWriter
    files: FileReader
    resolver: HostNameResolver
    budget: DescriptorBudget
    global_limit: GlobalLimit
    connection_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    registry: MetricsRegistry = field(default_factory=MetricsRegistry)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    load: Callable[[], float] = field(default_factory=LoadAverage)
    lingering_closer: LingeringCloser = field(init=False)
    hosts: HostAddresses = field(init=False)

    def __post_init__(self) -> None:
        """Create the objects that depend on the given ones."""
        self.lingering_closer = LingeringCloser(self.reactor, self.budget)
        self.hosts = HostAddresses(self.reactor)

    def rules(self, service: Service) -> AccessRules:
        """Return the access rules of a service, with the addresses of the host names in them that are known.

        Raises:
            OSError, KeyError: the machine no longer has a time zone.
        """
        rules, names = rules_of(service), self.host_names(service)
        return replace(rules, resolved=self.hosts.known(names)) if names else rules

    @staticmethod
    def host_names(service: Service) -> frozenset[str]:
        """Return the host names in a service's rules that are looked up in advance: those of UDP services."""
        names = service.net.shape is SocketType.DATAGRAM and not service.net.local
        return rules_of(service).host_names if names else frozenset()

    def datagram_filter(self, service: Service) -> DatagramFilter:
        """Make the filter of a datagram service.

        Raises:
            OSError, KeyError: the machine no longer has a time zone.
        """
        return DatagramFilter(self.rules(service), wall_clock=self.wall_clock, load=self.load)
