"""Datagram services that run in the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from svcd.addresses import LOCAL_CLIENT
from svcd.connections.access_rules import zone_of
from svcd.connections.refusals import RefusalReporter
from svcd.host.info import broadcasts
from svcd.protocols.catalog import datagram_protocol
from svcd.sockets.datagram_port import DatagramPort, datagram_port
from svcd.supervisor.running_service import Prepared, RunningService, ServiceContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.rules import Refusal
    from svcd.config.service import Service
    from svcd.process.zygote_client import ZygoteClient
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.listener import ServingPort

__all__ = ["DatagramService"]

#: How long a port waits for the first lookup of the host names in the access rules before it reads, in seconds.
_LOOKUP_SECONDS = 2.0


class DatagramService(RunningService):
    """A datagram service that runs in the daemon."""

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:
        super().__init__(context, service, zygote_client)
        self._counters = context.connections.registry.counters(service.id)
        self._refusals = RefusalReporter(context.connections, self._counters)
        self._refusals.make_line(service)
        self._filter = context.connections.datagram_filter(service)
        self.refresh_addresses()
        self._ports: list[ServingPort] = []
        self._lookup_timer: IDelayedCall | None = None
        self._reading = False

    def refresh_addresses(self) -> None:
        """Read the broadcast addresses of the machine's interfaces again; datagrams from these are not answered."""
        self._filter.set_local_addresses(self._context.own_ports, broadcasts())

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        """Make the port of a socket; it reads no datagram before the host names in the access rules are looked up."""
        context, protocol = self._context, datagram_protocol(service, self._context.deps)
        return datagram_port(
            context.reactor, opened.socket, protocol, self._filter, self._refused, ready=self._is_ready
        )

    def attach(self, port: ServingPort) -> Callable[[], None]:
        """Count the datagrams of a port; return a function that stops counting."""
        counters, source = self._counters, cast("DatagramPort", port)
        counters.add_source(source)
        self._ports.append(port)

        def leave() -> None:
            counters.remove_source(source)
            self._ports.remove(port)

        return leave

    def started(self) -> None:
        """Look up the host names in the access rules; start reading after _LOOKUP_SECONDS at the latest."""
        if self._follow_hosts(self._hosts_changed) and not self._is_ready():
            self._lookup_timer = self._context.reactor.callLater(_LOOKUP_SECONDS, self._start_reading)

    def _is_ready(self) -> bool:
        """Return whether datagrams are read: the host names have been looked up, or _LOOKUP_SECONDS have passed."""
        connections = self._context.connections
        return self._reading or connections.hosts.answered(connections.host_names(self.service))

    def _hosts_changed(self) -> None:
        self._filter.retune(self._context.connections.rules(self.service))
        if self._is_ready():
            self._start_reading()

    def _start_reading(self) -> None:
        if self._lookup_timer is not None and self._lookup_timer.active():
            self._lookup_timer.cancel()
        if not self._reading:
            self._reading = True
            for port in self._ports:
                port.resume()

    def update_locations(self, service: Service) -> None:
        """Use the new positions of the options in the services file."""
        super().update_locations(service)
        # Refuse lines name the positions of rules.
        self._filter.retune(self._context.connections.rules(service))

    def close(self) -> None:
        """Stop the lookups of host names."""
        self._unfollow_hosts()
        if self._lookup_timer is not None and self._lookup_timer.active():
            self._lookup_timer.cancel()

    def make_lines(self) -> None:
        """Create the refuse line again, for another log level."""
        self._refusals.make_line(self.service)

    def read_time_zone(self) -> None:
        """Read the time zone of access_times again.

        Raises:
            OSError, KeyError: the machine no longer has it; the one read before stays in use.
        """
        self._filter.read_time_zone(zone_of(self.service))

    def _refused(self, refusal: Refusal, host: str, port: int) -> None:
        peer = self._context.log_writer.format_peer(host, port) if port >= 0 else host or LOCAL_CLIENT
        self._refusals.report(refusal, peer)

    def finished(self) -> None:
        """Log the refusals that are counted and not yet logged."""
        self._refusals.flush()

    def can_become(self, service: Service) -> bool:  # noqa: ARG002 - as all
        """Return False: without connections to keep, a new service takes over the sockets."""
        return False

    def prepare(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        """Raise NotImplementedError: can_become() is always false, so that this is not called."""
        raise NotImplementedError
