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

#: How long datagrams wait for the first lookup of the host names in their service's rules, in seconds.
_LOOKUP_SECONDS = 2.0


class DatagramService(RunningService):
    """A datagram service that runs in the daemon."""

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:
        super().__init__(context, service, zygote_client)
        self._counters = context.connections.registry.counters(service.id)
        self._refusals = RefusalReporter(context.connections, self._counters)
        self._refusals.make_line(service)
        self._answering = context.connections.datagram_filter(service)
        self.refresh_addresses()
        self._ports: list[ServingPort] = []
        self._waited: IDelayedCall | None = None
        self._settled = False

    def refresh_addresses(self) -> None:
        """Read the broadcast addresses of the machine's interfaces again; datagrams from them get no answer."""
        self._answering.set_local_addresses(self._context.own_ports, broadcasts())

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        """Make the port of a socket; it reads no datagram before the host names in the rules are known."""
        context, protocol = self._context, datagram_protocol(service, self._context.deps)
        return datagram_port(
            context.reactor, opened.socket, protocol, self._answering, self._refused, ready=self._is_ready
        )

    def attach(self, port: ServingPort) -> Callable[[], None]:
        """Count the datagrams of a port; return what ends that."""
        counters, source = self._counters, cast("DatagramPort", port)
        counters.add_source(source)
        self._ports.append(port)

        def leave() -> None:
            counters.remove_source(source)
            self._ports.remove(port)

        return leave

    def started(self) -> None:
        """Look up the host names in the rules, and wait a bounded time for them."""
        if self._follow_hosts(self._know_hosts) and not self._is_ready():
            self._waited = self._context.reactor.callLater(_LOOKUP_SECONDS, self._settle)

    def _is_ready(self) -> bool:
        """Whether datagrams are read: not before the host names in the rules have been looked up, or could be."""
        connections = self._context.connections
        return self._settled or connections.hosts.answered(connections.host_names(self.service))

    def _know_hosts(self) -> None:
        self._answering.retune(self._context.connections.rules(self.service))
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
        """Take the places of the options in the file, which refuse lines name."""
        super().update_locations(service)
        # Refuse lines name the places of rules.
        self._answering.retune(self._context.connections.rules(service))

    def close(self) -> None:
        """Stop the lookups of host names."""
        self._leave_hosts()
        if self._waited is not None and self._waited.active():
            self._waited.cancel()

    def make_lines(self) -> None:
        """Make the refuse line anew for another log level."""
        self._refusals.make_line(self.service)

    def read_time_zone(self) -> None:
        """Read the time zone of access_times again.

        Raises:
            OSError, KeyError: the machine no longer has it; the known one holds.
        """
        self._answering.read_time_zone(zone_of(self.service))

    def _refused(self, refusal: Refusal, host: str, port: int) -> None:
        peer = self._context.log_writer.format_peer(host, port) if port >= 0 else host or LOCAL_CLIENT
        self._refusals.report(refusal, peer)

    def finished(self) -> None:
        """Write the refusals that are counted and not yet logged."""
        self._refusals.flush()

    def can_become(self, service: Service) -> bool:  # noqa: ARG002 - as all
        """It has no connections: another one takes its place, on the same sockets."""
        return False

    def prepare(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        """Not called: can_become() is false."""
        raise NotImplementedError
